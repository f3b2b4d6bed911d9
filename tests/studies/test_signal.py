import json
import math

import pytest
import torch

from diracnets.commands.study import Signal
from diracnets.errors import UsageError
from diracnets.studies.signal import kept_in_theory, relu_correlation


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("signal")
    said = []
    Signal(depths=(52,), width=0.25, data="digits", images=32, device="cpu", out=folder).run(said.append)
    assert "diracnet-52-0.25, deep initialization: signal left" in said[1]
    return folder


def test_the_deep_start_lets_the_signal_through_where_the_papers_does_not(out):
    rows = {
        (row["family"], row["init"], row["depth"]): row for row in json.loads((out / "signal.json").read_text())["rows"]
    }
    assert len(rows) == 4
    assert rows["diracnet", "deep", 52]["arrived"] > 0.4 > 0.3 > rows["diracnet", "paper", 52]["arrived"]
    assert rows["plain", "deep", 52]["arrived"] < rows["diracnet", "deep", 52]["arrived"]
    deep = rows["diracnet", "deep", 52]
    in_theory = kept_in_theory(deep["alpha"], deep["beta"], deep["bias"])
    assert in_theory < deep["kept"] < in_theory + 0.04  # what earlier ReLUs have cut off cannot be cut off again
    curve = deep["curve"]
    assert curve["layer"] == list(range(1, 49))
    assert len(curve["arrived"]) == len(curve["gradient"]) == 48
    assert curve["arrived"][-1] == pytest.approx(deep["arrived"], rel=1e-3)


def test_the_page_stands_alone(out):
    text = (out / "signal.md").read_text()
    assert text.startswith("# The signal before training")
    assert "![" in text
    assert (out / "signal.png").stat().st_size > 1000
    assert sum(line.startswith(("| diracnet-", "| plain-")) for line in text.splitlines()) == 4
    circumstances = json.loads((out / "signal.json").read_text())["circumstances"]
    assert circumstances["versions"]["torch"] == torch.__version__


@pytest.mark.parametrize("bias", [0.0, 0.7, 2.0])
def test_what_a_relu_keeps_is_what_sampling_finds(bias):
    x = bias + torch.randn(400_000, generator=torch.Generator().manual_seed(0))
    found = torch.corrcoef(torch.stack([x, x.relu()]))[0, 1]
    assert relu_correlation(bias) == pytest.approx(float(found), abs=3e-3)
    assert kept_in_theory(2.0, 2.0, bias) == pytest.approx(relu_correlation(bias) / math.sqrt(2))


def test_a_study_of_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="nothing to measure"):
        Signal(depths=(), out=tmp_path).run(print)
    with pytest.raises(UsageError, match="the depth must be 6n"):
        Signal(depths=(17,), data="digits", out=tmp_path).run(print)
