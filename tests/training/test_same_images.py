import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from diracnets.data.load import load_data
from diracnets.errors import UsageError
from diracnets.training.interruption import Interrupted
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.same_images import fingerprints

pytestmark = pytest.mark.usefixtures("bare_runs")


@pytest.fixture
def pictures(tmp_path):
    """Ten pictures in two classes."""
    rng = np.random.default_rng(0)
    for kind in ("a", "b"):
        (tmp_path / "pictures" / kind).mkdir(parents=True)
        for number in range(5):
            pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / kind / f"é {number}.png")
    return tmp_path / "pictures"


def found(place):
    return fingerprints(load_data("folder", data_dir=place, image_size=8, workers=0))


def test_images_are_the_same_wherever_they_lie_and_others_if_one_has_another_name(pictures, tmp_path):
    before = found(pictures)
    copied = shutil.copytree(pictures, tmp_path / "elsewhere" / "copied")
    assert found(copied) == before
    a, b = (copied / "a" / f"é {number}.png" for number in (0, 1))
    for file, pixels in ((a, b.read_bytes()), (b, a.read_bytes())):
        file.write_bytes(pixels)
    assert found(copied)[0] == before[0]
    assert found(copied)[1] != before[1]
    (copied / "a" / "é 0.png").rename(copied / "a" / "é 7.png")
    assert found(copied)[0] != before[0]
    (pictures / "a" / "é 1.png").rename(pictures / "b" / "é 9.png")
    (pictures / "b" / "é 1.png").rename(pictures / "a" / "é 9.png")
    assert found(pictures)[0] != before[0]


def test_other_pixels_or_labels_of_a_set_in_memory_are_seen():
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)

    def known_by(pixels, labels):
        return fingerprints(load_data(list(zip(pixels, labels, strict=True))))

    labels = [0, 1] * 6
    before = known_by(pictures, labels)
    assert known_by(pictures.copy(), labels) == before
    assert known_by(pictures, [1, 0, *labels[2:]]) != before
    pictures[7, 3, 3, 1] ^= 1
    assert known_by(pictures, labels) != before


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_does_not_go_on_with_as_many_other_images(earlier, pictures, tmp_path):
    recipe = Recipe().replaced(
        model="diracnet-10-0.25", data="folder", image_size=8, epochs=2, batch_size=4, precision="float32"
    )
    options = {"run": tmp_path / "run", "data_dir": pictures, "device": "cpu", "workers": 0, "quiet": True}
    with pytest.raises(Interrupted):
        train(recipe, **options, on_epoch=lambda _: signal.raise_signal(signal.SIGTERM))
    (pictures / "a" / "é 0.png").rename(pictures / "a" / "other.png")
    with pytest.raises(UsageError, match="not the images that the run began with: some were renamed"):
        train(recipe, **options, resume=True)
    changed = (pictures / "a" / "other.png").rename(pictures / "a" / "é 0.png")
    before = changed.read_bytes()
    Image.new("RGB", (8, 8)).save(changed)
    with pytest.raises(UsageError, match="what is in some, or their labels, was changed"):
        train(recipe, **options, resume=True)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    if earlier:  # a run of an earlier version goes on, and then knows its images
        (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "contents": None}))
    else:
        changed.write_bytes(before)
    assert len(train(recipe, **options, resume=True).history) == 2
    assert (json.loads((tmp_path / "run" / "run.json").read_text()) == record) is not earlier
