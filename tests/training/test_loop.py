import copy
import json
import shlex
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tomli_w
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from diracnets.artifacts.card import TrainedOn
from diracnets.artifacts.chain import write_model_file
from diracnets.artifacts.checkpoint import read_checkpoint, save_checkpoint
from diracnets.artifacts.create import create_model
from diracnets.artifacts.load import load
from diracnets.cli import main, parse
from diracnets.data.augmentation import Augmentation
from diracnets.data.image_file import ADVICE
from diracnets.data.memory import MemoryImages
from diracnets.errors import DataError, FileError, FoldError, TrainingError, UsageError
from diracnets.evaluation.metrics import evaluate
from diracnets.runtime.precision import Precision
from diracnets.runtime.ranks import fetched
from diracnets.training.inputs import progressively_resized
from diracnets.training.interruption import Interrupted
from diracnets.training.loop import train
from diracnets.training.muon import Muon
from diracnets.training.recipe import Recipe
from diracnets.training.renamed import RENAMED
from diracnets.training.safeguards import Safeguards
from diracnets.training.schedule import factor
from diracnets.training.settings import DataSettings

pytestmark = pytest.mark.usefixtures("bare_runs")

RECIPE = Recipe().replaced(
    model="diracnet-10-0.25",
    data="stripes",
    init="kaiming",
    epochs=4,
    batch_size=16,
    lr=0.05,
    nesterov=True,
    schedule="one-cycle",
    warmup=0.25,
    augment=Augmentation(crop="pad", pad=1, flip=True, cutout=2),
    precision="float32",
)
STEPS = 5  # an epoch of the 72 stripes


def run(recipe, folder, data, **options):
    return train(recipe, run=folder, data=data, device="cpu", quiet=True, **options)


def stop_after(monkeypatch, steps):
    """Let a signal come in the middle of that step."""
    before, count = nn.functional.cross_entropy, iter(range(1, 10_000))

    def counting(*args, **kwargs):
        if next(count) == steps:
            signal.raise_signal(signal.SIGTERM)
        return before(*args, **kwargs)

    monkeypatch.setattr("diracnets.training.step.cross_entropy", counting)


def same_weights(one, other):
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == also and tensor.equal(twin) for (name, tensor), (also, twin) in pairs)


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if "second" not in name} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, stripes):
    """A run that nothing interrupted."""
    return run(RECIPE, tmp_path_factory.mktemp("whole") / "run", stripes)


def test_a_run_learns_and_leaves_its_files(whole, stripes):
    assert whole.history[-1]["loss"] < 0.7 * whole.history[0]["loss"]
    assert whole.accuracy == whole.history[-1]["val_accuracy"]
    names = {path.name for path in whole.run.iterdir()}
    expected = {
        "recipe.toml",
        "run.json",
        "environment.json",
        "metrics.jsonl",
        "last.pt",
        "best.pt",
        "earlier",
        "curve.png",
        "tensorboard",
    }
    assert names == expected | {"model.safetensors", "scales.jsonl"}
    assert Recipe.load(whole.run / "recipe.toml") == RECIPE
    assert [row["epoch"] for row in metrics(whole.run)] == [1, 2, 3, 4]
    environment = json.loads((whole.run / "environment.json").read_text())
    assert environment[0]["versions"]["torch"] == torch.__version__
    assert next((whole.run / "tensorboard").iterdir()).stat().st_size > 0


def test_all_its_files_hold_the_network_that_was_trained(whole, stripes):
    trained = evaluate(whole.net, stripes.val)
    assert trained.top1 == whole.accuracy
    assert not whole.net.training
    for model in (whole.chain, load(whole.model_file), load(whole.run / "last.pt")):
        assert evaluate(model, stripes.val).predictions.equal(trained.predictions)
    card = load(whole.model_file).card
    assert (card.classes, card.input_size, card.mean) == (stripes.classes, stripes.input_size, stripes.mean)
    assert card.provenance["accuracy"] == whole.accuracy
    assert Recipe.from_table(dict(card.recipe)) == RECIPE
    assert card.fold["max_rel_float64"] <= 1e-9
    best = evaluate(load(whole.run / "best.pt"), stripes.val).top1
    assert best == max(row["val_accuracy"] for row in whole.history)


def test_the_same_recipe_gives_the_same_weights_and_another_seed_others(whole, stripes, tmp_path):
    assert same_weights(run(RECIPE, tmp_path / "again", stripes).net, whole.net)
    assert not same_weights(run(RECIPE.replaced(seed=1), tmp_path / "other", stripes).net, whole.net)


