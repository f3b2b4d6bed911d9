"""Trained networks: what their cards say is so, they are found, fetched, checked and used by name."""

import dataclasses
import functools
import hashlib
import importlib.util
import json
import os
import re
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import diracnets
from diracnets.artifacts import authors, pretrained
from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.artifacts.load import load
from diracnets.artifacts.pretrained import choose_weights, find_weights, list_weights
from diracnets.cli import main
from diracnets.errors import FileError, UsageError
from diracnets.folding.structure import folded_structure
from diracnets.models.build import on_meta

ROOT = Path(__file__).parents[2]
DIGITS = "diracnet-28-0.5-digits"
DATA = Path(os.environ.get("DIRACNETS_DATA", ROOT / "data"))  # where CIFAR may be
SHIPPED = [name for name in list_weights() if find_weights(name).url is None]


@functools.cache
def digits():
    return diracnets.load_data("digits").val


@pytest.fixture
def weights(tmp_path, monkeypatch):
    """A folder of weights of its own: the digits' are in it, and more can be."""
    folder = tmp_path / "weights"
    folder.mkdir()
    for suffix in ("json", "safetensors"):
        (folder / f"{DIGITS}.{suffix}").write_bytes((pretrained.FOLDER / f"{DIGITS}.{suffix}").read_bytes())
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    return folder


class Server:
    """Serves `folder` on 127.0.0.1 and notes what it was asked for."""

    def __init__(self, folder):
        self.folder, self.asked = folder, []
        outer = self

        class Handler(SimpleHTTPRequestHandler):
            def __init__(self, *args):
                super().__init__(*args, directory=str(folder))

            def log_message(self, *_):
                outer.asked.append(self.path)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(tmp_path, monkeypatch):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "home"))
    (tmp_path / "served").mkdir()
    server = Server(tmp_path / "served")
    yield server
    server.http.shutdown()
    server.http.server_close()


def declare(folder, name, file, url, **changes):
    """Write the card of weights that are at `url`: those of the digits, but for `changes`."""
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    made = dataclasses.replace(find_weights(DIGITS), name=name, url=url, **({"sha256": sha256} | changes))
    (folder / f"{name}.json").write_text(json.dumps(made.to_data()))
    return sha256


@pytest.mark.parametrize("name", list_weights())
def test_the_facts_are_whole(name):
    weights = find_weights(name)
    assert weights.name == name
    net = on_meta(dict(weights.model))
    assert name.startswith(f"{net.config['name']}-")
    assert len(weights.card.classes) in (0, net.num_classes)
    assert weights.card.input_size == net.input_size
    assert 0 < weights.accuracy < 1
    assert weights.card.data.val > 0
    assert weights.license
    told = weights.card.provenance
    assert (told["accuracy"], told["license"]) == (weights.accuracy, weights.license)
    assert re.fullmatch("[0-9a-f]{64}" if weights.url is None else "[0-9a-f]{8,64}", weights.sha256)


@pytest.mark.parametrize("name", SHIPPED)
def test_what_ships_is_small_known_and_at_half_precision(name):
    weights = find_weights(name)
    assert (weights.size, weights.license) == (weights.file().stat().st_size, "MIT")
    assert weights.card.classes
    assert re.match("[0-9a-f]{40}", weights.card.provenance["commit"])
    assert diracnets.Recipe.from_table(dict(weights.card.recipe)).data.name == weights.card.data.name
    net = on_meta(dict(weights.model))
    assert weights.size < 2.5 * sum(parameter.numel() for parameter in net.parameters())
    held = {tensor.dtype for tensor in load_file(weights.file()).values() if tensor.ndim > 1}
    assert held == {torch.int8 if weights.int8 else torch.float16}


def test_the_digits_are_told_as_well_as_the_facts_say():
    net = load(DIGITS, folded=False)
    evaluation = diracnets.evaluate(net, digits())
    assert evaluation.top1 == pytest.approx(find_weights(DIGITS).accuracy, abs=1.5 / 359)
    assert evaluation.top1 > 0.97
    folded = diracnets.evaluate(diracnets.fold(net), digits())
    assert torch.equal(folded.predictions, evaluation.predictions)


