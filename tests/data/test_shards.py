import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from diracnets.data.load import load_data
from diracnets.data.pack import pack
from diracnets.data.shard_where import find_shards
from diracnets.data.shards import find_samples
from diracnets.errors import DataError, FileError, UsageError

wds = pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def png(seed, size=8):
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(path, *samples):
    """A tar file of (name, content) members, or of samples as webdataset's writer takes them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file, wds.TarWriter(file, encoder=False) as tar:
        for sample in samples:
            tar.write(sample)
    return path


def numbered(first, count, classes=3):
    return [
        {"__key__": f"{n:04d}", "cls": str(n % classes).encode(), "png": png(n)} for n in range(first, first + count)
    ]


@pytest.fixture
def twelve(tmp_path):
    """Twelve shards of 10 images to train on, and one of 6 to validate."""
    for n in range(12):
        shard(tmp_path / "set" / f"train-{n:04d}.tar", *numbered(10 * n, 10))
    shard(tmp_path / "set" / "val-0000.tar", *numbered(500, 6))
    return tmp_path / "set"


def load(where, **options):
    return load_data("shards", data_dir=where, image_size=8, workers=0, **options)


def test_what_was_packed_is_what_the_folder_gives(split_folder, tmp_path):
    pack(split_folder, tmp_path / "shards", shard_images=5)
    folder = load_data("folder", data_dir=split_folder, image_size=24, workers=0)
    shards = load_data("shards", data_dir=tmp_path / "shards", image_size=24, workers=2)
    assert shards.classes == folder.classes == ("cat", "dog")
    for ours, theirs in ((shards.train, folder.train), (shards.val, folder.val)):
        found = [sorted((int(y), x.numpy().tobytes()) for x, y, _ in each.batches(1)) for each in (ours, theirs)]
        assert found[0] == found[1]
    assert shards.train.name(0).endswith("train-000000.tar/000000000.png") or "000000000." in shards.train.name(0)


def test_another_image_of_the_same_name_is_seen(twelve):
    before = load(twelve).train.content(range(120))
    samples = numbered(30, 10)
    samples[4]["png"] = png(7, size=9)
    assert load(twelve).train.content(range(120)) == before
    shard(twelve / "train-0003.tar", *samples)
    assert load(twelve).train.content(range(120)) != before


def test_a_pattern_has_the_classes_of_the_list_beside_it(split_folder, tmp_path):
    pack(split_folder, tmp_path / "shards", shard_images=5)
    data = load(f"train={tmp_path}/shards/train-*.tar::val={tmp_path}/shards/val-{{000000..000000}}.tar")
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.val)) == (12, 4)


def test_what_webdataset_writes_is_read(tmp_path):
    """Labels as numbers, names and JSON; images under other extensions; members that are neither."""
    picture = png(1)
    shard(
        tmp_path / "a.tar",
        {"__key__": "x/1", "cls": b"dog\n", "png": picture, "txt": b"a caption"},
        {"__key__": "x/2", "cls.txt": b"cat", "img.png": png(2), "npy": b"..."},
        {"__key__": "x/3", "json": json.dumps({"label": "cat", "url": "http://..."}).encode(), "png": png(3)},
        {"__key__": "x/4", "json": b'{"label": "dog"}', "jpg": png(4), "seg.png": png(5)},
        {"__key__": "__meta__", "txt": b"about"},
    )
    data = load(tmp_path / "a.tar")
    assert data.classes == ("cat", "dog")
    named = {data.train.name(i): int(data.train.labels[i]) for i in range(2)} | {
        data.val.name(i): int(data.val.labels[i]) for i in range(2)
    }
    assert sorted((name.split("/")[-1], label) for name, label in named.items()) == [
        ("1.png", 1),
        ("2.img.png", 0),
        ("3.png", 0),
        ("4.jpg", 1),
    ]
    everything = {data.train.image(i).tobytes() for i in range(2)} | {data.val.image(i).tobytes() for i in range(2)}
    assert Image.open(io.BytesIO(picture)).tobytes() in everything


def test_an_epoch_has_each_image_once_and_goes_from_shard_to_shard(twelve):
    data = load(twelve)
    for epoch in (1, 2):
        seen = torch.cat([indices for _, _, indices in data.train.batches(7, epoch=epoch, seed=3)])
        assert seen.sort().values.equal(torch.arange(120))
        assert len((seen[:60] // 10).unique()) == 6  # two windows of six shards
        assert len((seen[60:] // 10).unique()) == 6
        assert not (seen[:60] // 10).equal(seen[:60].sort().values // 10)
    whole = load(twelve / "train-{0000..0003}.tar")  # up to eight shards are one window
    first = torch.cat([indices for _, _, indices in whole.train.batches(16, epoch=1)])[:16]
    assert len(first // 10) == 16


def test_a_part_of_the_images_keeps_to_their_shards(twelve):
    some = load(twelve).with_fewer(60).train
    seen = torch.cat([indices for _, _, indices in some.batches(7, epoch=1)])
    assert len(seen) == 60
    files = [some.name(int(n)).split("/")[-2] for n in seen]
    assert len(set(files[:20])) <= 7


@pytest.mark.parametrize(
    ("names", "where", "train", "val"),
    [
        (["imagenet1k-train-0000.tar", "imagenet1k-validation-00.tar"], "", 1, 1),
        (["train/0.tar", "train/1.tar", "test/0.tar"], "", 2, 1),
        (["00000.tar", "00001.tar"], "", 2, 0),
        (["train-0.tar", "val-0.tar", "test-0.tar"], "", 1, 1),
        (["a-0.tar", "a-1.tar", "b-0.tar"], "train=DIR/a-{0..1}.tar::val=DIR/b-*.tar", 2, 1),
        (["pets-train-0.tar", "pets-val-0.tar"], "DIR/pets-{train,val}-0.tar", 1, 1),
        (["x/t-0.tar", "x/t-1.tar"], "DIR/**/t-*.tar", 2, 0),
    ],
)
def test_what_shards_are_for(tmp_path, names, where, train, val):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = find_shards(where.replace("DIR", str(tmp_path)) or tmp_path)
    assert (len(found.train), len(found.val)) == (train, val)
    assert len(found.notes) == sum("test-0" in name for name in names)


def test_places_that_are_none(tmp_path, twelve):
    (tmp_path / "empty").mkdir()
    (tmp_path / "packed").mkdir()
    (tmp_path / "packed" / "a.tar.gz").write_bytes(b"")
    for where, kind, message in [
        (tmp_path / "empty", DataError, "no shards"),
        (tmp_path / "packed", DataError, "compressed"),
        (tmp_path / "nowhere", FileError, "there is no"),
        (tmp_path / "set" / "x*.tar", FileError, "no file matches"),
        ("s3://bucket/a.tar", UsageError, "neither a path nor an http"),
        (twelve / "val-0000.tar", DataError, "validate on only"),
        (twelve / "train-{0000..0001.tar", UsageError, "braces"),
        (f"{twelve}/train-0000.tar::{twelve}/train-0000.tar", UsageError, "given twice"),
        (f"train={twelve}/train-0000.tar::val={twelve}/train-0000.tar", UsageError, "both to train and to validate"),
    ]:
        with pytest.raises(kind, match=message):
            load(where)
    with pytest.raises(UsageError, match=r"which: give .*--data-dir"):
        load(None)


def test_classes_from_a_file(tmp_path):
    shard(tmp_path / "a.tar", *numbered(0, 12))
    assert load(tmp_path).classes == ("0", "1", "2")
    (tmp_path / "classes.txt").write_text("eel\ncat\ndog\n")
    assert load(tmp_path).classes == ("eel", "cat", "dog")
    (tmp_path / "two.txt").write_text("eel\ncat\n")
    with pytest.raises(DataError, match="none of the 2 classes"):
        load(f"{tmp_path}::classes={tmp_path}/two.txt")


def bad_samples():
    return [
        {"__key__": "nolabel", "png": png(1)},
        {"__key__": "noimage", "cls": b"1"},
        {"__key__": "two", "cls": b"1", "png": png(1), "jpg": png(2)},
        {"__key__": "0001", "cls": b"1", "png": png(1)},  # there already
        {"__key__": "odd", "cls": b"-3", "png": png(1)},
        {"__key__": "deep", "json": b"[" * 100_000, "png": png(1)},
        {"__key__": "long", "cls": b"1" * 5000, "png": png(1)},
        {"__key__": "../../../etc/evil", "cls": b"x" * 2000, "png": png(1)},
    ]


def test_samples_that_cannot_be_used_are_left_out_and_named(tmp_path):
    shard(tmp_path / "a.tar", *numbered(0, 40), *bad_samples())
    with pytest.raises(DataError, match=r"8 of 48 samples \(16.67%\) cannot be used, and 0.00%.*nolabel: no label"):
        load(tmp_path)
    data = load(tmp_path, skip_unreadable=0.2)
    assert len(data.train) + len(data.val) == 40
    [note] = [line for line in data.notes if "left out" in line]
    assert all(sample["__key__"] in note for sample in bad_samples())
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} >= {"a.tar"}
    assert not list(tmp_path.rglob("evil*"))


def test_a_shard_that_is_cut_off(tmp_path):
    whole = shard(tmp_path / "train-0.tar", *numbered(0, 40)).read_bytes()
    (tmp_path / "train-0.tar").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="is cut off: its"):
        load(tmp_path)
    assert 15 < len(load(tmp_path, skip_unreadable=0.1).train) < 20
    (tmp_path / "train-0.tar").write_bytes(b"\x1f\x8b" + whole)
    with pytest.raises(DataError, match=r"train-0.tar is compressed"):
        load(tmp_path)


def test_the_index_is_made_once_and_not_for_another_shard(twelve, cache, monkeypatch):
    load(twelve)
    import diracnets.data.shard_files as module

    looked = []
    real = module.index_shard
    monkeypatch.setattr(module, "index_shard", lambda file: looked.append(file.name) or real(file))
    load(twelve)
    assert looked == []
    changed = twelve / "train-0003.tar"
    shard(changed, *numbered(900, 9))
    assert len(load(twelve).train) == 119
    assert looked == [str(changed)]
    for file in (cache / "indices").glob("*.json"):  # whatever stands there, it is only believed if it is sound
        file.write_text(file.read_text().replace('"offsets":[', '"offsets":[-5,', 1))
    assert len(load(twelve).train) == 119
    assert len(looked) == 14


def test_a_shard_that_changes_meanwhile_is_an_error(twelve):
    data = load(twelve)
    shard(twelve / "train-0003.tar", *[{**each, "png": png(0, 16)} for each in numbered(900, 9)])
    with pytest.raises(FileError, match=r"train-0003.tar has changed since it was indexed"):
        list(data.train.batches(16))


def test_a_cache_that_cannot_be_written_changes_nothing(twelve, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DIRACNETS_HOME", str(tmp_path / "file"))
    assert len(load(twelve).train) == 120


def test_shards_of_a_list_are_checked_against_it(split_folder, tmp_path):
    pack(split_folder, tmp_path / "shards", shard_images=20)
    file = tmp_path / "shards" / "train-000000.tar"
    with tarfile.open(file) as tar:
        end = tar.getmembers()[10].offset
    file.write_bytes(file.read_bytes()[:end])
    with pytest.raises(DataError, match=r"holds less than is listed, 9 or more are lost|9 of 16"):
        find_samples(tmp_path / "shards")
    info = json.loads((tmp_path / "shards" / "_info.json").read_text())
    listed = info["splits"]["train"]["shards"][0]
    for key, value in (("sha256", ""), ("sha256", "12ab"), ("sha256", 5), ("bytes", -1), ("bytes", "many")):
        info["splits"]["train"]["shards"][0] = {**listed, key: value}
        (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
        with pytest.raises(FileError, match=r"is no SHA-256|is no number of bytes"):
            find_samples(tmp_path / "shards")
    for images in (float("inf"), -1, 10**400, "8"):
        info["splits"]["train"] |= {"shards": [], "shard_lengths": [images] * 8}
        (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
        with pytest.raises(FileError, match="not a list of shards"):
            find_samples(tmp_path / "shards")
    for name in ("../../secret.tar", "\ud800.tar"):
        info["splits"]["train"]["filenames"] = [name]
        (tmp_path / "shards" / "_info.json").write_text(json.dumps(info))
        with pytest.raises(DataError, match="not beside it"):
            find_samples(tmp_path / "shards")