@pytest.mark.parametrize("steps", [1, 7, 10, 20])
def test_a_stopped_run_goes_on_bit_by_bit(steps, whole, stripes, tmp_path, monkeypatch):
    """In the first step, within an epoch, at the end of one, in the very last step."""
    folder = tmp_path / "a run"
    with monkeypatch.context() as patch:
        stop_after(patch, steps)
        with pytest.raises(Interrupted) as stopped:
            run(RECIPE, folder, stripes)
    assert stopped.value.exit_code == 143
    assert str(stopped.value).endswith(
        f"diracnets {shlex.join(['train', '--resume', '--run-dir', str(folder), '--device', 'cpu'])}"
    )
    resumed = run(RECIPE, folder, stripes, resume=True)
    assert same_weights(resumed.net, whole.net)
    assert metrics(folder) == metrics(whole.run)
    assert len(json.loads((folder / "environment.json").read_text())) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"ema_decay": 0.8},
        {"swa_fraction": 0.6},
        {"schedule": "step", "warmup": 0.0, "milestones": (2, 3), "restart_momentum": True, "nesterov": False},
        {"precision": "bfloat16", "clip_grad": 0.5, "label_smoothing": 0.1},
        {"precision": "float16", "channels_last": False},
        {"deterministic": True, "eval_every": 3},
        {"optimizer": "muon", "scale_lr": 0.01, "mixup": 0.3, "num_train": 60, "recalibrate_bn": True},
        {"optimizer": "muon", "precision": "float16"},
        {"model": "dirac-wrn-10-0.25"},
    ],
    ids=lambda changes: "-".join(changes),
)
def test_two_epochs_and_two_more_are_four(changes, stripes, tmp_path):
    recipe = RECIPE.replaced(**changes)
    whole = run(recipe, tmp_path / "whole", stripes)

    def stop(row):
        if row["epoch"] == 2:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        run(recipe, tmp_path / "run", stripes, on_epoch=stop)
    assert stopped.value.exit_code == 130
    resumed = run(recipe, tmp_path / "run", stripes, resume=True)
    assert same_weights(resumed.net, whole.net)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")


@pytest.mark.parametrize(("stop", "told"), [(2, True), (3, False)])
def test_a_checkpoint_tells_the_accuracy_of_its_own_epoch_alone(stop, told, stripes, tmp_path):
    def interrupt(row):
        if row["epoch"] == stop:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted):
        run(RECIPE.replaced(eval_every=2), tmp_path / "run", stripes, on_epoch=interrupt)
    accuracy = load(tmp_path / "run" / "last.pt").card.provenance["accuracy"]
    expected = metrics(tmp_path / "run")[stop - 1].get("val_accuracy")
    assert accuracy == expected
    assert (accuracy is not None) == told


def test_a_signal_during_the_evaluation_is_heeded(whole, stripes, tmp_path, monkeypatch):
    def interrupted(model, images, *, batch_size, on_batch, ranks):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(model, images, batch_size=7, on_batch=on_batch)

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.evaluating.evaluate", interrupted)
        with pytest.raises(Interrupted, match="after 0 of 4 epochs and 5 of 5 batches"):
            run(RECIPE, tmp_path / "run", stripes)
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)


def test_a_signal_while_batchnorm_is_recalibrated_waits_for_no_further_batch(whole, stripes, tmp_path, monkeypatch):
    seen = []

    def signalled(batches):
        for batch in batches:
            if not seen:
                signal.raise_signal(signal.SIGTERM)
            seen.append(batch)
            yield batch

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.evaluating.update_bn", lambda found, net: update_bn(signalled(found), net))
        with pytest.raises(Interrupted, match="after 0 of 4 epochs and 5 of 5 batches"):
            run(RECIPE, tmp_path / "run", stripes)
    assert len(seen) == 1
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)


def test_stopped_at_once_a_run_says_how_to_go_on_from_what_was_saved_last(whole, stripes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(signal, "SIGTERM", signal.SIGINT)  # of `stop_after`
        stop_after(patch, 7)
        patch.setattr("diracnets.training.loop.Interruption._remember", signal.default_int_handler)
        with pytest.raises(
            KeyboardInterrupt, match=r"^stopped at once; go on from what was saved last with: .* --resume"
        ):
            run(RECIPE, tmp_path / "run", stripes)
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)


@pytest.mark.parametrize("step", ["starting_network", "choose_precision"])
def test_a_signal_before_the_run_begins_ends_it_at_once(step, stripes, tmp_path, monkeypatch):
    monkeypatch.setattr(f"diracnets.training.loop.{step}", lambda *_, **__: signal.raise_signal(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        run(RECIPE, tmp_path / "run", stripes)
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_fails_does_not_cost_the_epoch(whole, stripes, tmp_path, monkeypatch):
    def failing(model, images, *, batch_size, on_batch, ranks):
        raise DataError("an image cannot be read")

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.evaluating.evaluate", failing)
        with pytest.raises(DataError, match=r"^an image cannot be read; the run is saved: .* go on with: .*--resume"):
            run(RECIPE, tmp_path / "run", stripes)
    resume = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["resume"]
    assert (resume["epoch"], resume["batch"]) == (1, STEPS)
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)


def test_an_image_that_cannot_be_read_does_not_cost_the_steps_before(whole, stripes, tmp_path, monkeypatch):
    count = iter(range(1, 100))

    def failing(batches):
        return (None, DataError(f"x.png is cut off{ADVICE}")) if next(count) == 4 else fetched(batches)

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.epoch.fetched", failing)
        with pytest.raises(DataError, match=r"^x\.png is cut off; the run is saved: .* remove no image, .*--resume"):
            run(RECIPE, tmp_path / "run", stripes)
    resume = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["resume"]
    assert (resume["epoch"], resume["batch"]) == (1, 3)
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)


