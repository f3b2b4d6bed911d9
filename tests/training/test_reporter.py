import io
import re
import sys

import pytest
from rich.console import Console

from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Events, Reporter


def test_a_terminal_sees_a_bar_that_goes_away():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with Reporter(epochs=2, steps=10, console=console) as reporter:
        reporter.step(1, 5, 1234.0, lambda: (1.25, 0.5))
        reporter.step(1, 6, 1234.0, lambda: pytest.fail("asked for what is not shown"))
        reporter._progress.refresh()
        reporter.evaluating(5, 20)
        reporter.say("[bold]as it is[/]")
    shown = screen.getvalue()
    assert "epoch 1/2" in shown
    assert "5/10, loss 1.250, accuracy 50.0%, 1,234 images/s" in shown  # of 80 columns too
    assert "[bold]as it is[/]" in shown
    assert shown.endswith("\x1b[2K") or "\x1b[2K" in shown


def test_steps_are_silent_elsewhere():
    screen = io.StringIO()
    with Reporter(epochs=2, steps=10, console=Console(file=screen)) as reporter:
        for batch in range(1, 11):
            reporter.step(1, batch, 100.0, lambda: pytest.fail("asked for what is not shown"))
    assert screen.getvalue() == ""


def test_what_is_left_is_told_where_it_is_known():
    screen = io.StringIO()
    row = {"accuracy": 0.5, "loss": 1.0, "rate": 0.1, "images_per_second": 10.0}
    with Reporter(epochs=2, steps=1, console=Console(file=screen, width=100)) as reporter:
        for epoch in (1, 2):
            reporter.step(epoch, 1, 10.0, lambda: (1.0, 0.5))
            reporter.epoch({"epoch": epoch, **row}, best=epoch == 2)
    assert [line.split()[-1] for line in screen.getvalue().splitlines()] == ["left", "?", "best"]


@pytest.mark.parametrize("terminal", [True, False])
def test_epochs_are_a_table_with_its_columns_named_once_each_time_a_run_is_begun(terminal):
    screen = io.StringIO()
    row = {"accuracy": 1.0, "loss": 12345.678, "rate": 1.3e-5, "images_per_second": 1234567.0}
    rows = [
        {**row, "epoch": 9},
        {**row, "epoch": 1000, "loss": 0.5, "rate": 0.25, "val_accuracy": 0.1, "val_loss": 2.25},
    ]
    for _ in "begun", "resumed":
        reporter = Reporter(1000, steps=1, console=Console(file=screen, force_terminal=terminal, width=80))
        for each in rows:
            reporter.epoch(each, best="val_loss" in each)
    lines = screen.getvalue().splitlines()
    assert (
        lines[:3]
        == lines[3:]
        == [
            "    epoch     loss      acc  val loss  val acc       lr   images/s    left",
            "   9/1000  1.2e+04  100.00%                     1.3e-05  1,234,567       ?",
            "1000/1000   0.5000  100.00%    2.2500   10.00%   0.2500  1,234,567      0s  best",
        ]
    )
    assert max(map(len, lines)) <= 80


def test_quiet_shows_nothing(capsys, stripes, tmp_path):
    recipe = Recipe().replaced(model="diracnet-10-0.25", epochs=1, batch_size=36, precision="float32")
    train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True)
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_without_matplotlib_it_is_said_once(capsys, stripes, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    recipe = Recipe().replaced(model="diracnet-10-0.25", epochs=2, batch_size=36, precision="float32")
    train(recipe, run=tmp_path / "run", data=stripes, device="cpu")
    assert capsys.readouterr().out.count("diracnets[plot]") == 1
    assert not (tmp_path / "run" / "curve.png").exists()


def test_losses_share_a_chart_in_tensorboard(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = Events(tmp_path, 0)
    events.write({"epoch": 1, "loss": 2.0, "accuracy": 0.5, "val_loss": 1.0, "val_accuracy": 0.25, "rate": 0.1})
    events.close()
    read = accumulator.EventAccumulator(str(tmp_path)).Reload()
    values = {tag: read.Scalars(tag)[0].value for tag in read.Tags()["scalars"]}
    expected = {"loss/train": 2.0, "accuracy/train": 0.5, "loss/val": 1.0, "accuracy/val": 0.25, "rate": 0.1}
    assert values == pytest.approx(expected)


def test_the_last_line_says_where_to_look(capsys, stripes, tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("tensorboard")
    run, recipe = tmp_path / "run", Recipe().replaced(model="diracnet-10-0.25", batch_size=36, precision="float32")
    train(recipe.replaced(epochs=1), run=run, data=stripes, device="cpu")
    *_, result, last = capsys.readouterr().out.splitlines()
    assert str(run / "model.safetensors") in result
    assert last == f"its curve is {run / 'curve.png'}; for TensorBoard: tensorboard --logdir {run / 'tensorboard'}"


@pytest.mark.parametrize("width", [60, 80, 120])
def test_no_line_is_wider_than_the_terminal_or_broken_within_a_word(width):
    screen = io.StringIO()
    row = {"accuracy": 0.5, "loss": 1.0, "rate": 0.1, "images_per_second": 1234.0, "val_accuracy": 0.5, "val_loss": 1.0}
    said = "diracnet-28-1 on folder: 384 images to train on, 96 images to validate on; all goes to runs/photos"
    with Reporter(20, steps=12, console=Console(file=screen, force_terminal=True, width=width)) as reporter:
        reporter.say(said)
        reporter.step(13, 12, 1234.0, lambda: (1.25, 0.5))
        reporter.epoch({"epoch": 20, **row}, best=True)
        reporter._progress.refresh()
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()))
    assert max(map(len, lines)) <= width
    assert said in " ".join(line for line in lines if line.strip() and "━" not in line)
    live = next(line for line in reversed(lines) if line.startswith("epoch 13/20"))
    assert "loss 1.250, accuracy 50.0%" in live
    assert "…" not in live
    assert ("images/s" in live) == (width > 60)
