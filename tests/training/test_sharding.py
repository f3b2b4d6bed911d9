"""A network divided among processes (`--shard`, FSDP2) trains as a whole one, is saved as one, and resumed as one."""

import pytest
import torch
from ranks import assert_same, findings, once, start

from diracnets.analysis.plan_step import traced_step
from diracnets.errors import UsageError
from diracnets.models.build import on_meta
from diracnets.training.loop import train
from diracnets.training.scales import read_scales
from diracnets.training.settings import OptimizationSettings

pytestmark = pytest.mark.usefixtures("bare_runs")


@pytest.fixture(scope="module")
def two(ranks, tmp_path_factory):
    with once(tmp_path_factory, "divided") as (folder, first):
        if first:
            ranks.ended(folder / "begun-alone", 1, "signalled")
            start(2, folder, "sharded:muon", "sharded:frozen", "stopped-sharded", "resumed-sharded:begun-alone")
    return folder, findings(2, folder)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "tolerance"), [("muon", 1e-4), ("frozen", 2e-5)])
def test_two_processes_train_a_divided_network_as_one_trains_a_whole_one(case, tolerance, two, one):
    """By Muon and in parts, with synchronized norms or with frozen blocks."""
    for mine in two[1]:
        assert_same(mine[f"sharded:{case}"], one(case), tolerance)


@pytest.mark.slow
def test_a_run_that_two_began_divided_is_resumed_by_one_and_the_reverse(two, one, ranks):
    """With clipped gradients, an average and its statistics; the same images, and whole tensors in the checkpoint."""
    folder, found = two
    saved = torch.load(folder / "stopped-sharded" / "last.pt", weights_only=True)["resume"]
    assert all(type(tensor) is torch.Tensor for tensor in (*saved["net"].values(), *saved["average"].values()))
    assert {end["stopped-sharded"]["error"] for end in found} == {"Interrupted"}
    assert "--shard" in found[0]["stopped-sharded"]["says"]
    alone = ranks.trained("sync", folder / "stopped-sharded", resume=True)
    divided = [mine["resumed-sharded:begun-alone"] for mine in found]
    for resumed in (alone, *divided):
        assert_same(resumed, one("sync"))
    left = one("sync")["seen"][-(37 - 2 * 8 + 37) :]  # those of three batches, and of the statistics in the end
    assert alone["seen"] == left
    assert sorted(each for mine in divided for each in mine["seen"]) == sorted(left)
    assert sorted(read_scales(folder / "begun-alone" / "scales.jsonl")) == [0, 1, 2]
    assert (folder / "begun-alone" / "model.safetensors").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("case", "as_"), [("sync", "resumed-sharded:begun-alone"), ("muon", "sharded:muon")])
def test_each_process_keeps_half_of_weights_optimizer_state_and_average(case, as_, two, one):
    net = on_meta({"name": "diracnet-10-0.25", "num_classes": 3, "in_channels": 1, "image_size": (8, 8)})
    planned = traced_step(net, OptimizationSettings(), "float32").kept(2)
    for kind, whole in one(case)["numbers"].items():
        kept = [mine[as_]["numbers"][kind] for mine in two[1]]
        assert sum(kept) == whole
        assert max(kept) <= 0.505 * whole  # of three filters, one process has two
        if kind == "weights":
            assert max(kept) == round(planned * whole)


@pytest.mark.parametrize(
    ("settings", "own", "words"),
    [
        ({}, None, "this one is alone"),
        ({"compile": True}, None, "leave one out"),
        ({}, torch.nn.Linear(2, 2), "of your own"),
    ],
)
def test_what_cannot_be_divided_is_refused_before_a_folder_is_made(settings, own, words, ranks, tmp_path):
    recipe = ranks.RECIPE.replaced(**settings)
    with pytest.raises(UsageError, match=words):
        train(recipe, run=tmp_path / "run", net=own, data=ranks.stripes(), device="cpu", quiet=True, shard=True)
    assert not (tmp_path / "run").exists()
