import signal

import pytest

from diracnets.studies.grid import Row
from diracnets.studies.runner import Job, processors, run_jobs
from diracnets.training.folder import RunFolder
from diracnets.training.recipe import Recipe


class Slow:
    """A process that ends with code 0 when it has been asked a number of times."""

    alive = 0
    most = 0

    def __init__(self, polls, code=0, stubborn=False):
        self.polls, self.code, self.stubborn, self.signals, self.killed = polls, code, stubborn, [], False
        Slow.alive += 1
        Slow.most = max(Slow.most, Slow.alive)

    def poll(self):
        self.polls -= 1
        if self.polls > 0 and not self.signals:
            return None
        if self.polls == 0:
            Slow.alive -= 1
        return None if self.stubborn and not self.killed else self.code

    def send_signal(self, sig):
        self.signals.append(sig)

    def wait(self):
        if self.stubborn and not self.killed:
            raise KeyboardInterrupt
        return self.code

    def kill(self):
        self.killed = True


@pytest.fixture
def jobs(tmp_path):
    Slow.alive = Slow.most = 0
    return [Job(Row(f"row {number}", {}, Recipe()), 8, tmp_path / str(number)) for number in range(4)]


def run(jobs, launch, at_once=2, ended=lambda job, code: None):
    run_jobs(
        jobs, lambda job: [job.row.name], at_once=at_once, threads=3, started=lambda job: None, ended=ended,
        launch=launch,
    )  # fmt: skip


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_so_many_run_at_once_and_all_end(jobs, at_once, monkeypatch):
    monkeypatch.setattr("diracnets.studies.runner._POLL_SECONDS", 0)
    done = []
    run(jobs, lambda words, log, environment: Slow(3), at_once, ended=lambda job, code: done.append((job, code)))
    assert sorted(done, key=lambda each: each[0].row.name) == [(job, 0) for job in jobs]
    assert Slow.most == min(at_once, 4)


def test_threads_and_words_reach_the_process(jobs, monkeypatch):
    monkeypatch.setattr("diracnets.studies.runner._POLL_SECONDS", 0)
    launched, done = [], []

    def launch(words, log, environment):
        launched.append(words)
        assert environment["OMP_NUM_THREADS"] == "3"
        return Slow(1, code=1 if words == ["row 1"] else 0)

    run(jobs[:2], launch, ended=lambda job, code: done.append((job.row.name, code)))
    assert launched == [["row 0"], ["row 1"]]
    assert done == [("row 0", 0), ("row 1", 1)]


def test_an_interruption_asks_all_to_stop_and_waits(jobs):
    processes = []

    def launch(words, log, environment):
        processes.append(Slow(5))
        if len(processes) == 2:
            raise KeyboardInterrupt
        return processes[-1]

    with pytest.raises(KeyboardInterrupt):
        run(jobs, launch)
    assert processes[0].signals == [signal.SIGTERM]
    assert not processes[0].killed


def test_a_second_interruption_ends_them(jobs):
    processes = []

    def launch(words, log, environment):
        processes.append(Slow(5, stubborn=True))
        if len(processes) == 3:
            raise KeyboardInterrupt
        return processes[-1]

    with pytest.raises(KeyboardInterrupt):
        run(jobs, launch, at_once=3)
    assert [process.killed for process in processes[:2]] == [True, True]


def test_a_job_resumes_where_there_is_a_checkpoint(jobs, tmp_path):
    job = jobs[0]
    first = job.command("cpu", None)
    assert first[:2] == ["train", "--recipe"]
    assert Recipe.load(first[2]) == job.row.recipe
    (job.folder / "last.pt").touch()
    assert job.command("cpu", tmp_path) == [
        *("train", "--resume", "--run-dir", str(job.folder), "--device", "cpu", "--data-dir", str(tmp_path))
    ]


@pytest.mark.parametrize(("given", "count"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads_to_share(given, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert processors() == count if count else processors() >= 1


@pytest.mark.slow
def test_a_run_of_a_study_is_refused_a_folder_in_which_another_process_trains(tmp_path):
    """As after a study was killed whose runs go on."""
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1, num_train=60)
    job = Job(Row("row", {}, recipe), 1, tmp_path / "run")
    job.folder.mkdir()
    ended = []

    def go():
        run_jobs(
            [job],
            lambda job: job.command("cpu", None),
            at_once=1,
            threads=1,
            started=lambda _: None,
            ended=lambda _, code: ended.append(code),
        )

    with RunFolder(job.folder).held():
        go()
    assert "another process trains in" in job.log.read_text()
    go()
    assert ended == [2, 0]
