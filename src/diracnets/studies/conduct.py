"""A study of trainings from its rows to its table: trains what is missing, and writes down what is there."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diracnets.errors import DiracNetsError, UsageError
from diracnets.studies.lines import draw
from diracnets.studies.outcome import reason, record_of
from diracnets.studies.rates import at_rates, called
from diracnets.studies.records import Asked, Record, Results
from diracnets.studies.report import write_text
from diracnets.studies.runner import Job, Process, Step, launch, processors, run_jobs
from diracnets.studies.study import Budget, Row, Study, choose_rows, recipe_key
from diracnets.studies.table import page
from diracnets.training.recipe import Recipe

Say = Callable[[str], None]
Launch = Callable[[Step, Path, Mapping[str, str]], Process]
_WITH_ADD = ("--add", "--out")


@dataclass(frozen=True, kw_only=True)
class Trainings:
    """The options of every study that is made of trainings."""

    rows: tuple[str, ...] = ("*",)
    """Only rows whose names match one of these patterns, such as '*-28-1-*'; --plan lists the names."""
    plan: FlagCreatePairsOff[bool] = False
    """Say what there is and what would be trained, and do nothing."""
    add: Annotated[tuple[Path, ...], arg(metavar="FILE.json")] = ()
    """Take over the records that the same study made on other machines, and train nothing; of the other options, only
    --out goes with it."""
    rates: Annotated[tuple[float, ...], arg(metavar="RATE [RATE ...]", help_behavior_hint="")] = ()
    """Train every row with each of these learning rates (the recipe's lr, or with Muon its filter_lr), and tell it by
    the best; by default with the recipe's own."""
    budget: Budget = field(default_factory=Budget)
    """How much is trained; the table says what was scaled down."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where CIFAR is, or is downloaded to."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    jobs: int = 1
    """Trainings beside each other; they share the processors."""
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"] | None, arg(help_behavior_hint="")] = None
    """Arithmetic of all trainings; by default as the recipes say, most of which take what they find fast, each training
    for itself: give one to have all rows alike."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile all networks with torch.compile."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Where the table, the picture and all numbers go."""
    work: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/studies")
    """Where the run folders go."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}, but must be at least 1")

    def study(self) -> Study:
        """The study that these options spell.

        Raises:
            UsageError: they spell none.
        """
        raise NotImplementedError

    def applied(self, recipe: Recipe) -> Recipe:
        """A row's recipe with the options that change recipes, but for the budget."""
        precision, compiled = self.precision or recipe.precision, self.compile or recipe.compile
        return replace(recipe, precision=precision, compile=compiled)

    def run(self, say: Say) -> None:
        """Answer the study's question as far as the budget goes.

        Args:
            say: takes one line at a time.

        Raises:
            UsageError: no row matches, or an option makes no sense.
            FileError: a file cannot be read or written.
            DiracNetsError: trainings failed; what the others gave is written.
        """
        conduct(self.study(), self, say)


def _changed(options: Any, prefix: str = "--") -> list[str]:  # noqa: ANN401
    """The flags of a dataclass of options, and of those in it, that are not at their defaults."""
    flags: list[str] = []
    for option in fields(options):
        value, flag = getattr(options, option.name), prefix + option.name.replace("_", "-")
        if is_dataclass(value):
            flags += _changed(value, f"{flag}.")
        elif value != option.default:
            flags.append(flag)
    return flags


def conduct(study: Study, options: Trainings, say: Say, launch: Launch = launch) -> None:
    """Train what is missing of a study, and write its table, picture and numbers.

    Each finished training is written down at once, so that a call that was stopped goes on where it was. A training
    that diverges is a result.

    Args:
        study: what to answer.
        options: rows, budget and circumstances.
        say: takes one line at a time.
        launch: starts a process.

    Raises:
        UsageError, FileError, DiracNetsError: as in `Trainings.run`.
    """
    if options.add and (ignored := [flag for flag in _changed(options) if flag not in _WITH_ADD]):
        raise UsageError(
            f"--add takes over records and trains nothing, for which {', '.join(ignored)} would mean nothing: "
            f"leave out all but {' and '.join(_WITH_ADD)}"
        )
    rows = [
        replace(each, recipe=options.applied(each.recipe))
        for row in choose_rows(study, options.rows)
        for each in at_rates(row, options.rates)
    ]
    asked = [Asked.of(row, study, options.budget) for row in rows]
    path = options.out / f"{study.name}.json"
    if options.plan:
        results = Results.read(path)
        jobs = _missing(study, rows, asked, results.records if results else [], options)
        for row in asked:
            todo = sum((job.row, job.key) == (row.row, row.key) for job in jobs)
            done = f"{row.seeds - todo} of {row.seeds} trained"
            say(f"{called(row)}: {done}, {row.recipe['epochs']} epochs each")
        return

    results = _known(study, options)
    if options.add:
        for file in options.add:
            _take_over(results, file)
        _save(study, results, path)
        _show(study, options, path, say)
        return
    jobs = _missing(study, rows, asked, results.records, options)
    _find_data(jobs, options.data_dir)
    results.forget_untrained()
    results.ask(asked)
    _save(study, results, path)
    try:
        _train(study, asked, jobs, options, say, launch)
    finally:  # also where some have failed, or were stopped
        _show(study, options, path, say)


