import pytest
import torch
from torch import nn

from diracnets import DiracConv1d, DiracConv2d, Recipe, create_model, train
from diracnets.errors import FileError
from diracnets.training.scales import identity_share, layer_scales, read_scales, record_scales


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("channels", [(4, 4), (4, 8), (8, 4)])
def test_the_identity_is_all_of_a_dirac_filter_and_none_of_its_negative(channels, groups):
    filters = nn.init.dirac_(torch.empty(channels[1], channels[0] // groups, 3, 3), groups)
    share = identity_share(filters, groups)
    assert share.tolist() == [1.0] * min(channels)
    assert identity_share(-filters, groups).tolist() == [0.0] * min(channels)
    assert identity_share(0 * filters, groups).tolist() == [0.0] * min(channels)


def test_scales_of_a_layer_leave_out_the_channels_that_have_no_identity():
    torch.manual_seed(0)
    layer = DiracConv2d(4, 8, 3)
    with torch.no_grad():
        layer.alpha.copy_(torch.tensor([1.0, 2.0, 3.0, 2.0, 100.0, 100.0, 100.0, 100.0]))
        layer.beta.copy_(torch.tensor([0.5, -0.5] * 2 + [100.0] * 4))
    (scales,) = layer_scales(nn.ModuleDict({"one": layer}))
    assert (scales.layer, scales.alpha, scales.beta) == ("one", 2.0, 0.5)
    assert scales.ratio == pytest.approx((4.5**0.5) / 0.5)
    assert scales.norm == pytest.approx(float(layer.weight.detach().flatten(1).norm(dim=1).mean()))
    assert scales.ratio_by_norm == pytest.approx(scales.ratio / scales.norm)
    assert scales.identity == pytest.approx(float(identity_share(layer.effective_weight().detach()).mean()))


def test_filters_of_zeros_have_a_ratio_that_is_a_number():
    layer = DiracConv2d(4, 4, 3)
    nn.init.zeros_(layer.weight)
    assert 0 < layer_scales(layer)[0].ratio_by_norm < float("inf")


def test_the_identity_share_follows_from_the_ratio():
    layer = DiracConv1d(64, 64, 3, alpha=1.0, beta=0.5)
    (scales,) = layer_scales(layer)
    assert scales.identity == pytest.approx(1 / (1 + 0.5**2), abs=0.05)


def test_a_run_records_its_scales_from_the_start_on(tmp_path, stripes):
    recipe = Recipe().replaced(
        model="diracnet-10-0.25", epochs=2, batch_size=36, precision="float32", schedule="constant"
    )
    trained = train(recipe, run=tmp_path / "run", data=stripes, device="cpu", quiet=True)
    by_epoch = read_scales(tmp_path / "run" / "scales.jsonl")
    assert list(by_epoch) == [0, 1, 2]
    assert {layer.alpha for layer in by_epoch[0]} == {1.0}
    assert [layer.alpha for layer in by_epoch[2]] == pytest.approx(
        [layer.alpha for layer in layer_scales(trained.net)], rel=1e-5
    )
    assert by_epoch[1] != by_epoch[2]


def test_a_network_without_scales_writes_nothing(tmp_path):
    record_scales(tmp_path / "scales.jsonl", create_model("plain-10-0.25"), 1)
    assert not (tmp_path / "scales.jsonl").exists()


def test_an_epoch_done_again_replaces_what_it_was(tmp_path):
    path, net = tmp_path / "scales.jsonl", create_model("diracnet-10-0.25")
    record_scales(path, net, 1)
    with torch.no_grad():
        net.groups[0][0].conv.alpha.fill_(3.0)
    record_scales(path, net, 1)
    assert [layers[0].alpha for layers in read_scales(path).values()] == [3.0]


@pytest.mark.parametrize("text", ["{", '{"epoch": 1}', "[1]", '{"epoch": 1, "layer": ["a"], "alpha": []}'])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "scales.jsonl").write_text(text)
    with pytest.raises(FileError, match=r"scales\.jsonl is damaged"):
        read_scales(tmp_path / "scales.jsonl")
