"""No library call leaves the process in another state than it found it in."""

import ctypes
import os
import random
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import diracnets
from diracnets.artifacts.card import card_of
from diracnets.cli import main
from diracnets.runtime.device import repeatable, seeded
from diracnets.training.interruption import Interrupted

pytestmark = pytest.mark.usefixtures("bare_runs")


def state():
    """All that calls could change for others in the process; the umask is read without changing it."""
    status = Path("/proc/self/status")
    umask = [line for line in status.read_text().splitlines() if line.startswith("Umask")] if status.exists() else []
    return {
        "umask": umask,
        "threads": torch.get_num_threads(),
        "dtype": torch.get_default_dtype(),
        "matmul precision": torch.get_float32_matmul_precision(),
        "rounding": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "cudnn": (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "random": torch.get_rng_state().tolist(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "signals": {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
        "blocked": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        "warnings": (list(warnings.filters), warnings.showwarning),
        "streams": [getattr(stream, "errors", None) for stream in (sys.stdout, sys.stderr)],
        "recursion": sys.getrecursionlimit(),
        "pixels": Image.MAX_IMAGE_PIXELS,
    }


def changed(before):
    after = state()
    return [name for name in before if before[name] != after[name]]


@pytest.fixture(autouse=True)
def odd_process(monkeypatch):
    """A process whose settings are not the usual ones, so that resetting them to those shows too."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(2)
    torch.set_float32_matmul_precision("high")
    torch.use_deterministic_algorithms(True, warn_only=True)
    monkeypatch.setenv("TERM", "xterm")
    umask = os.umask(0o027)
    yield
    os.umask(umask)
    torch.use_deterministic_algorithms(False)
    torch.set_float32_matmul_precision(precision)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = diracnets.Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1, precision="float32")
    return diracnets.train(recipe, run=tmp_path_factory.mktemp("process") / "run", device="cpu", quiet=True).run


@pytest.mark.parametrize(
    "changes",
    [
        {"deterministic": True},
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow),
        pytest.param({"precision": "auto", "swa_fraction": 0.0, "recalibrate_bn": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_training(changes, run, tmp_path, monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", None)  # mallopt could not be put back
    recipe = diracnets.Recipe.load("demo").replaced(
        model="diracnet-10-0.25", num_train=64, epochs=1, **{"precision": "float32", **changes}
    )
    before = state()
    trained = diracnets.train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    assert changed(before) == []
    assert (trained.run / "last.pt").stat().st_mode & 0o777 == 0o640  # by the umask of the process

    def stop(row):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        diracnets.train(recipe, run=tmp_path / "stopped", device="cpu", quiet=True, on_epoch=stop)
    assert changed(before) == []


def test_images_that_workers_decode(tmp_path):
    for part in ("train", "val"):
        for kind in ("a", "b"):
            (tmp_path / part / kind).mkdir(parents=True)
            for number in range(2):
                Image.effect_noise((20, 20), 50).save(tmp_path / part / kind / f"{number}.png")
    before = state()
    data = diracnets.load_data("folder", data_dir=tmp_path, image_size=16, workers=2)
    assert len(list(data.train.batches(2, epoch=0))) == 2
    next(data.val.batches(1))
    assert changed(before) == []


def test_a_networks_file_read_evaluated_folded_and_written(run, tmp_path):
    before = state()
    net = diracnets.load(run / "best.pt")
    diracnets.evaluate(net, diracnets.load_data("digits").val)
    diracnets.save(diracnets.fold(net), tmp_path / "chain.safetensors", card=card_of(net))
    diracnets.verify(run / "model.safetensors")
    Image.effect_noise((20, 20), 50).save(tmp_path / "picture.png")
    diracnets.predict(run / "model.safetensors", [tmp_path / "picture.png"])
    assert changed(before) == []


@pytest.mark.parametrize(
    "words",
    [
        "eval {run}",
        "info {run}",
        "fold {run} --out {out}",
        "models *-28*",
        "help train",
        "eval nothing.pt",
        "nonsense",
    ],
)
def test_commands(words, run, tmp_path, capsys):
    before = state()
    main(words.format(run=run, out=tmp_path / "chain.safetensors").split())
    assert [name for name in changed(before) if name != "python"] == []  # from which the parser of options draws


def test_what_is_seeded_and_deterministic_is_put_back_after_an_error():
    before = state()
    for context in (seeded(3), repeatable(3, deterministic=True), repeatable(3, deterministic=False)):
        with pytest.raises(ZeroDivisionError), context:
            _ = torch.rand(1).item() / 0
        assert changed(before) == []
