import pytest
import torch

from diracnets.artifacts.card import ModelCard, card_of
from diracnets.deploy.integer import rounded_chain
from diracnets.errors import UsageError
from diracnets.folding.fold import fold
from diracnets.models.build import build_model
from diracnets.models.integer import IntConv

CARD = ModelCard((3, 32, 32), mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", ["diracnet-10-0.5", "plain-sprint-0.25"])
def test_int8_stays_close_to_float(name, per_channel):
    torch.manual_seed(0)
    chain = fold(build_model(name).eval())
    images = torch.rand(8, 3, 32, 32) * 2 - 1
    integers = rounded_chain(chain, CARD, images, per_channel=per_channel)
    assert card_of(integers) is CARD
    with torch.no_grad():
        expected = chain(images)
    assert (integers(images) - expected).norm() < 0.1 * expected.norm()
    scales = {layer.scales.size for layer in integers.layers if isinstance(layer, IntConv)}
    assert (scales == {1}) is not per_channel


def test_images_that_cannot_calibrate():
    chain = fold(build_model("diracnet-10-0.5").eval())
    with pytest.raises(UsageError, match="no images to calibrate"):
        rounded_chain(chain, CARD, torch.zeros(0, 3, 32, 32))
    with pytest.raises(UsageError, match=r"images of \[3, 28, 28\]"):
        rounded_chain(chain, CARD, torch.zeros(1, 3, 28, 28))
