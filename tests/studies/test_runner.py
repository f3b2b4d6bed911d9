import signal

import pytest

from diracnets.studies.runner import Job, Step, processors, run_jobs
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
    return [Job(f"row {number}", "key", Recipe(), tmp_path / str(number)) for number in range(4)]


def run(jobs, launch, at_once=2, steps=1, ended=lambda job, code: None):
    words = lambda job: iter([Step([job.row, str(number)], job.log) for number in range(steps)])  # noqa: E731
    run_jobs(jobs, words, at_once=at_once, threads=3, started=lambda job: None, ended=ended, launch=launch)


@pytest.mark.parametrize("at_once", [1, 2, 9])
def test_so_many_run_at_once_and_all_end(jobs, at_once, monkeypatch):
    monkeypatch.setattr("diracnets.studies.runner._POLL_SECONDS", 0)
    done = []
    run(jobs, lambda step, log, environment: Slow(3), at_once, ended=lambda job, code: done.append((job.row, code)))
    assert sorted(done) == [(job.row, 0) for job in jobs]
    assert Slow.most == min(at_once, 4)


def test_the_next_command_comes_after_a_good_end_only(jobs, monkeypatch):
    monkeypatch.setattr("diracnets.studies.runner._POLL_SECONDS", 0)
    launched, done = [], []

    def launch(step, log, environment):
        launched.append(tuple(step.words))
        assert environment["OMP_NUM_THREADS"] == "3"
        return Slow(1, code=1 if step.words[0] == "row 1" else 0)

    run(jobs[:2], launch, steps=2, ended=lambda job, code: done.append((job.row, code)))
    assert launched == [("row 0", "0"), ("row 1", "0"), ("row 0", "1")]
    assert done == [("row 1", 1), ("row 0", 0)]


def test_an_interruption_asks_all_to_stop_and_waits(jobs):
    processes = []

    def launch(step, log, environment):
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

    def launch(step, log, environment):
        processes.append(Slow(5, stubborn=True))
        if len(processes) == 3:
            raise KeyboardInterrupt
        return processes[-1]

    with pytest.raises(KeyboardInterrupt):
        run(jobs, launch, at_once=3)
    assert [process.killed for process in processes[:2]] == [True, True]


def test_a_job_resumes_where_there_is_a_checkpoint(jobs, tmp_path):
    job = jobs[0]
    (first,) = job.steps("cpu", None, chain=True)
    assert list(first.words[:2]) == ["train", "--recipe"]
    assert Recipe.load(first.words[2]) == job.recipe
    (job.folder / "last.pt").touch()
    (job.folder / "model.safetensors").touch()
    second, chain = job.steps("cpu", tmp_path, chain=True)
    assert list(second.words) == [
        *("train", "--resume", "--run", str(job.folder), "--device", "cpu", "--data-dir", str(tmp_path))
    ]
    assert chain.words[0] == "eval"
    assert len(list(job.steps("cpu", tmp_path, chain=False))) == 1


@pytest.mark.parametrize(("told", "count"), [("3", 3), ("0", None), ("many", None), ("", None)])
def test_threads_to_share(told, count, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", told)
    assert processors() == count if count else processors() >= 1
