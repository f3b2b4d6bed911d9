"""A study from its rows to its table: trains the runs that are missing, and writes down each as it finishes."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from pathlib import Path

from diracnets.analysis.report import Say, write_text
from diracnets.data.load import load_data
from diracnets.errors import DiracNetsError, TrainingError, UsageError
from diracnets.runtime.device import choose_device
from diracnets.studies.figure import draw
from diracnets.studies.grid import Row, Study, at_rates, choose_rows, rate_name
from diracnets.studies.options import Options
from diracnets.studies.page import page
from diracnets.studies.records import add_record, key_of, read_records, record_of
from diracnets.studies.runner import Job, Launch, launch, processors, run_jobs


def conduct(study: Study, options: Options, say: Say, launch: Launch = launch) -> None:
    """Train what is missing of a study, and write its table, figure and results.

    Each run is written down when it has finished, so that a call that was stopped goes on where it was. A run that
    diverges is a result.

    Args:
        study: what to answer.
        options: rows, budget and how to train.
        say: takes one line at a time.
        launch: starts a process.

    Raises:
        UsageError: no row matches, or an option makes no sense.
        FileError: a file cannot be read or written.
        DiracNetsError: runs failed; the results of the others are written.
    """
    path = options.out / f"{study.name}.jsonl"
    if options.add:
        if options != type(options)(add=options.add, out=options.out):
            raise UsageError("--add adds results and trains nothing: give no other options with it but --out")
        _add(options.add, path, say)
        _report(study, path, say)
        return
    jobs = _jobs(study, options)
    known = {record.key for record in read_records(path)}
    missing = [job for job in jobs if key_of(job.row) not in known]
    if options.plan:
        total, left = (Counter(map(_name, each)) for each in (jobs, missing))
        epochs = {_name(job): job.row.recipe.settings()["epochs"] for job in jobs}
        for name, count in total.items():
            say(f"{name}: {count - left[name]} of {count} trained, {epochs[name]} epochs each")
        return
    choose_device(options.device)  # refuses one that there is not
    for data in sorted({job.row.recipe.settings()["data"] for job in missing}):
        load_data(data, data_dir=options.data_dir)  # once before any run: what is wrong is said once, none downloads it
    try:
        _train(study, missing, len(jobs), options, path, say, launch)
    finally:  # also if some have failed, or were stopped
        _report(study, path, say)


def _jobs(study: Study, options: Options) -> list[Job]:
    """All runs that are asked for: the first seeds of all rows, then the second ones, so that rows compare early."""
    rows = [
        each
        for row in choose_rows(study, options.rows)
        for each in at_rates(Row(row.name, row.axes, options.applied(row.recipe)), options.rates)
    ]
    jobs = []
    for seed in range(options.budget.seeds or study.seeds):
        for row in rows:
            recipe = options.budget.scaled(row.recipe)
            key = hashlib.blake2b(repr(sorted(recipe.settings().items())).encode(), digest_size=4).hexdigest()
            folder = options.work / study.name / f"{row.name}-{key}" / f"seed-{seed}"
            run = Row(row.name, row.axes, recipe.replaced(seed=seed))
            jobs.append(Job(run, row.recipe.settings()["epochs"], folder))
    return jobs


def _train(study: Study, jobs: list[Job], total: int, options: Options, path: Path, say: Say, launch: Launch) -> None:
    failed: list[Job] = []
    done = total - len(jobs)

    def started(job: Job) -> None:
        say(f"{_name(job)}, seed {job.row.recipe.settings()['seed']}: started; its log is {job.log}")

    def ended(job: Job, code: int) -> None:
        nonlocal done
        done += 1
        if code not in (0, TrainingError.exit_code):
            failed.append(job)
            what = f"failed: see {job.log}"
        else:
            record = record_of(job.row, job.full_epochs, job.folder, options.jobs, diverged=code != 0)
            add_record(path, record)
            what = f"diverged: see {job.log}" if code else f"{record.result['accuracy']:.2%}"
        say(f"{_name(job)}, seed {job.row.recipe.settings()['seed']}: {what} ({done} of {total})")

    try:
        run_jobs(
            jobs,
            lambda job: job.command(options.device, options.data_dir),
            at_once=options.jobs,
            threads=max(1, processors() // options.jobs),
            started=started,
            ended=ended,
            launch=launch,
        )
    except (KeyboardInterrupt, SystemExit) as stop:
        stopped = f"stopped after {done} of {total} training runs; the rest is saved, and the same command goes on"
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(stopped) from None
        print(f"diracnets: {stopped}", file=sys.stderr, flush=True)  # of an exit, only the code is printed
        raise
    if failed:
        raise DiracNetsError(f"{len(failed)} of {len(jobs)} training runs failed: see {', '.join(map(_log, failed))}")


def _add(files: tuple[Path, ...], path: Path, say: Say) -> None:
    known = {record.key for record in read_records(path)}
    for file in files:
        if not file.exists():
            raise UsageError(f"there is no file {file} to add")
        new = [record for record in read_records(file) if record.key not in known]
        for record in new:
            add_record(path, record)
        known |= {record.key for record in new}
        say(f"{file}: {len(new)} runs added")


def _report(study: Study, path: Path, say: Say) -> None:
    """Draw the figure of what is known, and write the table."""
    records, picture = read_records(path), path.with_suffix(".png")
    if not records:
        return
    drawn = draw(study, records, picture, say)
    write_text(path.with_suffix(".md"), page(study, records, picture.name if drawn else None))
    say(f"wrote {path}, {path.with_suffix('.md')}" + (f" and {picture}" if drawn else ""))


def _name(job: Job) -> str:
    settings = job.row.recipe.settings()
    return f"{job.row.name} at {rate_name(settings)} {settings[rate_name(settings)]:g}"


def _log(job: Job) -> str:
    return str(job.log)
