import io
import sys

from rich.console import Console

from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.reporter import Reporter


def test_a_terminal_sees_a_bar_that_goes_away():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Reporter(epochs=2, steps=10, console=console) as reporter:
        reporter.step(1, 5, 1234.0)
        reporter.evaluating(5, 20)
        reporter.say("[bold]as it is[/]")
    shown = screen.getvalue()
    assert "epoch 1/2" in shown
    assert "[bold]as it is[/]" in shown
    assert shown.endswith("\x1b[2K") or "\x1b[2K" in shown


def test_steps_are_silent_elsewhere():
    screen = io.StringIO()
    with Reporter(epochs=2, steps=10, console=Console(file=screen)) as reporter:
        for batch in range(1, 11):
            reporter.step(1, batch, 100.0)
    assert screen.getvalue() == ""


def test_what_is_left_is_told_where_it_is_known():
    screen = io.StringIO()
    row = {"accuracy": 0.5, "loss": 1.0, "rate": 0.1, "images_per_second": 10.0}
    with Reporter(epochs=2, steps=1, console=Console(file=screen, width=100)) as reporter:
        for epoch in (1, 2):
            reporter.step(epoch, 1, 10.0)
            reporter.epoch({"epoch": epoch, **row})
    assert [line.split("images/s  ")[1] for line in screen.getvalue().splitlines()] == ["? left", "0s left"]


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
