import pytest
import torch

from diracnets.data.share import Share
from diracnets.training.inputs import mixed, mixup_share, with_mixed_in


def test_a_share_depends_on_seed_epoch_and_batch_alone():
    shares = [mixup_share(0.4, 0, epoch, batch) for epoch in (1, 2) for batch in range(50)]
    assert shares == [mixup_share(0.4, 0, epoch, batch) for epoch in (1, 2) for batch in range(50)]
    assert len(set(shares)) == 100
    assert mixup_share(0.4, 1, 1, 0) != shares[0]


@pytest.mark.parametrize(("mixup", "mean"), [(0.1, 0.93), (1.0, 0.75), (10.0, 0.59)])
def test_shares_are_those_of_a_beta_distribution(mixup, mean):
    shares = [mixup_share(mixup, 0, 1, batch) for batch in range(400)]
    assert all(0.5 <= share <= 1 for share in shares)
    assert sum(shares) / len(shares) == pytest.approx(mean, abs=0.03)


def test_images_are_mixed_with_those_whose_labels_they_share():
    images, labels = torch.eye(4), torch.arange(4)
    sums = mixed(images, 0.7)
    for row, own, other in zip(sums, *with_mixed_in(labels), strict=True):
        assert row[own] == pytest.approx(0.7)
        assert row[other] == pytest.approx(0.3)
        assert row.sum() == pytest.approx(1.0)


def test_a_part_of_a_batch_is_mixed_as_the_whole_is():
    images = torch.rand(7, 1, 2, 2)
    shares = [Share(rank, 3, before=1).of(images) for rank in range(3)]
    assert torch.cat([mixed(share, 0.7, ring=False) for share in shares]).equal(mixed(images, 0.7))
    assert mixed(images[:0], 0.7, ring=False).shape == (0, 1, 2, 2)
