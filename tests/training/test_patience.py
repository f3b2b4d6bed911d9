import pytest
import torch

from diracnets.errors import UsageError
from diracnets.training import epoch
from diracnets.training.interruption import Interrupted
from diracnets.training.loop import train
from diracnets.training.patience import out_of_patience, waited
from diracnets.training.recipe import Recipe

pytestmark = pytest.mark.usefixtures("bare_runs")

RECIPE = Recipe().replaced(
    model="diracnet-10-0.25", init="kaiming", epochs=9, batch_size=36, lr=0.05, crop="pad", pad=1, precision="float32"
)


@pytest.mark.parametrize(
    ("accuracies", "expected"),
    [
        ([], 0),
        ([None], 0),
        ([0.5], 0),
        ([0.5, 0.6], 0),
        ([0.5, 0.5, 0.5], 2),  # an equal one is not better
        ([0.9, 0.5, 0.6, 0.7], 3),
        ([0.9, None, 0.5, None], 2),  # up to the last one that was evaluated
    ],
)
def test_epochs_are_counted_from_the_first_of_the_best(accuracies, expected):
    rows = [
        {"epoch": number} | ({} if found is None else {"val_accuracy": found})
        for number, found in enumerate(accuracies, start=1)
    ]
    assert waited(RECIPE.optimization, rows) == expected
    for patience in (1, 2, 3):
        asked = RECIPE.replaced(patience=patience).optimization
        assert out_of_patience(asked, rows) == (expected >= patience)
    assert not out_of_patience(RECIPE.optimization, rows)


def test_a_run_stops_says_why_and_is_finished(stripes, tmp_path, capsys, monkeypatch):
    """And one that was stopped in between ends at the same epoch with the same weights."""
    recipe = RECIPE.replaced(patience=2, schedule="cosine")
    found = iter([0.5, 0.7, 0.6, 0.7, *[0.9] * 9])
    measured = {}
    plain = epoch.evaluated

    def evaluated(run, images, net=None):
        evaluation = plain(run, images, net)
        if run.state.epoch not in measured:
            measured[run.state.epoch] = next(found)
        object.__setattr__(evaluation, "top1", measured[run.state.epoch])
        return evaluation

    monkeypatch.setattr(epoch, "evaluated", evaluated)
    whole = train(recipe, run=tmp_path / "whole", data=stripes, device="cpu")
    assert ([row["epoch"] for row in whole.history], whole.epoch) == ([1, 2, 3, 4], 4)
    told = capsys.readouterr().out
    assert "stopped early, after epoch 4 of 9: the validation accuracy has not risen for 2 epochs (patience)" in told
    assert "patience 2 may stop the run before the cosine schedule has brought the learning rate down" in told
    assert whole.model_file.exists()

    again = train(recipe, run=tmp_path / "whole", data=stripes, device="cpu", resume=True)
    assert len(again.history) == 4
    assert "this run is finished, 4 of 9 epochs" in capsys.readouterr().out

    def stop(row):
        if row["epoch"] == 3:
            raise Interrupted("enough", 2)

    with pytest.raises(Interrupted):
        train(recipe, run=tmp_path / "parts", data=stripes, device="cpu", quiet=True, on_epoch=stop)
    parts = train(recipe, run=tmp_path / "parts", data=stripes, device="cpu", quiet=True, resume=True)
    assert [row["epoch"] for row in parts.history] == [1, 2, 3, 4]
    for name, tensor in whole.net.state_dict().items():
        assert torch.equal(tensor, parts.net.state_dict()[name]), name


def test_patience_is_one_epoch_or_more():
    with pytest.raises(UsageError, match="patience is 0, but must be at least 1"):
        RECIPE.replaced(patience=0)
