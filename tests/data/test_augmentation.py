import subprocess
import sys

import pytest

from diracnets.data.augmentation import Augmentation
from diracnets.errors import UsageError


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"crop": "padd"}, "did you mean pad"),
        ({"crop": 3}, "crop must be one of none, pad, resized"),
        ({"pad": 0}, "pad must be .* not 0"),
        ({"pad": 1.5}, "not 1.5"),
        ({"pad": True}, "not True"),
        ({"min_scale": 0}, "min_scale .* not 0"),
        ({"min_scale": 1.01}, "not 1.01"),
        ({"min_scale": float("nan")}, "not nan"),
        ({"min_scale": "small"}, "not 'small'"),
        ({"flip": 1}, "flip must be one of none, random, alternating, not 1"),
        ({"flip": "alternate"}, "flip must be .* did you mean alternating"),
        ({"cutout": -1}, "cutout .* not -1"),
    ],
)
def test_impossible_values_are_refused_by_name(values, said):
    with pytest.raises(UsageError, match=said):
        Augmentation(**values)


def test_importing_it_imports_neither_torch_nor_numpy():
    code = "import sys, diracnets.data.augmentation; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("flag", "word"), [(True, "random"), (False, "none")])
def test_flips_may_be_told_by_true_and_false(flag, word):
    assert Augmentation(flip=flag) == Augmentation(flip=word)
