import pytest
import torch
import torch.nn.functional as F

from diracnets.data.augment import Normalizer, augmented, check, crop_and_flip, cut_out
from diracnets.data.augmentation import Augmentation
from diracnets.errors import UsageError

SHAPES = [(6, 32, 32, 3), (5, 8, 8, 1), (4, 7, 12, 3), (3, 12, 7, 2), (1, 9, 9, 4)]


def noise(*shape):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("pad", [0, 1, 4, 6])
def test_crop_and_flip_equals_reflection_padding_and_slicing(shape, pad):
    pixels = noise(*shape)
    batch, height, width, _ = shape
    generator = torch.Generator().manual_seed(pad)
    top = torch.randint(-pad, pad + 1, (batch,), generator=generator)
    left = torch.randint(-pad, pad + 1, (batch,), generator=generator)
    top[0], left[0] = pad, -pad
    for mirror in (torch.zeros(batch).long(), torch.ones(batch).long(), torch.arange(batch) % 2):
        found = crop_and_flip(pixels, top, left, mirror, pad)
        padded = F.pad(pixels.permute(0, 3, 1, 2).float(), [pad] * 4, mode="reflect").permute(0, 2, 3, 1)
        for n in range(batch):
            y, x = pad + top[n], pad + left[n]
            expected = padded[n, y : y + height, x : x + width]
            assert found[n].float().equal(expected.flip(1) if mirror[n] else expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("side", [1, 2, 5])
def test_cutout_clears_a_square_and_nothing_else(shape, side):
    batch, height, width, channels = shape
    images = torch.rand(batch, height, width, channels).add(1).permute(0, 3, 1, 2)
    rows, columns = torch.arange(batch) * (height - 1) // max(1, batch - 1), torch.arange(batch) % width
    before = images.clone()
    cut_out(images, rows, columns, side)
    for n in range(batch):
        y, x = int(rows[n]) - side // 2, int(columns[n]) - side // 2
        expected = before[n].clone()
        expected[:, max(0, y) : y + side, max(0, x) : x + side] = 0
        assert images[n].equal(expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_normalized_values_and_layout(shape):
    pixels = noise(*shape)
    mean, std = [0.1 * (n + 1) for n in range(shape[3])], [0.2 + 0.1 * n for n in range(shape[3])]
    images = Normalizer((shape[3], *shape[1:3]), mean, std)(pixels)
    expected = (pixels.double() / 255 - torch.tensor(mean).double()) / torch.tensor(std).double()
    assert images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(images.permute(0, 2, 3, 1).double(), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(),
        Augmentation(flip=True),
        Augmentation(flip="alternating"),
        Augmentation(crop="pad", pad=2),
        Augmentation(cutout=3),
        Augmentation(crop="pad", pad=3, flip=True, cutout=4),
    ],
)
def test_an_image_is_augmented_alike_in_every_batch(augment):
    pixels, samples = noise(40, 10, 10, 3), torch.arange(100, 140)
    normalize = Normalizer((3, 10, 10), [0.5] * 3, [0.2] * 3)
    together = augmented(pixels, samples, augment, normalize, seed=7, epoch=3)
    pieces = [
        augmented(pixels[n : n + 7], samples[n : n + 7], augment, normalize, seed=7, epoch=3) for n in range(0, 40, 7)
    ]
    assert together.equal(torch.cat(pieces))
    unchanged = normalize(pixels)
    changed = (together != unchanged).flatten(1).any(1)
    assert changed.any() == (augment != Augmentation())
    if augment in (Augmentation(flip="random"), Augmentation(flip="alternating")):
        assert together[changed].equal(unchanged.flip(3)[changed])
        assert 10 < changed.sum() < 30
    if augment != Augmentation():
        assert not together.equal(augmented(pixels, samples, augment, normalize, seed=7, epoch=4))
        assert not together.equal(augmented(pixels, samples, augment, normalize, seed=8, epoch=3))


def test_all_shifts_and_both_mirrors_occur():
    ramp = torch.arange(64, dtype=torch.uint8).view(1, 8, 8, 1).expand(4000, 8, 8, 1).contiguous()
    normalize = Normalizer((1, 8, 8), [0.0], [1 / 255])
    images = augmented(ramp, torch.arange(4000), Augmentation(crop="pad", pad=2, flip=True), normalize, seed=0, epoch=0)
    kinds, counts = images.flatten(1).unique(dim=0, return_counts=True)
    assert len(kinds) == 5 * 5 * 2
    assert counts.min() > 40


@pytest.mark.parametrize(
    ("augment", "said"),
    [
        (Augmentation(crop="pad", pad=8), "pad 8 is too large for images of 8 pixels: take at most 7"),
        (Augmentation(cutout=8), "cutout 8 would hide all"),
    ],
)
def test_augmentation_that_does_not_suit_the_images(augment, said):
    with pytest.raises(UsageError, match=said):
        check(augment, (3, 8, 20))


def test_alternating_flips_show_every_image_both_ways():
    pixels, samples = noise(400, 4, 6, 1), torch.arange(400)
    normalize = Normalizer((1, 4, 6), [0.5], [0.2])

    def flipped(epoch, seed=0):
        found = augmented(pixels, samples, Augmentation(flip="alternating"), normalize, seed=seed, epoch=epoch)
        return (found == normalize(pixels).flip(3)).flatten(1).all(1)

    first = flipped(1)
    assert 150 < first.sum() < 250
    assert flipped(2).equal(~first)
    assert flipped(3).equal(first)
    assert not flipped(1, seed=1).equal(first)
