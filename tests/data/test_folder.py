import os

import pytest

from diracnets.data.folder import find_images
from diracnets.errors import DataError, FileError


def names(listing):
    return [f"{file.parent.name}/{file.name}" for file in listing.files]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
def test_train_and_val_are_found_by_any_usual_name(make_folder, val):
    root = make_folder("train/b/1.PNG", "train/a/x y.Jpeg", "train/a/ä.webp", f"{val}/a/2.bmp", f"{val}/b/3.gif")
    train, held_out = find_images(root)
    assert train.classes == held_out.classes == ("a", "b")
    assert names(train) == ["a/x y.Jpeg", "a/ä.webp", "b/1.PNG"]
    assert train.labels == [0, 0, 1]
    assert names(held_out) == ["a/2.bmp", "b/3.gif"]


@pytest.mark.parametrize("under", ["", "train/"])
def test_a_folder_without_a_split_is_split_the_same_each_time(make_folder, under):
    root = make_folder(*(f"{under}{kind}/{n}.png" for kind in ("cat", "dog") for n in range(10)))
    train, held_out = find_images(root)
    assert (len(train.files), len(held_out.files)) == (16, 4)
    assert held_out.labels == [0, 0, 1, 1]
    assert not set(train.files) & set(held_out.files)
    assert names(find_images(root)[1]) == names(held_out)
    moved = root.with_name("elsewhere")
    root.rename(moved)
    assert names(find_images(moved)[1]) == names(held_out)


def test_other_files_are_passed_over_and_deeper_ones_found(split_folder):
    cat = split_folder / "train" / "cat"
    for name in ("Thumbs.db", "notes.txt", "._1.jpg", ".DS_Store"):
        (cat / name).write_text("no image")
    (split_folder / "train" / ".cache").mkdir()
    (cat / "deeper").mkdir()
    (cat / "0.jpg").rename(cat / "deeper" / "0.jpg")
    assert len(find_images(split_folder)[0].files) == 12


def broken(split_folder, path, content):
    target = split_folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    if content is not None:
        target.write_bytes(content)


@pytest.mark.parametrize(
    ("path", "content", "said"),
    [
        ("train/cat/0.jpg", b"", r"train/cat/0\.jpg is empty \(0 bytes\)"),
        ("val/dog/no.png", b"text", r"val/dog/no\.png is not an image"),
        ("train/fish/0.jpg", None, r"class folder .*fish holds no images \(\.bmp .*\): add some or remove"),
        ("val/fish/0.txt", b"text", r"class folder .*fish holds no images"),
    ],
)
def test_bad_files_and_empty_classes_are_named(split_folder, path, content, said):
    broken(split_folder, path, content)
    with pytest.raises(DataError, match=said):
        find_images(split_folder)


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["a.png"], "holds no class folders: expected .*/train/<class>/.* and .*/val/<class>"),
        (["cat/a.png"], "holds one class only, 'cat'"),
        (["train/a.png", "val/a.png"], "train holds no class folders: expected"),
        (["val/cat/a.png", "val/dog/a.png"], "holds val/ but no train/: expected"),
        (["train/a/1.png", "train/b/1.png", "val/a/1.png", "val/c/1.png"], r"only in train/: b; only in val/: c"),
        (["train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png", "test/c/1.png"], r"\(only in test/: c\)"),
        (["cat/a.png", "dog/a.png", "dog/b.png"], "class 'cat' has one image"),
    ],
)
def test_layouts_that_are_not_understood(make_folder, paths, said):
    with pytest.raises(DataError, match=said):
        find_images(make_folder(*paths))


def test_a_missing_folder_and_a_file_instead_of_one(tmp_path):
    with pytest.raises(FileError, match=r"cannot read the image folder .*nothing: No such file"):
        find_images(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot read the image folder .*file: Not a directory"):
        find_images(tmp_path / "file")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_class_folder(split_folder):
    (split_folder / "train" / "cat").chmod(0)
    with pytest.raises(FileError, match=r"cannot read the image folder .*cat: Permission denied"):
        find_images(split_folder)
