import errno
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.deploy import backend, export
from diracnets.deploy.backend import Backend, described_beside, description
from diracnets.errors import ExportError, FileError, MissingExtraError, UsageError
from diracnets.models.build import build_model

CARD = ModelCard((3, 16, 12), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=("a", "b", "c", "d"))


def chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3), nn.ReLU()]
    made = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)).eval()
    attach_card(made, CARD)
    return made


def write(model, card, path, options):
    path.write_text("weights")
    path.with_suffix(".bin").write_bytes(b"1234")
    backend.beside(path).write_text(description(card, options, "float32"))


FAKE = Backend("fake", "for tests", ".fake", {"float32": 1e-4}, write, lambda path, card: None, described_beside)


@pytest.fixture
def fake(monkeypatch, tmp_path):
    """A format whose file computes what the chain does; keywords change it."""

    def become(wrong=0.0, **changes):
        def load(path, card):
            return lambda images: (chain()(torch.from_numpy(images)) + wrong).detach().numpy()

        made = replace(FAKE, **{"load": load, **changes})
        monkeypatch.setattr(export, "usable", lambda name: made)

    monkeypatch.chdir(tmp_path)
    become()
    return become


def left():
    return sorted(path.name for path in Path().iterdir())


def test_all_files_of_a_format_are_written_and_the_card_travels_along(fake):
    made = export.export(chain(), "fake", "net.fake")
    assert left() == ["net.bin", "net.fake", "net.fake.json"]
    assert {path.name: size for path, size in made.files.items()}["net.bin"] == 4
    assert made.path == Path("net.fake")
    assert (made.images, made.input) == (7, "[batch, 3, height, width] float32, normalized")
    assert made.difference < 1e-5 < made.scale
    assert backend.card_in(FAKE, Path("net.fake")) == CARD


@pytest.mark.parametrize("wrong", [0.01, float("nan")])
def test_a_file_that_computes_something_else_is_not_kept(fake, wrong):
    fake(wrong)
    with pytest.raises(ExportError, match=r"computes something else.*accepted of fake"):
        export.export(chain(), "fake", "net.fake")
    assert left() == []


def test_what_a_converter_raises_becomes_a_sentence(fake):
    def fails(*_):
        raise RuntimeError("no such operator. And more")

    fake(write=fails)
    with pytest.raises(ExportError, match="this Sequential cannot be exported to fake: RuntimeError: no such operator"):
        export.export(chain(), "fake", "net.fake")
    assert left() == []


def test_a_full_disk_leaves_nothing(fake):
    def full(model, card, path, options):
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    fake(write=full)
    with pytest.raises(FileError, match=r"cannot write net\.fake: No space left on device"):
        export.export(chain(), "fake", "net.fake")
    assert left() == []


@pytest.mark.parametrize("there", ["net.fake", "net.bin", "net.fake.json"])
def test_files_that_are_there_are_replaced_only_by_force(fake, there):
    Path(there).write_text("mine")
    with pytest.raises(UsageError, match=rf"{there} exists: .*--force"):
        export.export(chain(), "fake", "net.fake")
    assert (left(), Path(there).read_text()) == ([there], "mine")
    export.export(chain(), "fake", "net.fake", force=True)
    assert Path(there).read_text() != "mine"


def wrong(name):
    made = chain()
    if name == "training":
        made.train()
    elif name == "no card":
        del made.__dict__["card"]
    elif name == "maps":
        made = nn.Sequential(nn.Conv2d(3, 8, 3)).eval()
        attach_card(made, CARD)
    elif name == "channels":
        attach_card(made, ModelCard((1, 16, 12), (0.5,), (0.5,)))
    elif name == "3-d":
        attach_card(made, ModelCard((1, 16, 12, 8), (0.5,), (0.5,)))
    return made


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        ("", {"batch": 0}, "batch is 0"),
        ("", {"path": "net.onnx"}, r"net.onnx is no name for a file of fake: it must end in \.fake"),
        ("", {"path": "."}, r"\. is a folder: name a file in it, such as model.fake"),
        ("", {"path": None}, "path is missing"),
        ("training", {}, "training mode"),
        ("no card", {}, "does not say which images it takes"),
        ("maps", {}, "does not classify"),
        ("channels", {}, r"does not take images of \(1, 16, 12\)"),
        ("3-d", {}, r"takes no images of \(channels, height, width\)"),
    ],
)
def test_what_makes_no_sense_is_named(fake, model, options, message):
    with pytest.raises(UsageError, match=message):
        export.export(wrong(model), "fake", **{"path": "net.fake", **options})
    assert left() == []


def test_a_residual_network_is_refused_by_formats_for_chains(fake):
    fake(branches=False)
    net = build_model("resnet-20", num_classes=4).eval()
    with pytest.raises(
        UsageError, match=r"fake takes chains, and this .* has branches: onnx, openvino and pt2 take it"
    ):
        export.export(net, "fake", "net.fake", card=ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3))


def test_a_fixed_format_takes_one_image(fake):
    fake(dynamic=False)
    assert export.export(chain(), "fake", "net.fake").input == "[1, 3, 16, 12] float32, normalized"


def test_a_format_that_cannot_be_run_here_says_that_it_was_not_compared(fake):
    fake(wrong=1.0, unrunnable="only toasters run it")
    made = export.export(chain(), "fake", "net.fake")
    assert (made.images, left()) == (0, ["net.bin", "net.fake", "net.fake.json"])
    assert "compared    no: only toasters run it. Try the file there" in str(made)


def test_a_name_is_folded_and_gives_the_file_its_name(fake, monkeypatch):
    seen = []
    fake(write=lambda model, card, path, options: seen.append((model, card)) or path.write_text("x"))
    with pytest.raises(ExportError):  # the other network's outputs
        export.export("diracnet-28-0.5-digits", "fake")
    ((model, card),) = seen
    assert {type(layer) for layer in model} == {
        nn.Conv2d,
        nn.ReLU,
        nn.MaxPool2d,
        nn.AdaptiveAvgPool2d,
        nn.Flatten,
        nn.Linear,
    }
    assert card.input_size == (1, 8, 8)


def test_formats_are_named_and_what_they_lack_too(monkeypatch):
    assert "onnx" in backend.names()
    with pytest.raises(UsageError, match=r"no format 'onxx': did you mean onnx\?"):
        backend.usable("onxx")
    with pytest.raises(UsageError, match="no format 'zip': there are onnx,"):
        backend.usable("zip")
    absent = replace(FAKE, packages=("json", "no_such_package"), extra="export")
    assert absent.missing() == "no_such_package"
    monkeypatch.setattr(backend, "find", lambda name: absent)
    with pytest.raises(MissingExtraError, match=r'fake needs no_such_package, .*: pip install "diracnets\[export\]"'):
        backend.usable("fake")
    compiled = replace(FAKE, lacks=lambda: "a C++ compiler")
    assert compiled.missing() == "a C++ compiler"
    monkeypatch.setattr(backend, "find", lambda name: compiled)
    with pytest.raises(MissingExtraError, match="fake needs a C\\+\\+ compiler"):
        backend.usable("fake")


def test_probe_pixels_are_noise_and_blocks():
    noise, blocks = export.probe_pixels(2, (3, 16, 12)).astype(np.int64)
    assert not np.any(np.diff(blocks.reshape(3, 4, 4, 4, 3), axis=2))
    assert np.mean(np.diff(noise) != 0) > 0.9
