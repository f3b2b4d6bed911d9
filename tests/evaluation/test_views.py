import pytest
import torch
from torch import nn

from diracnets.evaluation.views import averaged_logits

IMAGES = torch.rand(3, 2, 6, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model():
    """Linear, so that the mean of its answers is its answer to the mean image."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(60, 4))


def shifted(images, down, right):
    padded = nn.functional.pad(images, [1] * 4, mode="reflect")
    return padded[:, :, 1 - down : 7 - down, 1 - right : 6 - right]


@pytest.mark.parametrize("views", ["one", "mirror", "mirror-shift"])
def test_logits_are_the_mean_over_the_views(views, model):
    mean = IMAGES
    if views == "mirror-shift":
        mean = mean / 2 + shifted(IMAGES, -1, -1) / 4 + shifted(IMAGES, 1, 1) / 4
    if views != "one":
        mean = (mean + mean.flip(3)) / 2
    torch.testing.assert_close(averaged_logits(model, IMAGES, views), model(mean))


def test_mirrored_images_get_the_same_answer(model):
    for views in ("mirror", "mirror-shift"):
        answers = [averaged_logits(model, images, views) for images in (IMAGES, IMAGES[:, :, :, [2, 1, 0, 1, 2]])]
        assert not answers[0].allclose(answers[1])  # another image
    symmetric = IMAGES + IMAGES.flip(3)
    torch.testing.assert_close(averaged_logits(model, symmetric, "mirror"), model(symmetric))


def test_short_types_are_averaged_in_float32(model):
    assert averaged_logits(model.bfloat16(), IMAGES.bfloat16(), "mirror").dtype == torch.float32
