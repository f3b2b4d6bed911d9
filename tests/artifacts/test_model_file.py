"""A model file gives back exactly what was saved, and never anything else."""

import functools
import json
import random
import types
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode

from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.model_file import read, save, verify
from diracnets.artifacts.model_format import KEY, hash_of
from diracnets.errors import FileError, UsageError
from diracnets.nn.dirac import DiracConv2d

CARD = ModelCard(
    (3, 8, 8), (0.5, 0.4, 0.3), (0.2, 0.3, 0.1), ("cat", "dög"), {"epochs": 3, "data": {"name": "x"}}, {"largest": 1e-7}
)


def warmed(chain, size=(3, 8, 8)):
    """In evaluation mode, with random weights and statistics everywhere."""
    chain.train()
    for _ in range(3):
        chain(torch.randn(4, *size))
    return chain.eval()


def flat_2d():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"),
        nn.BatchNorm2d(4, eps=1e-3, momentum=None),
        nn.LeakyReLU(0.2),
        nn.MaxPool2d(2, ceil_mode=True),
        nn.Conv2d(4, 6, (3, 2), stride=(1, 2), padding=1, groups=2, bias=False),
        nn.PReLU(6, init=0.1),
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1),
        nn.Hardtanh(-1, 2),
        nn.AvgPool2d(2, count_include_pad=False),
        nn.Dropout(0.3),
        nn.AdaptiveAvgPool2d((1, 1)),
        nn.Flatten(),
        nn.Linear(4, 2),
    )


def flat_1d():
    return nn.Sequential(
        nn.Conv1d(3, 4, 3, dilation=2), nn.ReLU(), nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(4, 2)
    )


def flat_3d():
    return nn.Sequential(
        nn.Conv3d(3, 2, 3, padding=1), nn.GELU("tanh"), nn.MaxPool3d(2), nn.Flatten(), nn.Linear(16, 2)
    )


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("file") / "model.safetensors"
    save(warmed(flat_2d()), path, card=CARD)
    return path


def forge(source, target, edit, tensors=None, rehash=True):
    """A file as an attacker would write it, with a hash that fits."""
    with safe_open(source, "pt") as file:
        content = json.loads(file.metadata()[KEY])
    tensors = load_file(source) if tensors is None else tensors
    content = edit(content) or content
    if rehash:
        content["sha256"] = hash_of(content, tensors)
    save_file(tensors, target, metadata={KEY: json.dumps(content)})
    return target


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("make", "size"), [(flat_2d, (3, 8, 8)), (flat_1d, (3, 16)), (flat_3d, (3, 4, 4, 4))], ids=["2d", "1d", "3d"]
)
def test_round_trip_is_bit_exact(tmp_path, make, size, dtype):
    chain = warmed(make(), size).to(dtype)
    card = ModelCard(size, CARD.mean, CARD.std, CARD.classes)
    save(chain, tmp_path / "model.safetensors", card=card)
    loaded = read(tmp_path / "model.safetensors")
    assert loaded.card == card
    assert type(loaded) is nn.Sequential
    assert repr(loaded) == repr(chain)
    assert not any(module.training for module in loaded.modules())
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    state = loaded.state_dict()
    assert state.keys() == chain.state_dict().keys()
    for name, tensor in chain.state_dict().items():
        assert state[name].dtype == tensor.dtype
        assert torch.equal(state[name], tensor), name
    x = torch.randn(2, *size, dtype=dtype)
    assert torch.equal(loaded(x), chain(x))
    assert verify(tmp_path / "model.safetensors").probe_difference == 0


def test_names_facts_and_memory_format_survive(tmp_path):
    chain = nn.Sequential()
    chain.add_module("stem_conv", nn.Conv2d(3, 8, 3))
    chain.add_module("relu", nn.ReLU(inplace=True))
    chain = chain.to(memory_format=torch.channels_last)
    card = ModelCard((3, 8, 8), CARD.mean, CARD.std, provenance=CARD.provenance, fold=CARD.fold)
    save(chain, tmp_path / "m.safetensors", card=card)
    assert chain[0].weight.is_contiguous(memory_format=torch.channels_last)
    loaded = read(tmp_path / "m.safetensors")
    assert list(loaded.state_dict()) == ["stem_conv.weight", "stem_conv.bias"]
    assert loaded.relu.inplace
    assert loaded.card == card


