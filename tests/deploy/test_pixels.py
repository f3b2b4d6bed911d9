import torch

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.pixels import integers_of_pixels
from diracnets.models.fixed_point import Quantization
from diracnets.models.integer import IntegerChain, IntPool


def test_each_pixel_becomes_the_integer_nearest_to_it_normalized():
    mean, std = torch.tensor([0.4914, 0.123, 0.9]), torch.tensor([0.247, 0.31, 0.2])
    card = ModelCard((3, 16, 16), tuple(mean.tolist()), tuple(std.tolist()))
    pixels = torch.arange(256).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    for step in (Quantization(0.02, -31), Quantization(0.04, 90)):
        pool = IntPool("0", "max", (1, 1), (1, 1), (0, 0), step, (3, 16, 16), (3, 16, 16))
        found = integers_of_pixels(IntegerChain([pool]), card).integers(pixels.short() - 128).view(3, 256)
        real = (torch.arange(256) / 255 - mean[:, None]) / std[:, None] / step.scale + step.zero_point
        assert (found - real.clamp(-128, 127)).abs().max() < 0.51
