"""What holds of shards and of Parquet files alike: ranks, workers, resuming, and images that cannot be used."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from diracnets.cli import main
from diracnets.data.augmentation import Augmentation
from diracnets.data.check import check
from diracnets.data.load import load_data
from diracnets.data.share import Share
from diracnets.errors import DataError, FileError, UsageError
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe


def png(seed, size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def numbered(first, count, classes=3):
    """Pairs of an image and its label."""
    return [(png(n), n % classes) for n in range(first, first + count)]


class Shards:
    suffix = ".tar"

    def __init__(self):
        pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')

    def write(self, path, pairs):
        from webdataset import TarWriter

        with path.open("wb") as file, TarWriter(file, encoder=False) as tar:
            for n, (image, label) in enumerate(pairs):
                tar.write({"__key__": f"{n:04d}", "cls": str(label).encode(), "png": image})

    def name(self, file, n):
        return f"{file}.tar/{n:04d}.png"


class Parquet:
    suffix = ".parquet"

    def __init__(self):
        pytest.importorskip("pyarrow", reason='needs pip install "diracnets[parquet]"')

    def write(self, path, pairs):
        import pyarrow as pa
        from pyarrow.parquet import write_table

        images = [{"bytes": image, "path": None} for image, _ in pairs]
        write_table(pa.table({"image": images, "label": [label for _, label in pairs]}), path, row_group_size=4)

    def name(self, file, n):
        return f"{file}.parquet row {n}"


@pytest.fixture(params=[Shards, Parquet])
def kind(request, tmp_path, monkeypatch):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "cache"))
    return request.param()


@pytest.fixture
def twelve(tmp_path, kind):
    """Writes a file of the set again, or all: twelve files of 10 images to train on, and one of 6 to validate."""
    folder = tmp_path / "set"
    folder.mkdir()

    def write(name, pairs):
        kind.write(folder / f"{name}{kind.suffix}", pairs)
        return folder

    for n in range(12):
        write(f"train-{n:04d}", numbered(10 * n, 10))
    write("val-0000", numbered(500, 6))
    write.folder = folder
    return write


def load(kind, where, *, workers=0, **options):
    return load_data(type(kind).__name__.lower(), data_dir=where, image_size=8, workers=workers, **options)


def damaged_inside(content):
    """A picture whose end is there, and which cannot be decoded."""
    middle = content.index(b"IDAT") + 10
    return content[:middle] + bytes(30) + content[middle + 30 :]


def assert_joined(shares, expected):
    """The shares of all ranks together are the batches of one."""
    for parts, wanted in zip(zip(*shares, strict=True), expected, strict=True):
        for pieces, whole in zip(zip(*parts, strict=True), wanted, strict=True):
            assert torch.cat(pieces).equal(whole)


@pytest.mark.parametrize("workers", [0, 2])
def test_any_ranks_and_workers_and_a_resumed_epoch_see_each_image_once(kind, twelve, workers):
    options = {"epoch": 2, "augment": Augmentation(flip=True, crop="resized"), "seed": 5}
    expected = list(load(kind, twelve.folder).train.batches(16, **options))
    assert torch.cat([indices for _, _, indices in expected]).sort().values.equal(torch.arange(120))
    other = load(kind, twelve.folder, workers=workers).train
    for first, ranks in ((0, 3), (3, 1), (5, 2)):
        shares = [list(other.batches(16, **options, first=first, share=Share(r, ranks))) for r in range(ranks)]
        assert_joined(shares, expected[first:])


@pytest.fixture
def with_damage(twelve):
    """Two images of the third file cannot be decoded, which only shows when it is tried."""
    pairs = numbered(20, 10)
    twelve("train-0002", [(damaged_inside(i), y) if n in (4, 5) else (i, y) for n, (i, y) in enumerate(pairs)])
    return twelve


@pytest.mark.parametrize("workers", [0, 2])
def test_another_image_stands_in_for_one_that_cannot_be_decoded(kind, with_damage, workers):
    options = {"epoch": 1, "augment": Augmentation(flip=True, crop="resized"), "seed": 5}
    folder = with_damage.folder
    with pytest.raises(DataError, match=rf"({kind.name('0002', 4)}|{kind.name('0002', 5)}) cannot be decoded"):
        list(load(kind, folder).train.batches(16, **options))
    images = load(kind, folder, skip_unreadable=0.1).train
    expected = list(images.batches(16, **options))
    seen = torch.cat([indices for _, _, indices in expected])
    assert torch.bincount(seen).tolist() == [1] * 24 + [0, 0, 3] + [1] * 93  # its neighbour is seen for both
    assert sorted(images.skipped) == [24, 25]
    assert kind.name("train-0002", 4) in images.skipped[24]
    other = load(kind, folder, workers=workers, skip_unreadable=0.1).train
    shares = [list(other.batches(16, **options, first=2, share=Share(rank, 2))) for rank in range(2)]
    assert_joined(shares, expected[2:])


def test_too_many_that_cannot_be_decoded_are_an_error(kind, with_damage):
    images = load(kind, with_damage.folder, skip_unreadable=0.009).train  # one of 126
    with pytest.raises(DataError, match=r"2 of 120 images cannot be read, and 1 may be skipped: .*0002"):
        list(images.batches(16, epoch=1))


@pytest.mark.usefixtures("bare_runs")
@pytest.mark.parametrize("kind", [Parquet], indirect=True)
def test_a_run_names_what_it_skips(kind, with_damage, tmp_path, capsys):
    recipe = Recipe.load("demo").replaced(
        model="diracnet-10-0.25", epochs=1, batch_size=16, precision="float32", image_size=8,
        data=type(kind).__name__.lower(),
    )  # fmt: skip
    trained = train(recipe, run=tmp_path / "a", data=load(kind, with_damage.folder, skip_unreadable=0.1), device="cpu")
    assert [row["skipped"] for row in trained.history] == [2]
    assert capsys.readouterr().out.count("skipped, another image stands in for it: ") == 2


def numbers(images):
    """Of images, within their file."""
    return [
        int(images.name(n).replace(" row ", "/").removesuffix(".png").rpartition("/")[2]) for n in range(len(images))
    ]


@pytest.mark.parametrize("held_out", [False, True])
def test_images_to_validate_on_are_decoded_first_where_some_may_be_bad(kind, twelve, tmp_path, held_out):
    where, name, pairs = twelve.folder, "val-0000", numbered(500, 6)
    if held_out:  # of a file that alone is the set
        where, name, pairs = twelve.folder / f"train-0003{kind.suffix}", "train-0003", numbered(30, 30)
        twelve(name, pairs)
    good = load(kind, where)
    number = numbers(good.val)[1]
    twelve(name, [(damaged_inside(i), y) if n == number else (i, y) for n, (i, y) in enumerate(pairs)])
    assert len(load(kind, where).val) == len(good.val)
    data = load(kind, where, skip_unreadable=0.2)
    assert len(data.val) == len(good.val) - 1 == len([*data.val.batches(1)])
    assert len(data.train) == len(good.train)  # whose order must not depend on what may be skipped
    assert any(good.val.name(1) in line for line in data.notes)


def test_images_that_are_cut_off_are_named_before_training(kind, twelve):
    pairs = numbered(0, 10)
    twelve("train-0000", [*pairs[:2], (pairs[2][0][:-100], 2), *pairs[3:]])
    with pytest.raises(
        DataError, match=rf"1 of 126 samples \(0.79%\) cannot be used.*{kind.name('0000', 2)} cannot be"
    ):
        load(kind, twelve.folder)
    assert len(load(kind, twelve.folder, skip_unreadable=0.01).train) == 119


def test_good_images_are_looked_at_once(kind, twelve, monkeypatch):
    load(kind, twelve.folder)
    looked = []
    monkeypatch.setattr("diracnets.data.readable.check_whole", lambda _, name: looked.append(name))
    load(kind, twelve.folder)
    assert looked == []
    twelve("train-0003", numbered(900, 9))
    load(kind, twelve.folder)
    assert sorted(looked) == [f"{twelve.folder}/{kind.name('train-0003', n)}" for n in range(9)]


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_wrong_is_listed(kind, twelve, capsys, workers):
    pairs = numbered(20, 10)
    twelve("train-0002", [(damaged_inside(i), y) if n == 4 else (i, y) for n, (i, y) in enumerate(pairs)])
    twelve("train-0005", [*numbered(50, 8), (png(50), 0), (png(59), 2)])  # two labels
    twelve("val-0000", [*numbered(500, 4), (png(31), 1), (png(11), 0), (png(700, 4), 7)])
    found = {}
    for each in check(twelve.folder, workers=workers, smallest=8).findings:
        found.setdefault(each.kind, []).append(each.files)
    t, v = "train-", "val-0000"
    name = kind.name
    assert found == {
        "unreadable": [(name(f"{t}0002", 4),)],
        "other classes": [("7",)],
        "two labels": [(name(f"{t}0001", 1), name(v, 5)), (name(f"{t}0005", 0), name(f"{t}0005", 8))],
        "in train and val": [(name(f"{t}0003", 1), name(v, 4))],
        "tiny": [(name(v, 6),)],
    }
    assert main(["data", "check", str(twelve.folder), "--workers", str(workers), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["images"] == 127


def test_a_copy_that_the_split_would_tear_apart_is_found(kind, tmp_path):
    file = tmp_path / f"pets{kind.suffix}"
    kind.write(file, numbered(0, 30))
    data = load(kind, file)
    one, other = next(n for n in numbers(data.val) if n % 3 == 0), next(n for n in numbers(data.train) if n % 3 == 0)
    pairs = numbered(0, 30)
    pairs[one] = pairs[other]
    kind.write(file, pairs)
    assert "in train and val" in {each.kind for each in check(file, workers=0).findings}


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["cat", "do\x1b[2Jg"], r"the class do\\x1b\[2Jg has control characters in its name: rename it"),
        ([0, (1 << 31) - 1], r"there is a label of 2,147,483,647, and without a list of classes"),
    ],
)
def test_a_label_of_a_stranger_acts_on_no_terminal_and_fills_no_memory(kind, tmp_path, labels, said):
    file = tmp_path / f"pets{kind.suffix}"
    kind.write(file, [(png(n), labels[n % 2]) for n in range(6)])
    with pytest.raises(DataError, match=said):
        load(kind, file)


def test_a_file_that_is_given_twice_by_another_name_is_refused(kind, tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    kind.write(folder / f"train-0{kind.suffix}", numbered(0, 6))
    (folder / f"val-0{kind.suffix}").symlink_to(folder / f"train-0{kind.suffix}")
    with pytest.raises(UsageError, match=r"val-0.* is given both to train and to validate on"):
        load(kind, folder)
    (folder / f"val-0{kind.suffix}").rename(folder / f"train-1{kind.suffix}")
    with pytest.raises(UsageError, match=r"train-0.*train-1.* is given twice"):
        load(kind, folder)


def test_classes_that_cannot_be_learned_or_told_apart_are_named(kind, twelve):
    twelve("val-0000", [*numbered(500, 5), (png(9), 4)])
    assert "classes without an image to train on: 3, 4" in load(kind, twelve.folder).notes
    twelve("train-0000", [(png(n), ("Cat", "cat")[n % 2]) for n in range(8)])
    findings = check(twelve.folder / f"train-0000{kind.suffix}", workers=0).findings
    assert [each.files for each in findings if each.kind == "case"] == [("Cat", "cat")]


def test_a_list_that_is_longer_than_a_path_can_be(kind, twelve):
    if isinstance(kind, Shards):
        where = "::".join(f"/{'./' * 400}{twelve.folder}/train-{n:04d}.tar" for n in range(8))
        assert len(where) > 4096
        assert len(load(kind, where).train) == 65
        assert check(where, workers=0).images == 80
    with pytest.raises(FileError, match="x"):
        load(kind, "x" * 300)