def test_checkpoints_that_take_long_are_written_rarely_and_resuming_loses_nothing(
    whole, stripes, tmp_path, monkeypatch
):
    def crash(row):
        if row["epoch"] == 3:
            raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.run.LONG_SAVE", 0.0)
        patch.setattr("diracnets.training.run.SAVE_SHARE", 1e-9)
        with pytest.raises(MemoryError):
            run(RECIPE, tmp_path / "run", stripes, on_epoch=crash)
        resume = torch.load(tmp_path / "run" / "last.pt", weights_only=True)["resume"]
        assert (resume["epoch"], resume["batch"]) == (1, 0)
        resumed = run(RECIPE, tmp_path / "run", stripes, resume=True)
    assert same_weights(resumed.net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)
    assert load(tmp_path / "run" / "last.pt").card.provenance["epoch"] == RECIPE.optimization.epochs


def test_resuming_a_finished_run_gives_what_it_gave(whole, stripes, tmp_path):
    (whole.run / "model.safetensors").unlink()
    again = run(RECIPE, whole.run, stripes, resume=True)
    assert same_weights(again.net, whole.net)
    assert (again.accuracy, again.history) == (whole.accuracy, whole.history)
    assert again.model_file.exists()


def test_rows_that_a_crash_left_behind_the_checkpoint_go_away(whole, stripes, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(RECIPE, tmp_path / "run", stripes)
    with (tmp_path / "run" / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "loss": 9.0}\n{"epoch"')
    run(RECIPE, tmp_path / "run", stripes, resume=True)
    assert metrics(tmp_path / "run") == metrics(whole.run)


def test_a_folder_that_holds_a_run_is_refused(whole, stripes):
    with pytest.raises(UsageError, match="already holds a run"):
        run(RECIPE, whole.run, stripes)


@pytest.mark.parametrize("pair", [False, True])
def test_a_dataset_of_ones_own_is_trained_on_in_a_new_folder(pair, stripes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    items = [(stripes.train.image(number), int(label)) for number, label in enumerate(stripes.train.labels)]
    data = (items, items[:30]) if pair else items
    for name in ("diracnet-10-0.25-dataset", "diracnet-10-0.25-dataset-2"):
        trained = train(RECIPE.replaced(epochs=1), data=data, device="cpu", quiet=True)
        assert trained.run == Path("runs", name)
        assert Recipe.load(trained.run / "recipe.toml").data.name == "dataset"
    again = train(RECIPE.replaced(epochs=1), run=trained.run, data=data, device="cpu", quiet=True, resume=True)
    assert same_weights(again.net, trained.net)


def test_data_may_be_named(tmp_path):
    pytest.importorskip("sklearn")
    trained = train(RECIPE.replaced(epochs=1), run=tmp_path, data="digits", device="cpu", quiet=True)
    assert trained.net.card.data.name == "digits"


def test_a_start_that_failed_does_not_block_the_folder(stripes, tmp_path, monkeypatch):
    def full(*_):
        raise FileError("cannot write last.pt, is the disk full?")

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.checkpoints.save_checkpoint", full)
        with pytest.raises(FileError):
            run(RECIPE, tmp_path / "run", stripes)
    recipe = RECIPE.replaced(epochs=1)
    assert Recipe.load(run(recipe, tmp_path / "run", stripes).run / "recipe.toml") == recipe


def test_a_disk_that_fills_up_tells_how_to_go_on(whole, stripes, tmp_path, monkeypatch):
    left = iter([True] * 4)

    def filling(path, checkpoint):
        if not next(left, False):
            raise FileError(f"cannot write {path}")
        save_checkpoint(path, checkpoint)

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.checkpoints.save_checkpoint", filling)
        with pytest.raises(
            FileError, match=r"^cannot write .*\.pt; mend that, and go on .* with: diracnets train --resume"
        ):
            run(RECIPE, tmp_path / "run", stripes)
    assert same_weights(run(RECIPE, tmp_path / "run", stripes, resume=True).net, whole.net)


def test_resuming_nothing_is_refused(stripes, tmp_path):
    with pytest.raises(UsageError, match="no run to resume"):
        run(RECIPE, tmp_path, stripes, resume=True)
    with pytest.raises(UsageError, match="give its folder"):
        train(RECIPE, data=stripes, resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("changes", [{"lr": 0.01}, {"epochs": 5}, {"crop": "none"}])
def test_resuming_by_another_recipe_names_what_differs(changes, whole, stripes):
    with pytest.raises(UsageError, match=next(iter(changes))):
        run(RECIPE.replaced(**changes), whole.run, stripes, resume=True)


def test_resuming_a_network_that_has_other_layers_by_now_says_so(whole, stripes, tmp_path):
    saved = read_checkpoint(whole.run / "last.pt")
    del saved.resume["net"]["groups.1.0.conv.weight"]
    save_checkpoint(tmp_path / "last.pt", saved)
    with pytest.raises(UsageError, match=r"diracnet-10-0\.25 has other layers"):
        run(RECIPE, tmp_path, stripes, resume=True)


def test_the_last_statistics_count_as_training(stripes, tmp_path, monkeypatch):
    real, late = time.perf_counter, [0.0]

    def slow(*given):
        late[0] += 1e6
        update_bn(*given)

    monkeypatch.setattr(time, "perf_counter", lambda: real() + late[0])
    monkeypatch.setattr("diracnets.training.evaluating.update_bn", slow)
    recipe = RECIPE.replaced(epochs=2, recalibrate_bn=True)
    first, last = run(recipe, tmp_path / "run", stripes).history
    assert (first["seconds"] < 1e6, last["seconds"] > 1e6) == (True, True)


def test_resuming_on_other_images_is_refused(whole, stripes):
    with pytest.raises(UsageError, match="not the images"):
        run(RECIPE, whole.run, replace(stripes, classes=("a", "b", "c")), resume=True)


def test_a_damaged_checkpoint_is_a_file_error(stripes, tmp_path):
    (tmp_path / "last.pt").write_bytes(b"PK damaged")
    with pytest.raises(FileError, match=r"last\.pt"):
        run(RECIPE, tmp_path, stripes, resume=True)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(stripes, tmp_path, monkeypatch):
    def explode(row):
        monkeypatch.setattr(
            "diracnets.training.step.cross_entropy", lambda logits, *_, **__: logits.sum() * float("nan")
        )

    with pytest.raises(TrainingError, match=r"epoch 2.*lower learning rate.*clip_grad"):
        run(RECIPE, tmp_path / "run", stripes, on_epoch=explode)
    assert load(tmp_path / "run" / "last.pt").card.provenance["epoch"] == 1
    assert len(metrics(tmp_path / "run")) == 1


def test_momentum_restarts_at_a_drop(stripes, tmp_path):
    """With a momentum of nearly one, forgetting it at a drop makes another network."""
    recipe = RECIPE.replaced(schedule="step", warmup=0.0, milestones=(3,), nesterov=False, epochs=3)
    kept = run(recipe, tmp_path / "kept", stripes)
    restarted = run(recipe.replaced(restart_momentum=True), tmp_path / "restarted", stripes)
    assert metrics(kept.run)[:2] == metrics(restarted.run)[:2]
    assert not same_weights(kept.net, restarted.net)


def test_averaged_weights_are_what_is_kept(stripes, tmp_path):
    trained = run(RECIPE.replaced(swa_fraction=0.5), tmp_path / "run", stripes)
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    last, kept = checkpoint["resume"]["net"], checkpoint["state"]
    assert not last["fc.weight"].equal(kept["fc.weight"])
    assert trained.net.fc.weight.equal(kept["fc.weight"])
    assert not last["stem.bn.running_mean"].equal(kept["stem.bn.running_mean"])
    assert evaluate(trained.chain, stripes.val).top1 == trained.accuracy


@pytest.mark.parametrize("changes", [{"ema_decay": 0.8}, {"swa_fraction": 1.0, "eval_every": 4}])
@pytest.mark.parametrize("steps", [7, 10])
def test_weights_are_saved_with_statistics_of_their_own(changes, steps, stripes, tmp_path, monkeypatch):
    """Where the average has none yet, the network in training is what there is to evaluate."""
    stop_after(monkeypatch, steps)
    with pytest.raises(Interrupted):
        run(RECIPE.replaced(**changes), tmp_path / "run", stripes)
    checkpoint = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert all(tensor.equal(checkpoint["resume"]["net"][name]) for name, tensor in checkpoint["state"].items())


def test_clipping_shortens_steps(stripes, tmp_path):
    recipe = RECIPE.replaced(epochs=1, weight_decay=0.0, momentum=0.0, nesterov=False)
    start = run(recipe.replaced(lr=1e-12), tmp_path / "start", stripes).net.fc.weight
    moved = [
        float((run(recipe.replaced(clip_grad=at), tmp_path / str(at), stripes).net.fc.weight - start).detach().norm())
        for at in (0.0, 1e-3)
    ]
    assert moved[1] < moved[0] / 10


def test_compiling_changes_no_names(whole, stripes, tmp_path, monkeypatch):
    compiled = []

    class Compiled(nn.Module):  # as torch.compile wraps a module, without waiting for a compiler
        def __init__(self, model):
            super().__init__()
            self._orig_mod = model

        def forward(self, images):
            compiled.append(len(images))
            return self._orig_mod(images)

    monkeypatch.setattr(torch, "compile", Compiled)
    trained = run(RECIPE.replaced(compile=True, epochs=1), tmp_path / "run", stripes)
    assert sum(compiled) == len(stripes.train)
    assert trained.net.state_dict().keys() == whole.net.state_dict().keys()
    assert load(tmp_path / "run" / "last.pt").state_dict().keys() == whole.net.state_dict().keys()


def test_auto_precision_is_kept_when_resuming(stripes, tmp_path, monkeypatch):
    recipe = RECIPE.replaced(precision="auto")
    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.loop.choose_precision", lambda *_, **__: Precision("bfloat16", "measured"))
        stop_after(patch, 7)
        with pytest.raises(Interrupted):
            run(recipe, tmp_path / "run", stripes)
    resumed = run(recipe, tmp_path / "run", stripes, resume=True)
    whole = run(recipe.replaced(precision="bfloat16"), tmp_path / "whole", stripes)
    assert same_weights(resumed.net, whole.net)


def test_a_last_batch_of_one_image_is_left_out(stripes, tmp_path):
    trained = run(RECIPE.replaced(batch_size=71, epochs=1), tmp_path / "run", stripes)
    assert trained.history[0]["accuracy"] * 71 == pytest.approx(round(trained.history[0]["accuracy"] * 71))


def test_deterministic_mode_ends_with_the_run(stripes, tmp_path):
    run(RECIPE.replaced(deterministic=True, epochs=1), tmp_path / "run", stripes)
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, {"device": "cuda"}, "cuda"),
        ({}, {"device": "abacus"}, "abacus"),
        ({"model": "diracnet-18"}, {}, "too small"),
        ({"model": "diracnet-11-1"}, {}, "diracnet-10-1"),
        ({"freeze": True}, {}, "start from"),
        ({"augment": Augmentation(cutout=8)}, {}, "cutout 8"),
    ],
)
def test_what_cannot_be_trained_leaves_nothing_behind(changes, options, message, stripes, tmp_path):
    if options.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(UsageError, match=message):
        train(RECIPE.replaced(**changes), run=tmp_path / "run", data=stripes, quiet=True, **options)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_an_unwritable_folder_is_a_file_error(stripes, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        run(RECIPE, tmp_path / "file" / "run", stripes)


def test_plain_lines_where_there_is_no_terminal(stripes, tmp_path, capsys):
    train(RECIPE.replaced(epochs=2), run=tmp_path / "run", data=stripes, device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert "72 images to train on, 30 images to validate on" in lines[0]
    assert lines[1] == "3 classes: low, middle, high"
    assert "float32: as the recipe says" in lines[2]
    header = next(number for number, line in enumerate(lines) if line.lstrip().startswith("epoch "))
    assert [line.split()[0] for line in lines[header : header + 3]] == ["epoch", "1/2", "2/2"]
    assert "\x1b" not in "".join(lines)


def test_milestones_after_the_last_epoch_are_named(stripes, tmp_path, capsys):
    recipe = RECIPE.replaced(schedule="step", warmup=0.0, milestones=(1, 9), epochs=1)
    train(recipe, run=tmp_path / "run", data=stripes, device="cpu")
    assert "the milestones 9 are after the last epoch, 1" in capsys.readouterr().out


def test_a_network_that_diverges_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1, precision="float32")

    def diverged(*_, **__):
        raise TrainingError("the network's outputs are infinite or NaN")

    monkeypatch.setattr("diracnets.training.evaluating.evaluate", diverged)
    with pytest.raises(TrainingError, match="try a lower learning rate"):
        train(recipe, run=tmp_path / "run", device="cpu", quiet=True)
    saved = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert (saved["resume"]["epoch"], saved["resume"]["batch"]) == (1, 0)


def test_rates_of_all_groups_follow_the_schedule(stripes, tmp_path, monkeypatch):
    rates = []

    class Recording(Muon):
        def step(self, closure=None):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(closure)

    monkeypatch.setattr("diracnets.training.optimizer.Muon", Recording)
    recipe = RECIPE.replaced(optimizer="muon", muon_lr=0.5, scale_lr=0.02, epochs=2)
    run(recipe, tmp_path / "run", stripes)
    highest = [0.5, 0.05, 0.05, 0.02]
    for step, found in enumerate(rates):
        assert found == pytest.approx([factor(recipe.optimization, step, STEPS) * rate for rate in highest])


def test_mixup_trains_on_sums_of_images_and_shares_the_loss(stripes, tmp_path, monkeypatch):
    seen, targets = [], []
    before = nn.functional.cross_entropy

    def recording(logits, labels, **options):
        targets.append(labels)
        return before(logits, labels, **options)

    monkeypatch.setattr("diracnets.training.step.cross_entropy", recording)
    monkeypatch.setattr("diracnets.training.step.mixed", lambda images, share: seen.append(share) or images)
    run(RECIPE.replaced(mixup=0.5, epochs=1), tmp_path / "run", stripes)
    assert len(seen) == STEPS == len(set(seen))
    assert all(one.roll(1, 0).equal(other) for one, other in zip(targets[::2], targets[1::2], strict=True))


def test_a_stem_of_rate_0_stays_as_it_starts(stripes, tmp_path):
    torch.manual_seed(3)
    begun = create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8)
    trained = train(
        RECIPE.replaced(stem_lr=0.0, epochs=1),
        run=tmp_path / "run",
        data=stripes,
        device="cpu",
        start=begun,
        quiet=True,
    )
    ended = dict(trained.net.named_parameters())
    same = {name for name, parameter in begun.named_parameters() if parameter.equal(ended[name])}
    assert same == {name for name in ended if name.startswith("stem.")}


def test_the_first_part_trains_on_smaller_images(large_stripes, tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        "diracnets.training.step.progressively_resized",
        lambda *arguments: sizes.append((images := progressively_resized(*arguments)).shape[2:]) or images,
    )
    run(RECIPE.replaced(progressive_size=8, progressive_fraction=0.25, epochs=4), tmp_path / "run", large_stripes)
    assert sizes == [(8, 8)] * 2 + [(16, 16)] * 6


def test_resizing_keeps_proportions():
    small = progressively_resized(torch.zeros(2, 3, 20, 30), DataSettings(progressive_size=8), step=0, steps=1)
    assert small.shape == (2, 3, 8, 12)


def test_resizing_keeps_the_colours_of_even_areas():
    images = torch.zeros(1, 1, 16, 16)
    images[..., 8:] = 1.0
    small = progressively_resized(images, DataSettings(progressive_size=8), step=0, steps=1)
    torch.testing.assert_close(small[0, 0, :, 1], torch.zeros(8), atol=1e-6, rtol=0)
    torch.testing.assert_close(small[0, 0, :, 6], torch.ones(8), atol=1e-6, rtol=0)


def test_a_part_of_the_training_images_can_be_validated_on(stripes, tmp_path, monkeypatch, capsys):
    recipe = RECIPE.replaced(select_on=12, num_train=48, epochs=2)
    whole = train(recipe, run=tmp_path / "whole", data=stripes, device="cpu")
    said = capsys.readouterr().out
    assert "48 images to train on, 12 held-out training images to validate on" in said
    last = metrics(whole.run)[-1]
    assert (
        f"{last['val_accuracy']:.2%} on 12 held-out training images, {last['test_accuracy']:.2%} on the test images"
        in said
    )
    assert last["test_accuracy"] == pytest.approx(evaluate(whole.net, stripes.val).top1)
    selected = stripes.selecting_on(12)
    assert last["val_accuracy"] == pytest.approx(evaluate(whole.net, selected.val).top1)
    assert selected.val.labels.bincount().tolist() == [4, 4, 4]
    assert load(whole.run / "last.pt").card.provenance["validated_on"] == "12 held-out training images"

    stop_after(monkeypatch, 4)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", stripes)
    resumed = run(recipe, tmp_path / "run", stripes, resume=True)
    assert same_weights(resumed.net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)
    monkeypatch.setattr("diracnets.training.evaluating.evaluate", None)  # nothing is evaluated again
    assert run(recipe, tmp_path / "run", stripes, resume=True).history == resumed.history


def test_no_image_is_trained_on_and_validated_on(stripes):
    for count in (3, 30, 70):
        data = stripes.selecting_on(count)
        assert (len(data.train), len(data.val)) == (72 - count, count)
        train_set, val_set = ({*map(data_set.name, range(len(data_set)))} for data_set in (data.train, data.val))
        assert not train_set & val_set
        assert data.test is stripes.val
    with pytest.raises(UsageError, match="select_on is 71, but stripes has 72"):
        stripes.selecting_on(71)


def test_part_of_the_images_is_the_same_for_every_seed(stripes, tmp_path, monkeypatch):
    chosen, select = [], MemoryImages.select
    monkeypatch.setattr(MemoryImages, "select", lambda self, some: chosen.append(some) or select(self, some))
    for seed in (0, 1):
        trained = run(RECIPE.replaced(num_train=30, epochs=1, seed=seed), tmp_path / str(seed), stripes)
        assert trained.net.card.data == TrainedOn("stripes", 30, 30)
    assert chosen[0] == chosen[1]


@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.8}, {"precision": "bfloat16"}])
def test_recalibrate_bn_are_those_of_the_weights_that_are_evaluated(changes, stripes, tmp_path):
    """The mean over the last epoch's batches, as `update_bn` takes it, not a moving average along the way.

    In float32, as evaluation has it, also where training is in bfloat16."""
    recipe = RECIPE.replaced(epochs=2, recalibrate_bn=True, **changes)
    trained = run(recipe, tmp_path / "run", stripes)
    again = copy.deepcopy(trained.net)
    batches = stripes.train.batches(16, epoch=2, augment=RECIPE.data.augment, seed=0)
    update_bn((images for images, _, _ in batches), again)
    torch.testing.assert_close(again.state_dict(), trained.net.state_dict())
    assert trained.net.stem.bn.num_batches_tracked == STEPS
    if not changes:
        usual = run(recipe.replaced(recalibrate_bn=False), tmp_path / "usual", stripes)
        assert not usual.net.stem.bn.running_mean.equal(trained.net.stem.bn.running_mean)


