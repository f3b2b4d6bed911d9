from itertools import chain

import pytest
import torch

from diracnets.data.augmentation import Augmentation
from diracnets.data.load import load_data
from diracnets.data.memory import MemoryImages
from diracnets.data.share import Share, cut

AUGMENT = Augmentation(crop="pad", pad=2, flip=True, cutout=3)
RESIZED = Augmentation(crop="resized", min_scale=0.2, cutout=3)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
def test_the_shares_of_a_batch_are_the_batch_and_none_is_a_single_image(size, ranks):
    shares = [Share(rank, ranks).of(torch.arange(size)) for rank in range(ranks)]
    assert torch.cat(shares).equal(torch.arange(size))
    sizes = [len(share) for share in shares if len(share)]
    assert max(sizes) - min(sizes) <= 1
    assert size == 1 or min(sizes) >= 2
    for rank, share in enumerate(shares):
        if len(share):
            assert Share(rank, ranks, before=1).of(torch.arange(size))[:-1].equal((share - 1) % size)


def joined(parts):
    return [torch.cat(each) for each in zip(*parts, strict=True)]


@pytest.mark.parametrize("augment", [AUGMENT, RESIZED])
@pytest.mark.parametrize("ranks", [2, 3])
@pytest.mark.parametrize("kind", ["memory", "stream"])
def test_ranks_see_together_what_one_process_sees(kind, ranks, augment, split_folder):
    if kind == "memory":
        pixels = torch.randint(0, 256, (13, 8, 8, 3), dtype=torch.uint8)
        images = MemoryImages(pixels, torch.arange(13), name="noise", mean=[0.5] * 3, std=[0.25] * 3)
    else:
        images = load_data("folder", data_dir=split_folder, image_size=16, workers=1).train
        images = images.select([*range(len(images)), 0])  # 13
    asked = {"epoch": 1, "augment": augment, "seed": 3, "first": 1}
    whole = list(images.batches(5, **asked))
    shares = [list(images.batches(5, **asked, share=Share(rank, ranks))) for rank in range(ranks)]
    assert {len(share) for share in shares} == {len(whole)} == {2}
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(one.equal(other) for one, other in zip(batch, joined(parts), strict=True))
    unchanged = list(images.batches(2, share=Share(ranks - 1, ranks)))  # a rank that gets nothing
    assert [len(labels) for _, labels, _ in unchanged] == [0] * 7
    assert unchanged[0][0].shape == (0, *whole[0][0].shape[1:])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_parts_of_a_batch_are_the_same_for_any_number_of_ranks(ranks):
    batch = torch.arange(17)
    for part, (begin, end) in enumerate(cut(17, 3)):
        pieces = [Share(rank, ranks, parts=3).pieces(17)[part] for rank in range(ranks)]
        assert torch.cat([batch[slice(*piece)] for piece in pieces]).equal(batch[begin:end])
    share = Share(ranks - 1, ranks, parts=3, before=1)
    pieces = [[(begin - 1) % 17, *range(begin, end)] for begin, end in share.pieces(17) if begin < end]
    assert share.of(batch).tolist() == list(chain.from_iterable(pieces))
