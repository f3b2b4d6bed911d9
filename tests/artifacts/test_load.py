"""`load` tells files by their content, and runs nothing that is in them."""

import os
import pickle
import zipfile
from dataclasses import replace

import pytest
import torch
from torch import nn

import diracnets
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import FORMAT
from diracnets.artifacts.load import load
from diracnets.artifacts.model_file import save
from diracnets.errors import FileError, UsageError

CARD = ModelCard((1, 8, 8), (0.3,), (0.4,), ("a", "b", "c"), {"epochs": 1})


def checkpoint(**changes):
    torch.manual_seed(0)
    net = diracnets.create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8)
    net(torch.randn(8, 1, 8, 8))
    data = {
        "format": FORMAT,
        "card": {**CARD.to_data(), "architecture": net.config},
        "state": net.state_dict(),
        "epoch": 4,
    }
    if "architecture" in changes:
        data["card"]["architecture"] = changes.pop("architecture")
    return net.eval(), data | changes


def test_checkpoint_of_a_training(tmp_path):
    net, data = checkpoint()
    torch.save(data, tmp_path / "last.safetensors")  # content decides, not the suffix
    loaded = load(tmp_path / "last.safetensors")
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(loaded(x), net(x))
    assert loaded.config == net.config
    assert loaded.card == replace(CARD, architecture=net.config)
    assert not loaded.training
    assert all(parameter.requires_grad for parameter in loaded.parameters())


def test_model_file_under_another_suffix(tmp_path):
    chain = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    save(chain, tmp_path / "model.pt", card=CARD)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(load(str(tmp_path / "model.pt"))(x), chain(x))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "diracnets-checkpoint-9"}, "checkpoint-9.*upgrade"),
        ({"format": "other"}, "no network that diracnets knows"),
        ({"architecture": 3}, "architecture is 3"),
        ({"architecture": None}, "does not say which network"),
        ({"architecture": {"name": "diracnet-10-0.25", "num_classes": 3, "in_channels": 3}}, "stem.conv.weight"),
        ({"architecture": {"name": "diracnet-99999994-1"}}, "too few for a diracnet-99999994-1"),
        ({"architecture": {"name": "diracnet-10-999999999"}}, "whole network"),
        ({"architecture": {"name": "resnet-18"}}, "resnet-18"),
        ({"architecture": {"nam": "diracnet-10-1"}}, "whole network"),
        ({"architecture": {"name": "diracnet-10-1", "device": "cuda"}}, "'device', which build_model does not take"),
        ({"architecture": {"name": "diracnet-28-0.5", "pretrained": True}}, "'pretrained', which build_model"),
        ({"state": {}}, "too few|missing"),
        ({"card": {"input_size": [1, 8, 8]}}, "mean"),
        ({"card": 3}, "card is 3"),
        ({"state": 3}, "weights are not described"),
        ({"resume": 3}, "weights are not described"),
        ({"architecture": {"name": 3}}, "whole network"),
        ({"architecture": {"name": "diracnet-18", "width": 1e300}}, "whole network"),
        ({"architecture": {"name": "diracnet-10-1", "in_channels": 10**30}}, "whole network"),
        ({"architecture": {"name": "diracnet-10-1", "image_size": "large"}}, "whole network"),
        ({"architecture": {"name": "diracnet-10-1", "num_classes": "3"}}, "whole network"),
    ],
)
def test_checkpoint_that_is_no_network(tmp_path, changes, message):
    torch.save(checkpoint(**changes)[1], tmp_path / "last.pt")
    with pytest.raises(FileError, match=message) as caught:
        load(tmp_path / "last.pt")
    assert str(tmp_path / "last.pt") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrap", [lambda net: net, nn.DataParallel, lambda net: nn.ModuleDict({"net": net})])