@pytest.mark.parametrize("model", ["wrn-10-0.25", "resnet-8", "repvgg-10-0.25"])
def test_a_network_with_branches_is_kept_in_checkpoints_alone(model, stripes, tmp_path, capsys):
    recipe = RECIPE.replaced(model=model, width=0.25 if model == "resnet-8" else 1.0, epochs=1)
    trained = train(recipe, run=tmp_path / "run", data=stripes, device="cpu")
    assert (trained.chain, trained.model_file) == (None, None)
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert "has branches and folds to no chain" in capsys.readouterr().out.splitlines()[-1]
    for name in ("last.pt", "best.pt"):
        assert evaluate(load(tmp_path / "run" / name), stripes.val).top1 == trained.accuracy
    with pytest.raises(FoldError, match=f"{model} has branches"):
        write_model_file(trained.net, tmp_path / "model.safetensors")
    again = train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True, resume=True)
    assert same_weights(again.net, trained.net)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_train": 73}, "stripes has 72"),
        ({"model": "plain-10-0.25", "scale_lr": 0.1}, "no Dirac convolutions"),
        ({"model": "plain-10-0.25", "beta": 0.1}, "beta"),
        ({"progressive_size": 8}, "progressive_size is 8"),
        ({"progressive_size": 4}, "images from 8x8 on"),
    ],
)
def test_settings_that_do_not_suit_images_or_network(changes, message, stripes, tmp_path):
    with pytest.raises(UsageError, match=message):
        run(RECIPE.replaced(**changes), tmp_path / "run", stripes)
    assert not (tmp_path / "run").exists()


