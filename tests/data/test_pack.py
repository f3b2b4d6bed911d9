import gc
import json
import tarfile
from collections import Counter
from types import SimpleNamespace

import pytest

from diracnets.cli import main
from diracnets.data.folder import find_images
from diracnets.data.pack import pack
from diracnets.data.packed import damaged, read_list
from diracnets.errors import DataError, FileError, UsageError

wds = pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')


def samples(folder, part):
    """What webdataset itself reads; it leaves closing the files to the garbage collector."""
    urls = [str(file) for file in sorted(folder.glob(f"{part}-*.tar"))]
    found = list(wds.WebDataset(urls, shardshuffle=False, empty_check=False))
    gc.collect()
    return found


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_webdataset_reads_the_same_bytes_and_labels(split_folder, tmp_path):
    pack(split_folder, tmp_path / "shards", shard_images=5)
    kinds = ("jpg", "png", "webp", "bmp", "gif", "tiff")
    for part, listing in zip(("train", "val"), find_images(split_folder), strict=True):
        found = samples(tmp_path / "shards", part)
        got = {
            (json.loads(each["json"])["filename"], int(each["cls"]), next(each[k] for k in kinds if k in each))
            for each in found
        }
        assert got == {
            (file.relative_to(split_folder).as_posix(), label, file.read_bytes())
            for file, label in zip(listing.files, listing.labels, strict=True)
        }
        assert len({each["__key__"] for each in found}) == len(found) == len(listing.files)


def test_shards_are_listed_for_timm_and_mix_the_classes(make_folder, tmp_path):
    folder = make_folder(*(f"{kind}/{n}.png" for kind in ("cat", "dog", "eel") for n in range(40)))
    packed = pack(folder, tmp_path / "shards", shard_images=20)
    listed = read_list(tmp_path / "shards")
    split = listed["splits"]["train"]
    assert listed["classes"] == ["cat", "dog", "eel"]
    assert split["num_samples"] == 96 == sum(split["shard_lengths"]) == sum(split["class_counts"])
    assert split["filenames"] == [f"train-{n:06d}.tar" for n in range(5)]
    assert max(split["shard_lengths"]) - min(split["shard_lengths"]) <= 4
    assert [part.images for part in packed.parts] == [96, 24]
    for file in split["filenames"]:
        with tarfile.open(tmp_path / "shards" / file) as tar:
            counts = Counter(json.load(tar.extractfile(m))["class"] for m in tar if m.name.endswith("json"))
        assert len(counts) == 3


def test_shards_keep_to_their_size_and_one_seed_gives_one_result(split_folder, tmp_path):
    limit = 40_000
    for out, seed in (("a", 0), ("b", 0), ("c", 1)):
        pack(split_folder, tmp_path / out, shard_bytes=limit, seed=seed)
    a, b, c = ({file.name: file.read_bytes() for file in (tmp_path / out).iterdir()} for out in "abc")
    assert a == b != c
    assert len(a) > 3
    assert all(len(content) <= limit for name, content in a.items() if name.endswith(".tar"))


def test_existing_folders_are_kept(split_folder, tmp_path, capsys):
    out = tmp_path / "shards"
    assert main(["data", "pack", str(split_folder), str(out)]) == 0
    assert "12 images in 1 shards" in capsys.readouterr().out
    before = (out / "train-000000.tar").read_bytes()
    assert main(["data", "pack", str(split_folder), str(out), "--seed", "1"]) == 2
    assert "--force" in capsys.readouterr().err
    (out / "notes.txt").write_text("mine")
    assert main(["data", "pack", str(split_folder), str(out), "--seed", "1", "--force"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "train-000000.tar").read_bytes() == before
    (out / "notes.txt").unlink()
    assert main(["data", "pack", str(split_folder), str(out), "--seed", "1", "--force"]) == 0
    assert (out / "train-000000.tar").read_bytes() != before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["images", "shards"]


def test_what_fails_leaves_nothing(split_folder, tmp_path, monkeypatch):
    (split_folder / "val" / "dog" / "1.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"1\.png"):
        pack(split_folder, tmp_path / "shards")
    (split_folder / "val" / "dog" / "1.png").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
        with pytest.raises(FileError, match="10 bytes left"):
            pack(split_folder, tmp_path / "shards")

    def full(done, total):
        if done == 5:
            raise OSError(28, "No space left on device")

    with pytest.raises(FileError, match="No space left"):
        pack(split_folder, tmp_path / "shards", report=full)
    with pytest.raises(UsageError, match="room for at least"):
        pack(split_folder, tmp_path / "shards", shard_images=0)
    assert [file.name for file in tmp_path.iterdir()] == ["images"]


def test_damage_is_found(split_folder, tmp_path, capsys):
    out = tmp_path / "shards"
    pack(split_folder, out, shard_images=5)
    assert main(["data", "verify", str(out)]) == 0
    file = out / "train-000001.tar"
    content = bytearray(file.read_bytes())
    content[700] ^= 1
    file.write_bytes(content)
    (out / "val-000000.tar").unlink()
    (out / "train-000002.tar").write_bytes(b"")
    assert [text.split("/")[-1][:18] for text in damaged(out)] == [
        "train-000001.tar h",
        "train-000002.tar h",
        "val-000000.tar is ",
    ]
    assert main(["data", "verify", str(out)]) == 1
    assert "val-000000.tar is missing" in capsys.readouterr().err