def _find_data(jobs: list[Job], data_dir: Path | None) -> None:
    """Load the data once before any training, so that what is wrong with it is told once, and none downloads it."""
    from diracnets.data.load import load_data

    for data in sorted({job.recipe.data for job in jobs}):
        load_data(data, data_dir=data_dir)


def _train(study: Study, asked: list[Asked], jobs: list[Job], options: Trainings, say: Say, launch: Launch) -> None:
    path = options.out / f"{study.name}.json"
    threads = max(1, processors() // options.jobs)
    names = {(row.row, row.key): called(row) for row in asked}
    failed: list[Job] = []
    total = sum(row.seeds for row in asked)
    done = total - len(jobs)

    def started(job: Job) -> None:
        job.folder.mkdir(parents=True, exist_ok=True)
        say(f"{names[job.row, job.key]}, seed {job.recipe.seed}: begun; its log is {job.log}")

    def ended(job: Job, code: int) -> None:
        nonlocal done
        done += 1
        record = record_of(job, code, options.jobs)
        if record is None:
            failed.append(job)
            what = f"failed: {reason(job)}"
        else:
            results = _known(study, options)  # as another process may have left it meanwhile
            results.ask(row for row in asked if (row.row, row.key) == (job.row, job.key))
            results.add([record])
            _save(study, results, path)
            _tell(results, path)
            what = f"{record.accuracy:.2%}" if record.accuracy is not None else f"diverged: {record.message}"
        say(f"{names[job.row, job.key]}, seed {job.recipe.seed}: {what} ({done} of {total})")

    try:
        run_jobs(
            jobs,
            lambda job: job.steps(options.device, options.data_dir, chain=study.chain),
            at_once=options.jobs,
            threads=threads,
            started=started,
            ended=ended,
            launch=launch,
        )
    except (KeyboardInterrupt, SystemExit) as stop:
        stopped = f"stopped after {done} of {total} trainings, and the rest is saved; the same command goes on"
        if isinstance(stop, KeyboardInterrupt):
            raise KeyboardInterrupt(stopped) from None
        print(f"diracnets: {stopped}", file=sys.stderr, flush=True)  # of an exit, only the code is told
        raise
    if failed:
        raise DiracNetsError(
            f"{len(failed)} of {len(jobs)} trainings failed, the first of them {failed[0].row}: {reason(failed[0])} "
            f"(its log: {failed[0].log})"
        )


def _known(study: Study, options: Trainings) -> Results:
    """What the study's file holds, told with today's title and question, and with the circumstances of a call that
    trained: taking over records of others is none."""
    from diracnets.runtime.device import choose_device
    from diracnets.runtime.environment import circumstances

    old = Results.read(options.out / f"{study.name}.json")
    if options.add:
        new = Results.of(study, old.circumstances if old else None)
    else:
        new = Results.of(study, circumstances(choose_device(options.device)))
    return new if old is None else replace(new, rows=old.rows, records=old.records)


def _take_over(results: Results, file: Path) -> None:
    others = Results.read(file)
    if others is None:
        raise UsageError(f"there is no file {file} to add")
    if others.study != results.study:
        raise UsageError(f"{file} is of the study {others.study}; give one of {results.study}")
    others.forget_untrained()
    results.ask(others.rows)
    results.add(others.records)
    results.circumstances = results.circumstances or others.circumstances


def _missing(study: Study, rows: list[Row], asked: list[Asked], records: list[Record], options: Trainings) -> list[Job]:
    """What is still to be trained: first seeds of all rows, then second ones, so that rows can be compared early."""
    known = {(record.row, record.key, record.seed) for record in records}
    jobs = []
    for seed in range(max((row.seeds for row in asked), default=0)):
        for row, wanted in zip(rows, asked, strict=True):
            if seed < wanted.seeds and (wanted.row, wanted.key, seed) not in known:
                recipe = replace(options.budget.scaled(row.recipe), seed=seed)
                folder = options.work / study.name / f"{row.name}-{recipe_key(recipe)}" / f"seed-{seed}"
                jobs.append(Job(row.name, wanted.key, recipe, folder))
    return jobs


def _save(study: Study, results: Results, path: Path) -> None:
    """Write all numbers, rows in the study's order, and behind them those of other options."""
    names = [row.name for row in study.rows]
    results.rows.sort(key=lambda row: names.index(row.row) if row.row in names else len(names))
    if study.sizes:
        results.count_parameters()
    results.write(path)


def _show(study: Study, options: Trainings, path: Path, say: Say) -> None:
    """Draw the picture of what is known, and write the table."""
    results, picture = _known(study, options), path.with_suffix(".png")
    draw(results, picture, say)
    _tell(results, path)
    say(f"wrote {path}, {path.with_suffix('.md')}" + (f" and {picture}" if picture.exists() else ""))


def _tell(results: Results, path: Path) -> None:
    """Write the table."""
    picture = path.with_suffix(".png")
    write_text(path.with_suffix(".md"), page(results, picture.name if picture.exists() else None))