def test_a_run_whose_recipe_an_earlier_version_wrote_is_resumed(stripes, tmp_path, monkeypatch):
    recipe = RECIPE.replaced(recalibrate_bn=False)  # there was no other choice
    whole = run(recipe, tmp_path / "whole", stripes)
    stop_after(monkeypatch, 7)
    with pytest.raises(Interrupted):
        run(recipe, tmp_path / "run", stripes)
    old = {new: name for name, new in RENAMED.items() if name != "start"}
    settings = {old.get(name, name): value for name, value in recipe.settings().items() if value is not None}
    del settings[old.get("recalibrate_bn", "recalibrate_bn")]
    augment = {name: settings.pop(name) for name in recipe.table()["data"]["augment"]}
    (tmp_path / "run" / "recipe.toml").write_text(tomli_w.dumps({**settings, "augment": augment}))
    with pytest.warns(FutureWarning, match="earlier version"):
        recipe = Recipe.load(tmp_path / "run" / "recipe.toml")
    assert same_weights(run(recipe, tmp_path / "run", stripes, resume=True).net, whole.net)


def test_saving_within_an_epoch_loses_no_more_than_asked_for_and_resumes_bit_by_bit(
    whole, stripes, tmp_path, monkeypatch
):
    class Killed(BaseException):
        pass

    def kill_in(steps):
        count = iter(range(1, 10_000))

        def counting(*args, **kwargs):
            if next(count) == steps:
                raise Killed
            return nn.functional.cross_entropy(*args, **kwargs)

        return counting

    with monkeypatch.context() as patch:
        patch.setattr("diracnets.training.step.cross_entropy", kill_in(9))  # after 8 steps: 1 epoch and 3 batches
        with pytest.raises(Killed):
            run(RECIPE, tmp_path / "run", stripes, safeguards=Safeguards(save_every=2, keep=2))
    resume = read_checkpoint(tmp_path / "run" / "last.pt").resume
    assert (resume["epoch"], resume["batch"]) == (2, 3)
    assert len([*(tmp_path / "run" / "earlier").iterdir()]) == 2
    content = (tmp_path / "run" / "last.pt").read_bytes()
    (tmp_path / "run" / "last.pt").unlink()
    (tmp_path / "run" / "last.pt").write_bytes(content[:-1000])
    resumed = run(RECIPE, tmp_path / "run", stripes, resume=True)
    assert same_weights(resumed.net, whole.net)
    assert metrics(tmp_path / "run") == metrics(whole.run)
    assert len([*(tmp_path / "run" / "earlier").iterdir()]) == 2  # as the run was begun


