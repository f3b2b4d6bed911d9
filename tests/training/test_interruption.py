import os
import signal
import threading
from pathlib import Path

import pytest

from diracnets.training.interruption import Interrupted, Interruption


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_remembered_and_the_second_acts(number):
    seen = []
    before = signal.signal(number, lambda *_: seen.append(number))
    try:
        with Interruption() as interruption:
            assert interruption.signal is None
            signal.raise_signal(number)
            assert (interruption.signal, seen) == (number, [])
            signal.raise_signal(number)
            assert seen == [number]
    finally:
        signal.signal(number, before)


@pytest.mark.parametrize(
    ("several", "second"), [(False, "stops at once, and loses what was not saved"), (True, "changes nothing")]
)
def test_the_first_signal_is_answered_at_once(several, second, capfd):
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        with Interruption(say=True, several=several):
            signal.raise_signal(signal.SIGINT)
            said = f"Ctrl-C: the run stops after this batch and is saved; a second Ctrl-C {second}"
            assert capfd.readouterr().err.strip() == said
            signal.raise_signal(signal.SIGINT)
            assert not capfd.readouterr().err
        with Interruption():
            signal.raise_signal(signal.SIGINT)
        assert not capfd.readouterr().err
    finally:
        signal.signal(signal.SIGINT, before)


def test_where_there_is_no_batch_left_a_signal_is_told_what_is_waited_for(capfd):
    with Interruption(say=True) as interruption:
        interruption.writes(Path("runs/a/model.safetensors"))
        signal.raise_signal(signal.SIGINT)
    told = capfd.readouterr().err
    assert "ends when runs/a/model.safetensors is written; a second Ctrl-C stops at once" in told
    assert "batch" not in told


def test_a_process_whose_torchrun_was_killed_stops(monkeypatch):
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    other = Interruption(several=True)  # of another launcher, which may end before it
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "mine")
    interruption = Interruption(several=True)
    assert interruption.asked == 0
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert (interruption.asked, other.asked) == (signal.SIGTERM, 0)


def test_handlers_come_back_without_a_signal_and_after_an_error():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with Interruption():
        assert signal.getsignal(signal.SIGINT) != before[0]
    with pytest.raises(ZeroDivisionError), Interruption():
        _ = 1 / 0
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_catch_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with Interruption() as interruption:
            found.append((signal.getsignal(signal.SIGTERM), interruption.signal))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [(before, None)]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_exit_code_is_the_shells(number, code):
    assert Interrupted("stopped", number).exit_code == code
