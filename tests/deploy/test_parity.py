"""Parity and bench: every backend answers the same, what cannot be measured has a reason, memory is what it must be."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diracnets import bench, load, load_data, parity, quantize
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.cli import main
from diracnets.deploy import process
from diracnets.deploy.activations import live_activations
from diracnets.deploy.integer import rounded_chain
from diracnets.deploy.measure import Candidate, exactly, side_by_side
from diracnets.deploy.parity import _first
from diracnets.deploy.process import store
from diracnets.deploy.row import Row
from diracnets.deploy.subject import subject_of
from diracnets.errors import UsageError


@pytest.fixture
def quick_start(processes, monkeypatch):
    """What runs a backend is forked from a process that has torch."""
    monkeypatch.setattr(process, "multiprocessing", SimpleNamespace(get_context=lambda _: processes))


@pytest.mark.slow
def test_the_backends_that_are_installed_agree(quick_start, tmp_path, capsys):
    pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    out = tmp_path / "parity.json"
    arguments = ["--backends", "torch", "onnx", "openvino", "--images", "40", "--batches", "1", "3", "--rounds", "2"]
    files = ["--json", str(out), "--markdown", str(tmp_path / "parity.md")]
    assert main(["parity", "diracnet-28-0.5-digits", *arguments, *files]) == 0
    found = json.loads(out.read_text())
    rows = {(row["backend"], row["precision"]): row for row in found["rows"]}
    assert len(rows) == 9
    for backend in ("torch", "onnx", "openvino"):
        row = rows[backend, "float32"]
        assert row["reason"] == ""
        assert (row["agreement"], row["top1"]) == (1.0, found["exact_top1"])
        assert row["difference"] < 1e-4
        assert set(row["latency"]) == set(row["running_bytes"]) == {"1", "3"}
        assert row["latency"]["3"]["seconds"] > 0
        assert row["file_bytes"] > 4 * 90_000  # its weights
        assert row["start_seconds"] > 0
    assert rows["torch", "int8"]["agreement"] > 0.9
    for row in rows.values():
        assert bool(row["reason"]) == (row["difference"] is None)
    assert "| torch | float32 |" in (tmp_path / "parity.md").read_text()
    assert "not measured: " in capsys.readouterr().out or not any(row["reason"] for row in rows.values())


@pytest.mark.slow
def test_a_wrong_answer_and_a_failing_process_are_seen(quick_start):
    net = load("diracnet-28-0.5-digits")
    images = np.random.default_rng(0).standard_normal((5, 1, 8, 8), np.float32)
    exact = exactly(net, images, np.zeros(5, np.int64))
    wrong = nn.Sequential(*net, nn.Softmax(1)).eval()
    given = {"right": net, "wrong": wrong, "failing": nn.Linear(3, 3)}
    rows = side_by_side(
        [Candidate(name, "torch", "float32", model, net.card, exact) for name, model in given.items()],
        batches=(1, 2),
        rounds=2,
    )
    assert [bool(row.reason) for row in rows] == [False, False, True]
    assert "RuntimeError" in rows[2].reason
    assert rows[0].difference < 1e-4 < rows[1].difference
    assert rows[0].latency[2].ratio == 1.0


def test_what_cannot_be_measured_has_its_reason(monkeypatch):
    from diracnets.deploy import parity as module

    monkeypatch.setattr(module, "side_by_side", lambda candidates, **_: [_row(each) for each in candidates])
    monkeypatch.setattr(module, "has_bfloat16", lambda: False)
    monkeypatch.setattr(module, "_unusable", lambda backend: "needs something" if backend == "onnx" else "")
    chosen = {"backends": ["torch", "torch.compile", "onnx"], "precisions": ["float32", "bfloat16", "int8"]}
    table = bench(["plain-10-0.25"], **chosen)
    reasons = {(row.backend, row.precision): row.reason for row in table.rows}
    assert not reasons["torch", "float32"]
    assert not reasons["torch", "int8"]
    assert "bfloat16" in reasons["torch", "bfloat16"]
    assert "simulation" in reasons["torch.compile", "int8"]
    assert reasons["onnx", "float32"] == "needs something"
    branched = bench(["wrn-10-0.25"], backends=["torch"])
    assert "no int8 form" in branched.rows[1].reason


def test_int8_is_what_quantize_makes_or_the_file_as_it_is(monkeypatch):
    from diracnets.deploy import parity as module

    taken, said = [], []
    monkeypatch.setattr(module, "side_by_side", lambda candidates, **_: taken.extend(candidates) or [])
    digits = load_data("digits")
    torch.manual_seed(0)
    chain = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    attach_card(chain, ModelCard(digits.input_size, digits.mean, digits.std))
    images = torch.from_numpy(_first(digits.train, 256)[0])
    wanted = quantize(chain, images).chain
    options = {"backends": ["torch"], "images": 20}
    parity(chain, digits, precisions=["int8"], say=said.append, **options)
    assert torch.equal(taken[-1].model(images), wanted(images))
    assert not torch.equal(rounded_chain(chain, chain.card, images)(images), wanted(images))
    assert any("quantizing" in line for line in said)
    said.clear()
    table = parity(wanted, digits, precisions=["float32", "int8"], say=said.append, **options)
    assert taken[-1].model is wanted
    assert "holds an int8 chain" in taken[-2].reason
    assert table.facts["exact_in"] == "int8"
    assert not any("quantizing" in line for line in said)


def _row(candidate):
    return Row(candidate.network, candidate.backend, candidate.precision, candidate.reason)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backends": ["onyx"]}, "did you mean onnx"),
        ({"precisions": ["int4"]}, "there is no precision 'int4'"),
        ({"precisions": []}, "no precision"),
        ({"images": 0}, "at least 1"),
        ({"rounds": 1}, "at least 2"),
        ({"batches": (0,)}, "at least 1"),
    ],
)
def test_options_that_make_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        parity("diracnet-28-0.5-digits", load_data("digits"), **{"backends": ["torch"], "images": 2, **options})


def test_subjects():
    repvgg = subject_of("repvgg-10-0.25")
    assert repvgg.is_chain
    residual = subject_of("wrn-10-0.25")
    assert not residual.is_chain
    own = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Flatten())
    assert [type(layer) for layer in subject_of(own, "own", (2, 5, 5)).model] == [nn.Conv2d, nn.Flatten]
    assert subject_of(own, "own", (2, 5, 5)).multiply_adds == 2 * 4 * 9 * 9
    with pytest.raises(UsageError, match="give input_size"):
        subject_of(own)


def test_a_module_that_cannot_be_sent_says_so(tmp_path):
    class Local(nn.Module):
        pass

    with pytest.raises(Exception, match="cannot be sent to another process"):
        store(Local(), tmp_path / "model.pt")
    assert not (tmp_path / "model.pt").exists()


def test_a_shortcut_has_to_be_kept():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

        def forward(self, x):
            return (x + self.second(self.first(x).relu())).relu()

    def peak(model):
        return max(live.numbers for live in live_activations(model.eval(), (4, 6, 6)))

    size = 4 * 6 * 6
    residual = Residual()
    assert peak(residual) == 3 * size
    assert peak(nn.Sequential(residual.first, nn.ReLU(), residual.second, nn.ReLU())) == 2 * size