def test_a_run_can_go_back_to_an_earlier_checkpoint(whole, stripes, tmp_path):
    first = run(RECIPE, tmp_path / "run", stripes, safeguards=Safeguards(keep=9))
    back = run(RECIPE, first.run, stripes, resume=True, start="earlier/epoch-0002-batch-000000.pt")
    assert same_weights(back.net, whole.net)
    assert metrics(first.run) == metrics(whole.run)
    with pytest.raises(FileError, match="is a checkpoint to evaluate"):
        run(RECIPE, first.run, stripes, resume=True, start=first.run / "best.pt")


def test_a_damaged_best_checkpoint_is_named_and_replaced(stripes, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, 12)
    with pytest.raises(Interrupted):
        run(RECIPE, tmp_path / "run", stripes)
    best = tmp_path / "run" / "best.pt"
    best.write_bytes(best.read_bytes()[:-100])
    train(RECIPE, run=tmp_path / "run", data=stripes, device="cpu", resume=True)
    assert "best.pt is damaged" in capsys.readouterr().out
    assert read_checkpoint(best).card.provenance["epoch"] > 2


def test_a_run_that_diverges_leaves_a_checkpoint_from_before(stripes, tmp_path, monkeypatch):
    monkeypatch.setattr("diracnets.training.epoch.CHECK_STEPS", 1)
    count = iter(range(10_000))

    def exploding(*args, **kwargs):
        return nn.functional.cross_entropy(*args, **kwargs) * (1.0 if next(count) < 7 else 50.0)

    monkeypatch.setattr("diracnets.training.step.cross_entropy", exploding)
    with pytest.raises(
        TrainingError, match=r"the run diverges: the loss has been above .* for 8 steps.*last\.pt is from"
    ):
        run(RECIPE, tmp_path / "run", stripes, safeguards=Safeguards(save_every=1, diverged_steps=8))
    resume = read_checkpoint(tmp_path / "run" / "last.pt").resume
    assert (resume["epoch"], resume["batch"]) == (2, 2)