def test_layer_used_twice_is_saved_as_two_that_are_equal(tmp_path):
    conv = nn.Conv2d(3, 3, 3, padding=1)
    chain = nn.Sequential(conv, nn.ReLU(), conv)
    save(chain, tmp_path / "m.safetensors", card=ModelCard((3, 8, 8), CARD.mean, CARD.std))
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(read(tmp_path / "m.safetensors")(x), chain(x))


def test_loaded_chain_does_not_change_with_its_file(model_file, tmp_path):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(model_file.read_bytes())
    loaded = read(copy)
    before = loaded[0].weight.clone()
    copy.write_bytes(bytes(copy.stat().st_size))
    assert torch.equal(loaded[0].weight, before)


def test_verify_reports_the_file(model_file):
    found = verify(model_file)
    assert found.size == model_file.stat().st_size
    assert found.layers == 14
    assert found.parameters == sum(p.numel() for p in flat_2d().parameters())
    assert len(found.sha256) == 64


def test_flipped_bit_is_an_error_or_changes_nothing(model_file, tmp_path):
    data = model_file.read_bytes()
    original = read(model_file)
    header = int.from_bytes(data[:8], "little") + 8
    draw = random.Random(0)
    positions = [*range(16), *draw.sample(range(header), 150), *draw.sample(range(header, len(data)), 50)]
    errors = []
    for position in positions:
        altered = bytearray(data)
        altered[position] ^= 1 << draw.randrange(8)
        path = tmp_path / "altered.safetensors"
        path.write_bytes(altered)
        try:
            loaded = read(path)
        except FileError as error:
            errors.append(str(error))
        else:
            assert loaded.card == original.card
            assert repr(loaded) == repr(original)
            state = original.state_dict()
            assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())
    assert len(errors) > 0.9 * len(positions)
    assert all(message.count("\n") == 0 and "altered.safetensors" in message for message in errors)