@pytest.mark.parametrize("name", [name for name in SHIPPED if find_weights(name).card.data.name.startswith("cifar")])
def test_cifar_is_told_as_well_as_the_facts_say(name):
    weights = find_weights(name)
    try:
        images = diracnets.load_data(weights.card.data.name, data_dir=DATA, download=False).val
    except FileError:
        pytest.skip(f"{weights.card.data.name} is not in {DATA} (DIRACNETS_DATA names another folder)")
    assert len(images) == weights.card.data.val == 10_000
    assert diracnets.evaluate(load(name), images).top1 == pytest.approx(weights.accuracy, abs=5e-4)


@pytest.mark.parametrize("folded", [None, True, False])
def test_a_name_gives_the_chain_or_the_network_to_train_with_its_card(folded):
    net = load(DIGITS, folded=folded)
    assert isinstance(net, diracnets.DiracNet if folded is False else nn.Sequential)
    assert (net.card.fold.get("max_rel_float64", 1) < 1e-9) == (folded is not False)
    assert not net.training
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert net.card.classes == tuple("0123456789")
    assert (net.card.data.name, net.card.data.val) == ("digits", 359)
    assert net.card.provenance["accuracy"] == find_weights(DIGITS).accuracy


def test_a_file_of_the_same_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(DIGITS).mkdir()
    assert isinstance(load(DIGITS), nn.Sequential)
    Path(DIGITS).rmdir()
    Path(DIGITS).write_bytes(b"something else")
    with pytest.raises(FileError, match=f"{DIGITS} is neither a model file"):
        load(DIGITS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("diracnet-28-0.5-digit", f"no weights of that name; did you mean {DIGITS}"),
        ("my.pt", "there is no file my.pt$"),
    ],
)
def test_a_misspelled_name_is_no_file(name, said):
    with pytest.raises(FileError, match=said):
        load(name)


def test_unknown_weights_are_refused():
    with pytest.raises(UsageError, match=f"did you mean {DIGITS}"):
        find_weights("diracnet-28-5-digits")
    with pytest.raises(UsageError, match=r"no trained network is called 'x': there are .*diracnet-18-imagenet"):
        find_weights("x")
    assert list_weights("*-imagenet") == ["diracnet-18-imagenet", "diracnet-34-imagenet"]


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + b"!", lambda content: content[:99]])
def test_damage_is_noticed(weights, damage):
    file = weights / f"{DIGITS}.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(FileError, match=r"is damaged .sha256 [0-9a-f]{64}, not [0-9a-f]{64}.: install diracnets again"):
        load(DIGITS)
    file.unlink()
    with pytest.raises(FileError, match=f"cannot read .*{DIGITS}.safetensors: No such file"):
        load(DIGITS)


def test_tensors_of_another_network_are_refused(weights):
    data = json.loads((weights / f"{DIGITS}.json").read_text())
    data["card"]["architecture"]["name"] = "diracnet-22-0.5"
    (weights / f"{DIGITS}.json").write_text(json.dumps(data))
    with pytest.raises(FileError, match=r"does not hold a whole network: the tensor groups.0.6.bn.bias is missing"):
        load(DIGITS)


def test_weights_are_fetched_once_and_checked_each_time(weights, server, capsys):
    file = server.folder / "net.safetensors"
    file.write_bytes((weights / f"{DIGITS}.safetensors").read_bytes())
    sha256 = declare(weights, "diracnet-28-0.5-far", file, f"{server.url}/net.safetensors")
    for _ in range(2):
        net = load("diracnet-28-0.5-far")
    assert server.asked == ["/net.safetensors"]
    assert "downloading http" in capsys.readouterr().err
    assert all(map(torch.equal, net.parameters(), load(DIGITS).parameters()))
    kept = Path(os.environ["DIRACNETS_HOME"], "weights", f"diracnet-28-0.5-far-{sha256[:8]}.safetensors")
    assert kept.read_bytes() == file.read_bytes()
    kept.write_bytes(b"damaged")
    with pytest.raises(FileError, match=r"is damaged .* delete it to have it downloaded again"):
        load("diracnet-28-0.5-far")