def test_the_best_network_is_the_one_that_is_kept_said_and_tested(stripes, tmp_path, monkeypatch, capsys):
    """The second of three epochs is the best one, by a validation that says so."""
    honest, accuracies = evaluate, iter([0.2, 0.9, 0.5])

    def claimed(model, images, **options):
        found = honest(model, images, **options)
        return replace(found, top1=next(accuracies)) if images is not stripes.val else found

    monkeypatch.setattr("diracnets.training.evaluating.evaluate", claimed)
    recipe = RECIPE.replaced(epochs=3, select_on=12, swa_fraction=0.5)
    trained = train(recipe, run=tmp_path / "run", data=stripes, device="cpu")
    best, last = load(trained.run), load(trained.run / "last.pt")
    assert (trained.epoch, trained.accuracy, best.card.provenance["epoch"]) == (2, 0.9, 2)
    assert same_weights(trained.net, best)
    assert not same_weights(trained.net, last)
    assert trained.history[-1]["test_accuracy"] == evaluate(best, stripes.val).top1
    assert "90.00% on 12 held-out training images" in (said := capsys.readouterr().out)
    assert "epoch 2 of 3, the best" in said
    images = next(stripes.val.batches(8))[0]
    torch.testing.assert_close(load(trained.model_file)(images), best(images), atol=1e-4, rtol=1e-4)
    assert main(["fold", str(trained.run)]) == 0
    assert {path.name for path in trained.run.glob("*.safetensors")} == {"model.safetensors"}
    (trained.run / "best.pt").unlink()  # and no epoch is left that could replace it
    assert run(recipe, trained.run, stripes, resume=True).epoch == 3


def test_short_epochs_are_evaluated_with_statistics_of_their_own(stripes, tmp_path, capsys):
    """After five steps, running statistics are those of a network that is no more."""
    recipe = RECIPE.replaced(epochs=2)
    train(recipe, run=tmp_path / "usual", data=stripes, device="cpu")
    assert "running statistics lag by ten steps, and an epoch has 5" in capsys.readouterr().out
    asked = run(recipe.replaced(recalibrate_bn=True), tmp_path / "asked", stripes)
    lagging = run(recipe.replaced(recalibrate_bn=False), tmp_path / "lagging", stripes)
    losses = [row["val_loss"] for row in metrics(tmp_path / "usual")]
    assert losses == [row["val_loss"] for row in asked.history]
    assert losses[0] < lagging.history[0]["val_loss"]


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], None),
        (["--recalibrate-bn"], True),
        (["--no-recalibrate-bn"], False),
        (["--recalibrate-bn", "False"], False),
    ],
)
def test_recalibrating_is_a_flag_as_before_and_a_choice(flags, value):
    assert parse(["train", *flags, "--epochs", "1"]).settings.optimization.recalibrate_bn is value