def test_truncated_or_lengthened_file_is_an_error(model_file, tmp_path):
    data = model_file.read_bytes()
    path = tmp_path / "cut.safetensors"
    for length in [*range(0, len(data), 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FileError, match=r"cut\.safetensors"):
            read(path)
    path.write_bytes(data + b"\0")
    with pytest.raises(FileError, match=r"cut\.safetensors"):
        read(path)


def set_layer(index, **values):
    return lambda content: content["layers"][index].update(values)


def set_top(**values):
    return lambda content: content.update(values)


def set_card(**values):
    return lambda content: content["card"].update(values)


def nested(depth):
    value = {}
    for _ in range(depth):
        value = {"x": value}
    return value


HOSTILE = {
    "no such type": (set_layer(0, type="system"), "type 'system'"),
    "a type of torch that is not on the list": (set_layer(0, type="Module"), "type 'Module'"),
    "type is no text": (set_layer(0, type=["Conv2d"]), "without name or type"),
    "a name with a dot": (set_layer(0, name="a.b"), "called 'a.b'"),
    "a name that is a method": (set_layer(0, name="forward"), "called 'forward'"),
    "a name twice": (set_layer(1, name="0"), "called '0'"),
    "huge channels": (set_layer(0, out_channels=10**12), "whole number"),
    "large channels within bounds": (set_layer(0, out_channels=2**20), "does not fit|is missing|where its layer"),
    "huge kernel": (set_layer(0, kernel_size=[10**6, 3]), "whole number"),
    "huge output": (set_layer(11, output_size=[10**9, 1]), "whole number"),
    "large output": (set_layer(11, output_size=[4096, 4096]), "does not fit"),
    "huge activation": (set_layer(6, scale_factor=4096.0), "more than|does not fit"),
    "float channels": (set_layer(0, in_channels=3.0), "whole number"),
    "bool channels": (set_layer(0, groups=True), "whole number"),
    "NaN slope": (set_layer(2, negative_slope=float("nan")), "not a number"),
    "text for a flag": (set_layer(0, bias="yes"), "not one of"),
    "odd padding mode": (set_layer(0, padding_mode="evil"), "not one of"),
    "groups that do not divide": (set_layer(0, groups=2), "impossible arguments"),
    "unknown argument": (set_layer(0, device="cuda"), "with the arguments"),
    "missing argument": (lambda content: content["layers"][0].pop("stride") and None, "with the arguments"),
    "layers is no list": (set_top(layers={"0": 1}), "incomplete"),
    "a layer is no object": (set_top(layers=[1]), "without name or type"),
    "no layers": (set_top(layers=[]), "incomplete"),
    "too few layers": (lambda content: content["layers"].pop() and None, "output of|belongs to no layer"),
    "format is text": (set_top(format="1"), "no format number"),
    "format from the future": (set_top(format=4), "newer than this diracnets reads.*upgrade"),
    "format 0": (set_top(format=0), "incomplete"),
    "not an object": (lambda content: [content], "no format number"),
    "input size 0": (set_card(input_size=[3, 0, 8]), "input_size"),
    "huge input size": (set_card(input_size=[3, 10**9, 10**9]), "input_size"),
    "input too small": (set_card(input_size=[3, 1, 1]), "does not fit"),
    "text for mean": (set_card(mean="abc"), "mean"),
    "std 0": (set_card(std=[0.0, 1.0, 1.0]), "std"),
    "NaN mean": (set_card(mean=[float("nan"), 1.0, 1.0]), "mean"),
    "wrong number of classes": (set_card(classes=["cat"]), "1 class names"),
    "class that rewrites the terminal": (set_card(classes=["cat", "\x1b[2Jdog"]), "control characters"),
    "provenance that rewrites the terminal": (set_card(provenance={"a": ["\x1b]0;x\x07"]}), "control characters"),
    "deep provenance": (set_card(provenance=nested(50)), "nested"),
    "provenance is no object": (set_card(provenance=[1]), "provenance"),
    "architecture without a name": (set_card(architecture={"width": 2}), "has no name"),
    "architecture is text": (set_card(architecture="vgg-16"), "architecture is 'vgg-16'"),
    "data without a name": (set_card(data={"train": 3}), "data is"),
    "data of minus one image": (set_card(data={"name": "x", "train": -1}), "data.train is -1"),
    "data that rewrites the terminal": (set_card(data={"name": "\x1b[2J"}), "control characters"),
    "recipe is a list": (set_card(recipe=[1]), "recipe is"),
    "no card": (set_top(card=None), "card is None"),
    "probe is text": (set_top(probe="x"), "probe"),
    "probe is empty": (set_top(probe=[]), "probe"),
}


class Work(TorchDispatchMode):
    """Counts what torch computes: its operations, and the numbers that they made outside of the meta device."""

    operations = numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        self.operations += 1
        made = result if isinstance(result, tuple | list) else [result]
        self.numbers += sum(
            tensor.numel() for tensor in made if isinstance(tensor, torch.Tensor) and not tensor.is_meta
        )
        return result


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_description_is_an_error_without_much_work(model_file, tmp_path, case):
    edit, message = HOSTILE[case]

    def edited(content):
        changed = edit(content)
        return changed if isinstance(changed, list) else None

    def unhashable(content):
        return isinstance(edited(json.loads(json.dumps(content))), list)

    with safe_open(model_file, "pt") as file:
        content = json.loads(file.metadata()[KEY])
    path = forge(model_file, tmp_path / "hostile.safetensors", edited, rehash=not unhashable(content))
    with Work() as work, pytest.raises(FileError, match=message) as caught:
        read(path)
    assert work.operations < 1000
    assert work.numbers < 1e5
    assert "hostile.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_a_good_file_is_more_work(model_file):
    with Work() as work:
        read(model_file)
    assert work.numbers > 1000


def test_very_deep_json_is_an_error(model_file, tmp_path):
    path = tmp_path / "deep.safetensors"
    save_file(load_file(model_file), path, metadata={KEY: "[" * 200_000 + "]" * 200_000})
    with pytest.raises(FileError, match="nested too deep"):
        read(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("0.bias"), "0.bias is missing"),
        (lambda t: t.update(extra=torch.zeros(2)), "'extra' belongs to no layer"),
        (lambda t: t.update({"0.bias": torch.zeros(5)}), r"0.bias is \[5\] where its layer has \[4\]"),
        (lambda t: t.update({"0.bias": torch.zeros(4, dtype=torch.int64)}), "integers where there should be weights"),
        (lambda t: t.update({"0.bias": torch.zeros(4, dtype=torch.float16)}), "different precisions"),
        (lambda t: t.update({"0.bias": torch.zeros(4, dtype=torch.uint8)}), "type U8"),
    ],
)
def test_tensors_must_be_the_layers(model_file, tmp_path, change, message):
    tensors = load_file(model_file)
    change(tensors)
    with pytest.raises(FileError, match=message):
        read(forge(model_file, tmp_path / "m.safetensors", lambda content: None, tensors))