def test_a_wrong_file_at_the_url_is_not_kept(weights, server):
    file = server.folder / "net.safetensors"
    file.write_bytes(b"something else")
    declare(weights, "diracnet-28-0.5-far", file, f"{server.url}/net.safetensors", sha256="0" * 64)
    with pytest.raises(FileError, match=f"is damaged .sha256 [0-9a-f]+, not {'0' * 64}"):
        load("diracnet-28-0.5-far")
    assert [path for path in Path(os.environ["DIRACNETS_HOME"]).rglob("*") if path.is_file()] == []


def released(chain, depths):
    """A chain's tensors under the names that the authors' release has."""
    blocks = [f"features.group{group}.block{block}.conv" for group, n in enumerate(depths) for block in range(n)]
    layers = [layer for layer in chain if isinstance(layer, nn.Conv2d | nn.Linear)]
    names = ["features.conv", *blocks, "fc"]
    return {
        f"{name}.{kind}": getattr(layer, kind)
        for name, layer in zip(names, layers, strict=True)
        for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(("name", "depths"), [("diracnet-18", (4, 4, 4, 4)), ("diracnet-34", (6, 8, 12, 6))])
def test_the_authors_release_is_read_by_its_names_and_shapes(name, depths):
    weights = find_weights(f"{name}-imagenet")
    assert re.search(rf"/diracnet{name[-2:]}v2folded-{weights.sha256}\.pth$", weights.url)
    assert "OpenCV" in weights.card.provenance["note"]
    expected = folded_structure(on_meta(dict(weights.model)))
    tensors = {key: torch.zeros(tensor.shape) for key, tensor in released(expected, depths).items()}
    assert tensors["features.conv.weight"].shape == (64, 3, 7, 7)
    assert tensors["fc.weight"].shape == (1000, 512)
    chain = authors.from_released(tensors)
    assert {k: v.shape for k, v in chain.state_dict().items()} == {k: v.shape for k, v in expected.state_dict().items()}


def test_a_folded_release_is_fetched_and_computes_the_same(weights, server):
    net = diracnets.create_model("diracnet-18", width=0.0625, num_classes=7, image_size=64).eval()
    chain = diracnets.fold(net)
    file = server.folder / "folded.pth"
    torch.save(released(chain, (4, 4, 4, 4)), file)
    digits8 = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    card = ModelCard((3, 64, 64), (0.5,) * 3, (0.2,) * 3, (), architecture=net.config, data=TrainedOn("imagenet"))
    declare(weights, "diracnet-18-small", file, f"{server.url}/folded.pth", card=card, folded=True, sha256=digits8)
    loaded = load("diracnet-18-small")
    x = torch.randn(2, 3, 64, 64)
    assert torch.equal(loaded(x), chain(x))
    assert loaded.card.mean == (0.5,) * 3
    assert load("diracnet-18-small", folded=False).config == net.config


@pytest.mark.parametrize(
    ("arguments", "chosen"),
    [
        (("diracnet-28-0.5", True, None), DIGITS),
        (("diracnet-28-0.5", True, 10), DIGITS),
        (("diracnet-28-0.5", True, 7), DIGITS),
        (("diracnet-28-0.5", DIGITS, None), DIGITS),
        (("diracnet-18", True, 1000), "diracnet-18-imagenet"),
    ],
)
def test_weights_are_chosen_by_network_and_classes(arguments, chosen):
    assert choose_weights(*arguments).name == chosen


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("diracnet-28-7", True, None), f"no weights come with diracnet-28-7; there are .*{DIGITS}"),
        (("diracnet-18", "diracnet-34-imagenet", None), "no weights of diracnet-18 are called 'diracnet-34-imagenet'"),
    ],
)
def test_weights_that_there_are_not(arguments, said):
    with pytest.raises(UsageError, match=said):
        choose_weights(*arguments)


