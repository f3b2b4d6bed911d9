"""Files that an earlier version wrote are read: model files, checkpoints, and a run folder that is resumed."""

import json
import tarfile
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import diracnets
from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.artifacts.earlier import card_of_facts
from diracnets.artifacts.run_record import RunRecord
from diracnets.cli import main
from diracnets.errors import FileError, UsageError
from diracnets.training.safeguards import Safeguards

FILES = Path(__file__).with_name("files") / "earlier-version.tar.xz"  # written by commit 40de71c


@pytest.fixture
def files(tmp_path):
    """Model files, and "stopped": a run on 120 digits that was stopped after one of two epochs."""
    with tarfile.open(FILES) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "architecture", "data"),
    [
        ("plain", "plain-10-0.125", TrainedOn("digits", 120, 359)),
        ("sprint", "diracnet-sprint-0.03", TrainedOn("dataset", 50, 20)),
        ("cardless", None, None),
        ("stopped/whole", "diracnet-10-0.125", TrainedOn("digits", 120, 359)),
    ],
)
def test_model_files(name, architecture, data, files):
    file = files / f"{name}.safetensors"
    assert diracnets.verify(file).probe_difference < 1e-4
    chain = diracnets.load(file)
    card = chain.card
    assert card.data == data
    assert (card.architecture or {}).get("name") == architecture
    assert (card.recipe is None) == (architecture is None)
    assert not {"recipe", "data"} & set(card.provenance)
    x = torch.randn(2, *card.input_size)
    net = diracnets.unfold(chain)
    torch.testing.assert_close(net(x), chain(x), rtol=1e-3, atol=1e-4)
    assert net.config["name"] == (architecture or "diracnet-10-0.12")  # of a cardless one the sizes decide
    diracnets.save(chain, files / "new.safetensors", card=card)
    assert diracnets.load(files / "new.safetensors").card == card


def test_an_earlier_run_is_resumed_evaluated_folded_and_predicts(files, capsys):
    run = files / "stopped"
    best = diracnets.load(run / "best.pt")
    assert best.config["init"] == {"scheme": "deep", "filters": "kaiming", "bias": 0.5}
    assert best.card.architecture == best.config
    assert main(["eval", str(run), "--json", "--device", "cpu"]) == 0
    top1 = json.loads(capsys.readouterr().out)["top1"]
    assert top1 == pytest.approx(best.card.provenance["accuracy"], abs=2 / 359)
    assert main(["fold", str(run)]) == 0
    diracnets.load_data("digits").val.image(0).save(files / "digit.png")
    labels = []
    for model in (run, run / "model.safetensors"):
        capsys.readouterr()
        assert main(["predict", str(model), str(files / "digit.png"), "--json", "--device", "cpu"]) == 0
        labels.append(json.loads(capsys.readouterr().out)[0]["label"])
    assert labels[0] == labels[1]

    assert main(["train", "--resume", "--run-dir", str(run), "--device", "cpu", "--quiet"]) == 0
    chain, whole = diracnets.load(run / "model.safetensors"), diracnets.load(run / "whole.safetensors")
    for name, tensor in whole.state_dict().items():  # as the run that was not stopped ended then
        torch.testing.assert_close(chain.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    record = RunRecord.read(run)
    assert record.contents  # known from now on
    assert record == RunRecord(contents=record.contents, safeguards=asdict(Safeguards()))
    assert [row["epoch"] for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())] == [1, 2]


@pytest.mark.slow
def test_a_run_starts_from_an_earlier_file(files):
    words = ["--epochs", "1", "--images", "40", "--batch-size", "20", "--precision", "float32", "--device", "cpu"]
    for number, start in enumerate(("stopped/last.pt", "stopped", "stopped/whole.safetensors")):
        run = ["--run-dir", str(files / f"next{number}"), "--from", str(files / start), "--quiet"]
        assert main(["train", "--data", "digits", "--model", "diracnet-10-0.125", *words, *run]) == 0


def test_where_the_images_of_an_earlier_run_were(files):
    record = files / "stopped" / "environment.json"
    entries = json.loads(record.read_text())
    entries.append({**entries[0], "data_dir": "/data/images", "start": "best.pt"})
    record.write_text(json.dumps(entries))
    assert RunRecord.read(files / "stopped") == RunRecord("/data/images", "best.pt")
    RunRecord("/elsewhere").save(files / "stopped")
    assert RunRecord.read(files / "stopped") == RunRecord("/elsewhere")


@pytest.mark.parametrize("name", ["environment.json", "run.json"])
@pytest.mark.parametrize("content", ["[{", '["data"]', '{"data_dir": 3}', '[{"start": ["x"]}]', "3"])
def test_a_damaged_record_is_a_file_error(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    with pytest.raises(FileError, match=name):
        RunRecord.read(tmp_path)


@pytest.mark.parametrize("data", ["[]", "{}"])
def test_an_empty_record_says_nothing(data, tmp_path):
    (tmp_path / "environment.json").write_text(data)
    assert RunRecord.read(tmp_path) == RunRecord()


PLAIN = {"input_size": [1, 8, 8], "mean": [0.5], "std": [0.5]}


def test_what_provenance_held_is_in_its_place():
    settings = {"model": "diracnet-10-1", "start": "deep", "bias": 0.5}
    provenance = {"weights": "x", "recipe": "demo", "settings": settings, "data": {"name": "y"}, "licence": "MIT"}
    card = card_of_facts({**PLAIN, "provenance": provenance, "fold": {"max_abs": 1e-7}}, outputs=10)
    assert card == ModelCard(
        (1, 8, 8),
        (0.5,),
        (0.5,),
        provenance={"weights": "x", "recipe": "demo", "license": "MIT"},
        fold={"max_abs": 1e-7},
        architecture={
            "name": "diracnet-10-1",
            "num_classes": 10,
            "in_channels": 1,
            "image_size": [8, 8],
            "init": {"scheme": "deep", "bias": 0.5},
        },
        data=TrainedOn("y"),
        recipe=settings,
    )
    pruned = card_of_facts({**PLAIN, "provenance": {**provenance, "taken_out": ["3"]}}, outputs=10)
    assert pruned.architecture is None


@pytest.mark.parametrize(
    "provenance",
    [3, {"recipe": {"model": 3}}, {"recipe": {"model": "vgg-16", "init": ["x"]}}, {"recipe": {"start": "odd"}}],
)
def test_facts_that_cannot_be_are_refused(provenance):
    with pytest.raises(UsageError):
        card_of_facts({**PLAIN, "provenance": provenance}, outputs=10)


def test_names_of_earlier_versions_warn(tmp_path):
    net = diracnets.create_model("diracnet-10-0.25").eval()
    card = ModelCard((3, 32, 32), (0.5,) * 3, (0.5,) * 3, classes=tuple("abcdefghij"))
    with pytest.warns(DeprecationWarning, match="card="):
        diracnets.save(diracnets.fold(net), tmp_path / "x.safetensors", facts=card)
    chain = diracnets.load(tmp_path / "x.safetensors")
    with pytest.warns(DeprecationWarning, match=r"now card\.classes"):
        assert chain.facts.classes == card.classes
    with pytest.warns(DeprecationWarning, match="card="):
        diracnets.save(chain, tmp_path / "y.safetensors", facts=chain.facts)
    assert diracnets.load(tmp_path / "y.safetensors").card == card
    for given in ({"card": card, "facts": card}, {"card": 3}):
        with pytest.raises(UsageError, match="Card"):
            diracnets.save(chain, tmp_path / "z.safetensors", **given)
