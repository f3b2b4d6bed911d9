import json
import os
import shutil

import pytest
from PIL import Image

from diracnets.cli import main
from diracnets.data.check import check
from diracnets.data.folder import FolderSource, find_images
from diracnets.data.readable import unreadable
from diracnets.errors import DataError


def by_kind(checked):
    found = {}
    for each in checked.findings:
        found.setdefault(each.kind, []).append(each.files)
    return found


@pytest.fixture
def bad_folder(split_folder, picture):
    """Two of each thing that can be wrong."""
    train, val = split_folder / "train", split_folder / "val"
    jpeg = (train / "cat" / "0.jpg").read_bytes()
    (train / "cat" / "cut.jpg").write_bytes(jpeg[: len(jpeg) // 2])
    (train / "dog" / "text.png").write_text("no image")
    shutil.copy(train / "cat" / "0.jpg", train / "cat" / "again.jpg")
    shutil.copy(train / "cat" / "1.png", val / "cat" / "leak.png")
    shutil.copy(train / "dog" / "0.jpg", train / "cat" / "other.jpg")
    shutil.copy(train / "dog" / "3.bmp", val / "cat" / "both.bmp")
    picture(seed=50).save(train / "dog" / "named.jpg", format="PNG")
    picture(width=4, seed=51).save(train / "dog" / "small.png")
    (train / "dog" / "phone.heic").write_bytes(b"heic")
    (train / "eel").mkdir()
    return split_folder


@pytest.mark.parametrize("workers", [0, 2])
def test_all_that_is_wrong_is_listed(bad_folder, workers):
    checked = check(bad_folder, workers=workers)
    assert by_kind(checked) == {
        "unreadable": [("train/cat/cut.jpg",), ("train/dog/text.png",)],
        "not read": [("train/dog/phone.heic",)],
        "empty class": [("train/eel",)],
        "other classes": [("eel",)],
        "two labels": [("train/cat/other.jpg", "train/dog/0.jpg"), ("train/dog/3.bmp", "val/cat/both.bmp")],
        "in train and val": [("train/cat/1.png", "val/cat/leak.png")],
        "duplicate": [("train/cat/0.jpg", "train/cat/again.jpg")],
        "suffix": [("train/dog/named.jpg",)],
        "tiny": [("train/dog/small.png",)],
    }
    assert checked.wrong
    assert checked.counts == {"cat": {"train": 9, "val": 4}, "dog": {"train": 9, "val": 2}}


def test_a_copy_that_the_split_would_tear_apart_is_found(make_folder):
    root = make_folder(*(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(10)))
    train, val = find_images(root)
    one = next(file for file in train.files if file.parent.name == "cat")
    other = next(file for file in val.files if file.parent.name == "cat")
    shutil.copy(one, other)
    assert list(by_kind(check(root))) == ["in train and val"]


def test_the_command_prints_json_and_fails_where_something_is_wrong(bad_folder, make_folder, capsys):
    assert main(["data", "check", str(bad_folder), "--json", "--workers", "0"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["images"] == 24
    assert [each["files"] for each in found["findings"] if each["kind"] == "tiny"] == [["train/dog/small.png"]]
    assert "8 errors in" in printed.err
    for finding in found["findings"]:
        for name in finding["files"] if finding["error"] and finding["kind"] != "other classes" else ():
            path = bad_folder / name
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
    assert main(["data", "check", str(bad_folder), "--workers", "0"]) == 0
    assert "train/dog/small.png: 4x30 pixels" in capsys.readouterr().out


def test_photographs_of_phones_with_a_second_picture_behind_are_jpegs(make_folder):
    root = make_folder("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png")
    first, second = (Image.open(root / "cat" / f"{n}.png") for n in range(2))
    first.save(root / "cat" / "phone.jpg", format="MPO", save_all=True, append_images=[second])
    assert check(root, workers=0).findings == ()


def test_unreadable_images_are_left_out_or_all_named(bad_folder):
    (bad_folder / "train" / "eel").rmdir()
    with pytest.raises(DataError, match=r"2 of 24 .*cut\.jpg.*text\.png.*--skip-unreadable"):
        find_images(bad_folder)
    with pytest.raises(DataError, match=r"text\.png.*--skip-unreadable 0.084"):
        find_images(bad_folder, skip=0.05)
    train, val = find_images(bad_folder, skip=0.1)
    assert (len(train.files), len(val.files)) == (16, 6)
    assert any("left out as unreadable, 2 of 24 images: " in each and "text.png" in each for each in train.notes)
    for file in (bad_folder / "val" / "dog").iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="no image can be read of class dog"):
        find_images(bad_folder, skip=0.9)


def test_the_split_stays_when_images_are_left_out(make_folder):
    root = make_folder(*(f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(10)))
    before = find_images(root)
    bad = before[0].files[3]
    bad.write_bytes(bad.read_bytes()[:60])
    after = find_images(root, skip=0.1)
    assert [set(one.files) - set(other.files) for one, other in zip(before, after, strict=True)] == [{bad}, set()]


def test_good_files_are_looked_at_once(split_folder, monkeypatch):
    files = sorted((split_folder / "train" / "cat").iterdir())
    assert unreadable(FolderSource(files), split_folder, "decoded") == {}
    looked = []
    monkeypatch.setattr("diracnets.data.readable.check_whole", lambda _, name: looked.append(name))
    assert unreadable(FolderSource(files), split_folder, "whole") == {}  # what was decoded is whole
    assert looked == []
    os.utime(files[1], (1, 1))
    unreadable(FolderSource(files), split_folder, "whole")
    assert looked == [str(files[1])]


def test_a_cut_webp_is_found_without_decoding(make_folder, monkeypatch):
    root = make_folder("cat/0.webp", "cat/1.webp", "dog/0.webp", "dog/1.webp")
    monkeypatch.setattr("PIL.WebPImagePlugin.WebPImageFile.load", lambda _: pytest.fail("decoded"))
    find_images(root)
    monkeypatch.undo()
    file = root / "cat" / "0.webp"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"0\.webp"):
        find_images(root)


def test_a_run_leaves_out_what_cannot_be_read_and_is_evaluated_alike(bad_folder, tmp_path, capsys, bare_runs):
    (bad_folder / "train" / "eel").rmdir()
    words = ["--model", "diracnet-10-0.25", "--image-size", "32", "--workers", "0", "--precision", "float32"]
    run = ["train", "--data", "folder", "--data-dir", str(bad_folder), "--run-dir", str(tmp_path / "run"), *words]
    assert main([*run, "--epochs", "1", "--batch-size", "8"]) == 1
    assert "cut.jpg" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*run, "--epochs", "1", "--batch-size", "8", "--skip-unreadable", "0.1"]) == 0
    assert "left out as unreadable, 2 of 24 images" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run"), "--device", "cpu"]) == 0
    assert "6 held-out images" in capsys.readouterr().out


def test_shards_are_looked_through_too(split_folder, tmp_path):
    pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')
    from diracnets.data.pack import pack

    shutil.copy(split_folder / "train" / "dog" / "0.jpg", split_folder / "val" / "dog" / "same.jpg")
    shutil.copy(split_folder / "train" / "dog" / "1.png", split_folder / "val" / "cat" / "other.png")
    out = tmp_path / "shards"
    pack(split_folder, out, shard_images=6)
    found = by_kind(check(out, workers=2))
    assert sorted(found) == ["in train and val", "two labels"]
    assert {name.partition("/")[0][:5] for name in found["two labels"][0]} == {"train", "val-0"}
    shard = out / "val-000000.tar"
    content = shard.read_bytes()
    place = content.index(b"\x89PNG") + 60
    shard.write_bytes(content[:place] + bytes(40) + content[place + 40 : -4000])
    assert "unreadable" in by_kind(check(out, workers=0))