def test_the_commands_take_names(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    digits().image(0).save("digit.png")
    expected = str(int(digits().labels[0]))
    assert main(["predict", DIGITS, "digit.png", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["label"] == expected
    assert main(["eval", DIGITS, "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == pytest.approx(find_weights(DIGITS).accuracy, abs=1.5 / 359)
    assert main(["fold", DIGITS]) == 0
    assert Path(f"{DIGITS}.safetensors").exists()
    assert main(["predict", f"{DIGITS}.safetensors", "digit.png", "--json", "--device", "cpu"]) == 0
    assert f'"label": "{expected}"' in capsys.readouterr().out


@pytest.mark.parametrize(("name", "kind"), [(DIGITS, "network"), ("diracnet-34-imagenet", "chain")])
def test_info_prints_the_card_and_downloads_nothing(name, kind, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path))
    assert main(["info", name, "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    weights = find_weights(name)
    assert (info["kind"], info["file_bytes"]) == (kind, weights.size)
    assert info["card"] == weights.card.to_data()
    assert list(tmp_path.iterdir()) == []


def test_the_trained_networks_are_listed(capsys):
    assert main(["models", "*-digits", "--trained"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == [[DIGITS, "digits", f"{find_weights(DIGITS).accuracy:.2%}", "MIT", "in", "the", "package"]]
    assert main(["models", "--trained", "nothing"]) == 2
    assert "no trained network matches 'nothing'" in capsys.readouterr().err


def test_the_trained_networks_fit_a_terminal(capsys):
    assert main(["models", "--trained"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert {line.split()[0] for line in lines[2:]} == set(list_weights())


def test_images_of_any_size_are_classified():
    assert diracnets.predict(DIGITS, Image.new("RGB", (50, 40)), device="cpu")[0].label in "0123456789"


def ship():
    specification = importlib.util.spec_from_file_location("ship", ROOT / "benchmarks" / "ship.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module.ship


def test_a_run_becomes_a_file_that_ships(weights, tmp_path):
    recipe = diracnets.Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=2, precision="float32")
    trained = diracnets.train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    made = ship()(tmp_path / "run", "diracnet-10-0.25-digits", folder=weights)
    assert made == find_weights("diracnet-10-0.25-digits")
    assert made.card.provenance["recipe"] == "demo, with model diracnet-10-0.25, epochs 2, precision float32"
    assert made.accuracy == diracnets.evaluate(load(made.name, folded=False), digits()).top1
    assert made.accuracy == pytest.approx(trained.accuracy, abs=0.02)
    assert choose_weights("diracnet-10-0.25", True, 10) == made


@pytest.mark.parametrize("checkpoint", ["last.pt", "best.pt"])
def test_an_unfinished_run_does_not_ship(checkpoint, weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = diracnets.Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=2, precision="float32")

    def stop(row):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        diracnets.train(recipe, run="run", device="cpu", quiet=True, on_epoch=stop)
    with pytest.raises(UsageError, match=r"run is not finished, 1 of 2 epochs are done: resume it .*--run-dir run"):
        ship()(Path("run"), "half", checkpoint=checkpoint, folder=weights)
    assert not list(weights.glob("half*"))


def test_the_wheel_has_them_and_is_small():
    from hatchling.builders.wheel import WheelBuilder

    files = list(WheelBuilder(str(ROOT)).recurse_included_files())
    packed = {file.distribution_path for file in files}
    assert {f"diracnets/artifacts/weights/{name}.json" for name in list_weights()} <= packed
    assert {f"diracnets/artifacts/weights/{name}.safetensors" for name in SHIPPED} <= packed
    assert sum(Path(file.path).stat().st_size for file in files) < 10e6