def test_wrong_hash_is_named(model_file, tmp_path):
    with pytest.raises(FileError, match="altered or damaged"):
        read(forge(model_file, tmp_path / "m.safetensors", set_card(classes=["dog", "cat"]), rehash=False))


def test_verify_computes_the_probe_again(model_file, tmp_path):
    def scaled(content):
        content["probe"] = [1.01 * value for value in content["probe"]]

    path = forge(model_file, tmp_path / "m.safetensors", scaled)
    read(path)
    with pytest.raises(FileError, match="computes something else"):
        verify(path)


@pytest.mark.parametrize(
    ("probe", "message"),
    [([0.0], "1 numbers where"), ([0.0, 0.0], "something else"), ([float("nan"), 0.0], "something else")],
)
def test_verify_refuses_probes_that_show_nothing(model_file, tmp_path, probe, message):
    with pytest.raises(FileError, match=message):
        verify(forge(model_file, tmp_path / "m.safetensors", set_top(probe=probe)))


def test_other_safetensors_is_named_as_such(tmp_path):
    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(FileError, match="no diracnets model file"):
        read(tmp_path / "x.safetensors")


class Branched(nn.Module):
    def forward(self, x):
        return x + x


class Conv(nn.Conv2d):
    pass


class Twice(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        (Branched(), "not a flat chain"),
        (Twice(nn.Conv2d(3, 2, 3)), "not a flat chain"),
        (nn.Sequential(nn.Sequential(nn.Conv2d(3, 2, 3))), "0 is a Sequential"),
        (nn.Sequential(DiracConv2d(3, 2, 3)), "0 is a DiracConv2d.*fold"),
        (nn.Sequential(Conv(3, 2, 3)), "0 is a Conv"),
        (nn.Sequential(nn.MaxPool2d(2, return_indices=True)), "return_indices"),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), "track_running_stats"),
        (nn.Sequential(nn.AvgPool2d(2, divisor_override=3)), "divisor_override"),
        (nn.Sequential(nn.Conv2d(4, 2, 3)), "layer 0 does not fit"),
        (nn.Sequential(), "without layers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), "2 class names"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(tmp_path, chain, message):
    with pytest.raises(UsageError, match=message):
        save(chain, tmp_path / "m.safetensors", card=CARD)
    assert not list(tmp_path.iterdir())


def doubled(*args):
    return 2 * args[-1]


def replaced(layer, name, method):
    setattr(layer, name, types.MethodType(method, layer))


def pruned(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prune.l1_unstructured(layer, "weight", amount=0.5)


CHANGES = {
    "a forward hook": (lambda chain: chain[1].register_forward_hook(doubled), "layer 1 .ReLU. has a forward hook, dou"),
    "one on the chain": (lambda chain: chain.register_forward_hook(doubled), "the chain has a forward hook"),
    "a pre-hook": (
        lambda chain: chain[3].register_forward_pre_hook(doubled),
        "layer 3 .Linear. has a forward pre-hook",
    ),
    "an object as hook": (lambda chain: chain[0].register_forward_hook(functools.partial(doubled)), "hook, partial"),
    "pruning": (lambda chain: pruned(chain[0]), "forward pre-hook, L1Unstructured"),
    "weight norm": (lambda chain: weight_norm(chain[0]), "0 is a Parametrized|pre-hook"),
    "spectral norm": (lambda chain: spectral_norm(chain[3]), "3 is a ParametrizedLinear"),
    "a state_dict hook": (
        lambda chain: chain[0].register_state_dict_post_hook(lambda *_: None),
        "0 .Conv2d. has a state_dict hook",
    ),
    "a forward of its own": (
        lambda chain: replaced(chain[1], "forward", lambda self, x: x),
        "ReLU. has a forward of its",
    ),
    "a chain's own forward": (
        lambda chain: replaced(chain, "forward", lambda self, x: x),
        "the chain has a forward of",
    ),
    "an inner method": (
        lambda chain: replaced(chain[0], "_conv_forward", lambda self, x, w, b: x[:, :1]),
        "has a _conv_forward of its own",
    ),
    "another buffer": (lambda chain: chain[0].register_buffer("mask", torch.ones(2)), "'0.mask' belongs to no layer"),
    "a part in a layer": (lambda chain: chain[1].add_module("more", nn.Linear(2, 2)), "belongs to no layer"),
    "no weights": (lambda chain: chain.to("meta"), "meta device"),
    "a state of its own": (lambda chain: chain[0].__dict__.update(padding_mode="odd"), "padding_mode"),
    "what contradicts": (
        lambda chain: chain[0].__dict__.update(_reversed_padding_repeated_twice=[0, 2, 1, 1]),
        "computes something else",
    ),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_what_would_vanish_in_a_file_is_refused_by_name(tmp_path, kind):
    change, message = CHANGES[kind]
    chain = nn.Sequential(
        nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
    )
    change(chain)
    with pytest.raises(UsageError, match=message):
        save(chain, tmp_path / "m.safetensors", card=CARD)
    assert not list(tmp_path.iterdir())


def test_hooks_of_the_backward_pass_and_training_mode_change_nothing(tmp_path):
    chain = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(72, 2))
    chain[0].register_full_backward_hook(lambda *_: None)
    chain[4].weight.register_hook(lambda gradient: gradient)
    mean = chain[1].running_mean.clone()
    save(chain.train(), tmp_path / "m.safetensors", card=CARD)
    assert chain.training
    assert torch.equal(chain[1].running_mean, mean)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(read(tmp_path / "m.safetensors")(x), chain.eval()(x))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    chain = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    with torch.no_grad():
        chain[1].weight[0, 0] = value
    with pytest.raises(UsageError, match=r"1\.weight holds numbers that are not finite"):
        save(chain, tmp_path / "m.safetensors", card=CARD)


def test_unwritable_place_is_a_file_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileError, match="cannot write"):
        save(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), tmp_path / "file" / "m.safetensors", card=CARD)


