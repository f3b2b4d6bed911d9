"""Files that say more than they hold, or ask for more than they are worth, are refused with a sentence."""

import json

import pytest
import torch
from torch import nn

from diracnets.artifacts import layers, model_file
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, check_stored
from diracnets.errors import FileError, UsageError
from diracnets.models.build import build_model
from diracnets.models.init import Init
from diracnets.runtime.precision import Precision
from diracnets.training.checkpoints import Position
from diracnets.training.recipe import Recipe
from diracnets.training.safeguards import Safeguards
from diracnets.training.state import State, precision_of


@pytest.mark.parametrize(
    ("chain", "size", "said"),
    [
        (nn.Sequential(nn.Identity()), (65536, 65536, 1), "one image of .* has more than"),
        (nn.Sequential(nn.AvgPool2d(4096, 1)), (1, 8192, 8192), "more than .* multiplications"),
        (
            nn.Sequential(*[nn.Conv2d(64, 64, 3, padding=1, device="meta") for _ in range(99)]),
            (64, 1024, 1024),
            "multiplic",
        ),
        (nn.Sequential(nn.Upsample(scale_factor=4096.0)), (1, 4096, 4096), "more than .* numbers"),
    ],
)
def test_work_without_end_is_refused(chain, size, said):
    with pytest.raises(ValueError, match=said):
        layers.output_shapes(layers.from_data(layers.to_data(chain)), size)


def test_layers_without_end_are_refused():
    data = [{"name": str(number), "type": "Identity"} for number in range(20_000)]
    with pytest.raises(ValueError, match=r"20,000 layers, more than 10,000"):
        layers.from_data(data)


def test_long_words_make_no_long_message(tmp_path):
    with pytest.raises(ValueError, match="with the arguments") as raised:
        layers.from_data([{"name": "0", "type": "Flatten", "1" * 5000: 1}])
    assert len(str(raised.value)) < 300
    with pytest.raises(UsageError, match="input_size") as raised:
        ModelCard(("1" * 5000, 8, 8), (0.5,), (0.5,))
    assert len(str(raised.value)) < 300
    header = json.dumps({"a": {"dtype": "1" * 5000, "shape": [], "data_offsets": [0, 0]}}).encode()
    (tmp_path / "a.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(FileError, match="is damaged or no") as raised:
        model_file.verify(tmp_path / "a.safetensors")
    assert len(str(raised.value)) < 500


def test_a_card_in_which_one_list_stands_everywhere_is_refused():
    value = []
    for _ in range(12):
        value = [value] * 9
    with pytest.raises(UsageError, match="more than 100,000 values"):
        ModelCard((1, 8, 8), (0.5,), (0.5,), fold={"a": value})


def test_tensors_that_share_their_values_are_refused():
    values = torch.zeros(1000)
    check_stored({"a": values, "b": torch.zeros(3), "c": torch.zeros(0)})
    with pytest.raises(ValueError, match="share their values"):
        check_stored({"a": values, "b": values.view(10, 100)})
    with pytest.raises(ValueError, match="the tensor a is not stored in full"):
        check_stored({"a": torch.zeros(1).expand(10**12)})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("optimizer", {"state": {}, "param_groups": []}),
        ("epoch", None),
        ("random", [torch.zeros(3)]),
        ("loss_sum", "0"),
        ("best", "0"),
    ],
)
def test_a_state_that_cannot_be_is_refused(key, value):
    net = build_model("diracnet-10-0.25", in_channels=1, image_size=8)
    state = State(Recipe().optimization, net, Precision("float32", ""), 10)
    data = state.to_data()
    data[key] = value
    if value is None:
        del data[key]
    with pytest.raises(FileError, match="does not hold the whole state of a run"):
        state.restore(data)


@pytest.mark.parametrize("given", [None, [], ["float32"], ["float64", "x"], [["float32"], "x"], "fl"])
def test_a_precision_that_cannot_be_is_refused(given):
    with pytest.raises(FileError, match="precision"):
        precision_of({"precision": given})


@pytest.mark.parametrize(
    "change",
    [
        {"mean": [1 << 2000]},
        {"std": [1 << 2000]},
        {"fold": {"a": [1 << 2000]}},
        {"data": {"name": "a", "train": 1 << 2000}},
    ],
)
def test_numbers_that_no_float_holds_are_refused(change):
    data = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5], **change}
    with pytest.raises(UsageError):
        ModelCard.from_data(data)


@pytest.mark.parametrize("given", [{"filters": 1 << 2000}, {"bias": 1 << 2000}, {"alpha": float("nan")}])
def test_an_initialization_that_no_float_holds_is_refused(given):
    with pytest.raises(UsageError, match="init's"):
        Init(**given)


def test_safeguards_nested_without_end_are_refused():
    value = []
    for _ in range(5000):
        value = [value]
    with pytest.raises(UsageError, match="keep is"):
        Safeguards.of({"keep": value})


@pytest.mark.parametrize("epoch", [None, "1", float("inf"), 1 << 100, -1])
def test_a_checkpoint_of_an_impossible_epoch_is_refused(epoch):
    card = ModelCard((1, 8, 8), (0.5,), (0.5,))
    with pytest.raises((KeyError, ValueError)):
        Position.of(Checkpoint(card, {}, {"epoch": epoch, "batch": 0}))
