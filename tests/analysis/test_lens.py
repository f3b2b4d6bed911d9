import json
from dataclasses import replace
from pathlib import Path

import pytest

from diracnets import Recipe, train
from diracnets.analysis import lens
from diracnets.analysis.lens import EPOCHS, followed
from diracnets.commands.study import Lens
from diracnets.errors import UsageError
from diracnets.evaluation.plots import new_figure
from diracnets.training.scales import LayerScales


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = Recipe().replaced(
        model="diracnet-10-0.25", data="digits", num_train=200, epochs=2, lr=0.05, precision="float32"
    )
    return train(recipe, run=tmp_path_factory.mktemp("lens") / "run", device="cpu", quiet=True).run


def look(net, out, **options):
    said = []
    Lens(net=str(net), out=out, device="cpu", images=32, **options).run(said.append)
    return json.loads((out / "lens.json").read_text()), said


def test_a_run_is_followed_through_its_epochs(run, tmp_path):
    facts, said = look(run, tmp_path)
    assert facts["history"]["epochs"] == [0, 1, 2]
    assert facts["history"]["alpha"][0] == [1.0] * 6
    assert facts["history"]["alpha"][2] == pytest.approx([layer["alpha"] for layer in facts["scales"]], rel=1e-3)
    quotients = [
        layer["alpha"] / layer["beta"] / layer["norm"] for layer in facts["scales"]
    ]  # channels differ a little
    assert [layer["ratio_by_norm"] for layer in facts["scales"]] == pytest.approx(quotients, rel=0.05)
    assert facts["history"]["ratio_by_norm"][2] == pytest.approx(quotients, rel=0.05)
    assert facts["history"]["ratio_by_norm"][0] != pytest.approx(quotients, rel=0.05)
    assert [layer["layer"] for layer in facts["signal"]][::2] == ["groups.0.0", "groups.1.0", "groups.2.0"]
    assert facts["mode"] == "evaluation"
    assert all(layer["gradient"] > 0 and layer["filter_gradient"] > 0 for layer in facts["signal"])
    text = (tmp_path / "lens.md").read_text()
    assert text.startswith("# The layers of run")
    assert text.count("| groups.2.1") == 2
    assert "| alpha / (beta norm) |" in text
    assert "It says how close a layer is to the identity" in text
    assert (tmp_path / "lens.png").exists()
    assert "wrote lens.json" in said[-1]


def test_a_model_file_has_identities_but_no_scales(run, tmp_path):
    facts, _ = look(run / "model.safetensors", tmp_path)
    of_run, _ = look(run / "last.pt", tmp_path / "other")
    assert facts["scales"] == []
    assert len(facts["signal"]) == 6
    assert all(0 < layer["identity"] <= 1 for layer in facts["signal"])
    kept, expected = ([layer["kept"] for layer in each["signal"]] for each in (facts, of_run))
    assert kept == pytest.approx(expected, rel=1e-2)
    assert (tmp_path / "lens.png").exists()


@pytest.mark.parametrize(("name", "mode"), [("diracnet-10-0.25", "training"), ("diracnet-28-0.5-digits", "evaluation")])
def test_a_name_goes_before_a_folder_without_a_run(name, mode, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    facts, _ = look(name, tmp_path, data="digits")
    assert (facts["network"], facts["mode"]) == (name, mode)


@pytest.mark.slow
def test_a_runs_own_folder_of_images_is_found(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for part in ("train", "val"):
        for kind in ("black", "white"):
            folder = tmp_path / "images" / part / kind
            folder.mkdir(parents=True)
            for number in range(20):
                image.new("RGB", (8, 8), (0, 5 * number, 99) if kind == "black" else "white").save(
                    folder / f"{number}.png"
                )
    recipe = Recipe().replaced(model="diracnet-10-0.25", data="folder", image_size=16, epochs=1, precision="float32")
    images = tmp_path / "images"
    train(recipe, run=tmp_path / "run", data_dir=images, device="cpu", workers=0, quiet=True)
    facts, _ = look(tmp_path / "run", tmp_path)
    assert facts["data"] == "folder"


@pytest.mark.parametrize("name", ["plain-10-0.25", "wrn-10-0.25", "repvgg-10-0.25"])
def test_every_kind_of_network_can_be_looked_into(name, tmp_path):
    facts, _ = look(name, tmp_path, data="digits")
    assert len(facts["signal"]) >= 3
    assert all(layer["gradient"] > 0 for layer in facts["signal"])
    assert any(layer["kept"] is not None for layer in facts["signal"])


def test_a_name_is_a_fresh_network(tmp_path):
    facts, _ = look("diracnet-16-0.25", tmp_path, data="digits")
    assert facts["mode"] == "training"
    assert facts["history"]["epochs"] == []
    assert {layer["beta"] for layer in facts["scales"]} == {0.1}


def test_long_histories_are_thinned_but_keep_their_ends():
    layer = LayerScales("a", 1.0, 0.1, 10.0, 1.0, 0.9)
    for count in (1, 2, 20, 21, 100, 201):
        kept = followed({epoch: [replace(layer, alpha=float(epoch))] for epoch in range(count)})
        assert (kept["epochs"][0], kept["epochs"][-1]) == (0, count - 1)
        assert len(kept["epochs"]) <= EPOCHS + 1
        assert kept["alpha"][-1] == [count - 1.0]


@pytest.mark.parametrize(
    ("net", "options", "words"),
    [
        ("nothing-1", {}, "no network is called 'nothing-1'(; did you mean .*\\?|\\.) There are"),
        ("diracnet-28-1-cifar10-int8", {}, "is in int8: give the float model file"),
        ("{run}", {"images": 3}, "images is 3"),
        ("{run}", {"images": 10_000}, "images is 10000; digits has 1438"),
        ("{folder}", {}, "holds no run"),
    ],
)
def test_what_cannot_be_looked_into_is_said(run, tmp_path, net, options, words):
    with pytest.raises(UsageError, match=words):
        Lens(net=net.format(run=run, folder=tmp_path), out=tmp_path, device="cpu", **options).run(print)


def test_figures_number_layers_and_leave_no_offset_beside_an_axis():
    scales = [{kind: 1 + 1e-6 * layer for kind in lens.KINDS} for layer in range(3)]
    layers = [dict.fromkeys(lens.SIGNAL, 0.9 + 1e-6 * layer) for layer in range(3)]
    facts = {"title": "A net", "images": 4, "data": "digits", "scales": scales, "signal": layers}
    figure = new_figure(12, 7)
    lens.draw(figure, {**facts, "history": {"epochs": [], **{kind: [] for kind in lens.KINDS}}})
    figure.canvas.draw()
    assert figure.get_suptitle() == "A net, on 4 training images of digits"
    assert all(axes.get_title() for axes in figure.axes)
    assert {axes.yaxis.get_offset_text().get_text() for axes in figure.axes if axes.get_yscale() == "linear"} == {""}
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())
