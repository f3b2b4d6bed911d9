import numpy as np
import pytest
import torch
from PIL import Image

from diracnets.data.decode import random_part
from diracnets.data.parts import DRAWS, random_boxes, random_parts, resized_parts
from diracnets.data.random import Stream, draw, fraction


def noise(count, height, width, channels):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, height, width, channels), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("size", [(12, 12), (9, 30), (40, 11)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("min_scale", [0.01, 0.3, 1.0])
def test_the_part_that_an_image_file_gives(size, channels, min_scale):
    pixels, samples = noise(30, *size, channels), torch.arange(30) * 7
    found = random_parts(pixels, samples, min_scale, seed=3, epoch=2)
    draws = fraction(draw(3, 2, samples, Stream.RESIZED, DRAWS)).T.tolist()
    for image, numbers, part in zip(pixels, draws, found, strict=True):
        picture = Image.fromarray(image.squeeze(2).numpy())
        expected = random_part(picture, (channels, *size), min_scale, numbers)
        assert np.abs(part.numpy().astype(int) - expected.astype(int)).max() <= 1


def test_where_no_attempt_lies_within_the_image_the_centre_is_taken():
    left, top, width, height = random_boxes(torch.full((DRAWS, 1), 0.999), height=8, width=100, min_scale=1.0)
    assert [int(number) for number in (left, top, width, height)] == [(100 - 11) // 2, 0, 11, 8]


def test_the_whole_is_left_as_it_is_and_a_half_in_size_is_antialiased():
    pixels = noise(2, 6, 8, 3)
    zero = torch.zeros(2, dtype=torch.float64)
    assert resized_parts(pixels, zero, zero, zero + 8, zero + 6).equal(pixels)
    stripes = torch.tensor([0, 255], dtype=torch.uint8).repeat(32).view(1, 1, 64, 1).expand(1, 4, 64, 1).contiguous()
    one = torch.zeros(1, dtype=torch.float64)
    enlarged = resized_parts(stripes, one, one, one + 4, one + 4)
    assert enlarged.min() < 20  # enlarged stripes stay stripes
    assert enlarged.max() > 235


def test_an_image_gets_its_part_in_any_company():
    pixels, samples = noise(20, 10, 10, 3), torch.arange(20)
    whole = random_parts(pixels, samples, 0.1, seed=0, epoch=1)
    halves = [random_parts(pixels[half], samples[half], 0.1, seed=0, epoch=1) for half in (slice(0, 3), slice(3, 20))]
    assert whole.equal(torch.cat(halves))
    assert not whole.equal(random_parts(pixels, samples, 0.1, seed=0, epoch=2))
    assert not whole.equal(random_parts(pixels, samples, 0.1, seed=1, epoch=1))