@pytest.mark.parametrize("name", ["diracnet-10-0.25", "resnet-20"])
def test_a_state_dict_says_which_network_it_is_of(name, wrap, tmp_path):
    net = diracnets.create_model(name, num_classes=3, init=diracnets.Init("deep", bias=0.5)).eval()
    torch.save(wrap(net).state_dict(), tmp_path / "state.pt")
    loaded = load(tmp_path / "state.pt")
    x = torch.randn(2, 3, 32, 32)
    assert loaded.config == net.config
    assert torch.equal(loaded(x), net(x))
    net.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True), strict=wrap(net) is net)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: dict(state), "does not say of which network"),
        (lambda state: state if state.popitem() else None, "fc.bias is missing"),
        (lambda state: state._metadata[""]["config"].update(name="diracnet-16-0.25") or state, "is missing"),
        (lambda state: state._metadata[""]["config"].update(name="diracnet-99999994-1") or state, "too few"),
        (lambda state: state._metadata[""]["config"].update(device="cuda") or state, "'device'"),
        (lambda state: state._metadata[""].update(config=3) or state, "does not say of which network"),
    ],
)
def test_a_state_dict_that_is_no_network(change, message, tmp_path):
    torch.save(change(diracnets.create_model("diracnet-10-0.25").state_dict()), tmp_path / "state.pt")
    with pytest.raises(FileError, match=message):
        load(tmp_path / "state.pt")


@pytest.mark.parametrize("folded", [True, False, None])
def test_a_file_is_folded_and_unfolded_where_that_is_asked_for(folded, tmp_path):
    net, data = checkpoint()
    torch.save(data, tmp_path / "last.pt")
    save(diracnets.fold(net), tmp_path / "m.safetensors", card=replace(CARD, architecture=net.config))
    x = torch.randn(2, 1, 8, 8)
    for name, stored in (("last.pt", False), ("m.safetensors", True)):
        loaded = load(tmp_path / name, folded=folded)
        assert isinstance(loaded, nn.Sequential) == (stored if folded is None else folded)
        assert loaded.card.architecture == net.config
        torch.testing.assert_close(loaded(x), net(x), rtol=1e-4, atol=1e-4)


class Evil:
    def __init__(self, sentinel):
        self.sentinel = sentinel

    def __reduce__(self):
        return os.mkdir, (str(self.sentinel),)


def as_archive(content, path):
    torch.save(content, path)


def as_legacy(content, path):
    torch.save(content, path, _use_new_zipfile_serialization=False)


def as_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.mark.parametrize("write", [as_archive, as_legacy, as_pickle])
def test_pickled_code_is_never_run(tmp_path, write):
    sentinel = tmp_path / "executed"
    write({"params": {"conv": Evil(sentinel)}}, tmp_path / "model.pt")
    with pytest.raises(FileError, match=r"model\.pt") as caught:
        load(tmp_path / "model.pt")
    assert not sentinel.exists()
    assert "could run any code" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_pickled_module_is_refused_by_name(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(FileError, match="Linear"):
        load(tmp_path / "module.pt")


def test_truncated_checkpoint(tmp_path):
    torch.save(checkpoint()[1], tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    for length in range(1, len(data), len(data) // 25):
        (tmp_path / "cut.pt").write_bytes(data[:length])
        with pytest.raises(FileError, match=r"cut\.pt") as caught:
            load(tmp_path / "cut.pt")
        assert "\n" not in str(caught.value)


def an_archive(path):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("x.txt", "hello")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no file"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"x"), "neither"),
        (lambda path: path.write_text("hello world, this is no network"), "neither"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(100)), "neither"),
        (an_archive, "damaged, or not a file that torch.save wrote"),
        (lambda path: torch.save(torch.zeros(3), path), "no network that diracnets knows"),
        (lambda path: torch.save({"a": torch.zeros(3)}, path), "does not say of which network: .*load_state_dict"),
    ],
)
def test_what_is_no_network(tmp_path, make, message):
    make(tmp_path / "model")
    with pytest.raises(FileError, match=message) as caught:
        load(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device", ["cuda:99", "nonsense"])
def test_device_that_is_not_there(tmp_path, device):
    save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), tmp_path / "m.safetensors", card=CARD)
    with pytest.raises(UsageError, match=device):
        load(tmp_path / "m.safetensors", device)