def test_full_disk_is_a_file_error_and_leaves_nothing(tmp_path):
    resource = pytest.importorskip("resource")
    chain = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64 * 64, 10))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(FileError, match=r"cannot write .*m\.safetensors"):
            save(chain, tmp_path / "m.safetensors", card=ModelCard((3, 64, 64), CARD.mean, CARD.std))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_card_is_made_of_a_few_arguments_or_is_the_networks_own(tmp_path):
    chain = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    parts = {"input_size": (1, 8, 8), "mean": [0.5], "std": [0.25]}
    save(chain, tmp_path / "a.safetensors", **parts, classes=["cat", "dog"])
    made = read(tmp_path / "a.safetensors")
    assert made.card == ModelCard((1, 8, 8), (0.5,), (0.25,), ("cat", "dog"))
    save(made, tmp_path / "b.safetensors")
    assert read(tmp_path / "b.safetensors").card == made.card
    with pytest.raises(UsageError, match="needs input_size, mean and std: give mean and std too"):
        save(chain, tmp_path / "c.safetensors", input_size=(1, 8, 8))
    arrays = {"input_size": torch.Size((1, 8, 8)), "mean": torch.tensor([0.5]), "std": np.array([0.25])}
    save(chain, tmp_path / "d.safetensors", **arrays, classes=["cat", "dog"])
    assert read(tmp_path / "d.safetensors").card == made.card
    for wrong in ({"classes": "cd"}, {"input_size": 8}, {"mean": 0.5}, {"std": "mean"}):
        with pytest.raises(UsageError, match=f"{next(iter(wrong))} is .*; give|give a list of names"):
            save(chain, tmp_path / "c.safetensors", **{**parts, **wrong})
    with pytest.raises(UsageError, match="not both"):
        save(chain, tmp_path / "c.safetensors", card=made.card, **parts)
    with pytest.raises(UsageError, match="save takes one card"):
        save(chain, tmp_path / "c.safetensors")
    assert not (tmp_path / "c.safetensors").exists()
