import os
import unicodedata

import pytest
from PIL import Image, features

from diracnets.data.folder import find_images
from diracnets.data.image_file import SUFFIXES
from diracnets.errors import DataError, FileError


def names(listing):
    return [f"{file.parent.name}/{file.name}" for file in listing.files]


@pytest.mark.parametrize(
    ("train_name", "val"),
    [
        *(
            ("train", val)
            for val in ("val", "valid", "validation", "test", "Test", "VAL", "dev", "holdout", "held-out")
        ),
        ("Train", "Test"),
        ("training", "testing"),
        ("training_set", "test_set"),
        ("TrainingSet", "ValidationSet"),
        ("train2017", "val2017"),
        ("train_images", "Val Images"),
    ],
)
def test_train_and_val_are_found_by_any_usual_name(make_folder, train_name, val):
    root = make_folder(
        f"{train_name}/b/1.PNG",
        f"{train_name}/a/x y.Jpeg",
        f"{train_name}/a/ä.webp",
        f"{val}/a/2.bmp",
        f"{val}/b/3.gif",
    )
    train, held_out = find_images(root)
    assert train.classes == held_out.classes == ("a", "b")
    assert names(train) == ["a/x y.Jpeg", "a/ä.webp", "b/1.PNG"]
    assert train.labels == [0, 0, 1]
    assert names(held_out) == ["a/2.bmp", "b/3.gif"]
    assert train.notes == held_out.notes == (f"to train on: {train_name}/; to validate: {val}/",)


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


CLASSES = [f"{kind}/{n}.png" for kind in ("cat", "dog") for n in range(3)]
IN_TWO = [f"{part}/{path}" for part in ("train", "val") for path in CLASSES]


def count(root):
    return sum(len(each.files) for each in find_images(root))


def said(root):
    return "\n".join(find_images(root)[0].notes)


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_in_any_case(make_folder, picture, suffix):
    root = make_folder(*CLASSES)
    for number, name in enumerate((suffix, suffix.upper())):
        image = picture().convert("1") if suffix == ".pbm" else picture()
        image.save(root / "cat" / f"x{number}{name}", "JPEG" if suffix in (".jpe", ".jfif") else None)
    assert count(root) == 8


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("cat/.hidden.png", "hidden"),
        ("cat/._1.png", "hidden"),
        (".DS_Store", "hidden"),
        ("cat/Thumbs.db", "hidden"),
        ("cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg", "hidden"),
        ("cat/.thumbnails/1.png", "hidden"),
        ("__MACOSX/cat/1.png", "hidden"),
        ("dog/.ipynb_checkpoints/1-checkpoint.png", "hidden"),
        ("cat/notes.txt", "no image"),
        ("cat/strange.thing", "no image"),
        ("cat/IMG_1.HEIC", "not read"),
        ("cat/x.psd", "not read"),
        ("loose.png", "no class folder"),
    ],
)
def test_what_is_left_out_is_said(make_folder, picture, path, reason):
    root = make_folder(*CLASSES)
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    if path.endswith(("png", "jpg")):
        picture().save(root / path)
    else:
        (root / path).write_bytes(b"anything")
    assert count(root) == 6
    assert find_images(root)[0].classes == ("cat", "dog")
    (line,) = (note for note in find_images(root)[0].notes if note.startswith("left out"))
    assert reason in line
    assert line.split(": ")[1] in path


def test_an_image_is_known_by_its_content_where_the_name_says_nothing(make_folder, picture):
    root = make_folder(*CLASSES)
    for name in ("0a1b2c", "x.jpg_large", "y.bak"):
        picture().save(root / "cat" / name, "JPEG")
    (root / "cat" / "text").write_text("BM is how a bitmap begins, and P6 a pixmap")
    assert count(root) == 7
    assert "taken in as an image, by its content: cat/0a1b2c" in said(root)
    assert "whose name does not say so (rename it to take it in): cat/x.jpg_large, cat/y.bak" in said(root)
    assert "left out as no image: cat/text" in said(root)


def test_many_things_left_out_are_counted(make_folder):
    root = make_folder(*CLASSES)
    for number in range(40):
        (root / "cat" / f"{number:02}.txt").touch()
    assert "left out as no image: cat/00.txt, cat/01.txt, cat/02.txt and 37 more" in said(root)


def test_deeper_images_are_the_classes(make_folder):
    root = make_folder(*CLASSES, "cat/deep/deeper/0.png")
    assert count(root) == 7
    assert "images of the class that they lie in: cat/deep" in said(root)


@pytest.mark.parametrize(
    ("path", "files"),
    [
        ("runs/a", ["recipe.toml", "last.pt", "curve.png"]),
        ("runs/a", ["recipe.toml"]),
        ("mine", ["recipe.toml", "metrics.jsonl"]),
        ("cat/runs/a", ["recipe.toml", "environment.json", "curve.png"]),
        ("seen", ["evaluation.json", "confusion.png"]),
        ("demo", [".made-by-diracnets-demo", "digits/1.png"]),
    ],
)
def test_what_diracnets_wrote_is_no_class(make_folder, picture, path, files):
    root = make_folder(*CLASSES)
    for file in files:
        (root / path / file).parent.mkdir(parents=True, exist_ok=True)
        picture().save(root / path / file, "PNG")
    assert find_images(root)[0].classes == ("cat", "dog")
    assert count(root) == 6
    assert f"left out as written by diracnets: {path}" in said(root)


def test_a_class_folder_with_a_recipe_of_its_own_stays_one(make_folder):
    root = make_folder(*CLASSES)
    (root / "cat" / "recipe.toml").touch()
    assert count(root) == 6


def test_links_to_folders_are_followed_once_and_not_in_circles(make_folder, tmp_path, picture):
    root = make_folder(*CLASSES)
    (tmp_path / "store").mkdir()
    for number in range(2):
        picture().save(tmp_path / "store" / f"{number}.png")
    (root / "cat" / "more").symlink_to(tmp_path / "store")
    (root / "cat" / "again").symlink_to(root)
    (root / "a-dog").symlink_to(root / "dog")  # comes before it, and must not take its images
    (root / "cat" / "self").symlink_to(root / "cat" / "self")
    assert count(root) == 8
    assert find_images(root)[0].classes == ("cat", "dog")
    assert "a link to a folder that is here already: a-dog, cat/again" in said(root)
    assert "neither a file nor a folder: cat/self" in said(root)


def test_val_that_is_a_link_to_train_validates_nothing(make_folder):
    root = make_folder(*(f"train/{path}" for path in CLASSES))
    (root / "test").symlink_to(root / "train")
    train, val = find_images(root)
    assert not set(train.files) & set(val.files)
    assert len(train.files + val.files) == 6


def test_class_folders_may_all_be_links(make_folder, tmp_path):
    root = make_folder(*CLASSES)
    root.rename(tmp_path / "store")
    root.mkdir()
    for name in ("cat", "dog"):
        (root / name).symlink_to(tmp_path / "store" / name)
    assert count(root) == 6


def test_pipes_and_links_to_nothing(make_folder):
    root = make_folder(*CLASSES)
    os.mkfifo(root / "cat" / "pipe.png")
    os.mkfifo(root / "cat" / "pipe")
    assert count(root) == 6
    assert "neither a file nor a folder: cat/pipe, cat/pipe.png" in said(root)
    (root / "dog" / "gone.png").symlink_to(root / "nothing.png")
    with pytest.raises(DataError, match=r"dog/gone\.png: No such file"):
        find_images(root)


NFC, NFD = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def test_composed_and_decomposed_names_are_one_class(make_folder):
    root = make_folder(*(f"{part}/{kind}/{n}.png" for part, kind in (("train", NFC), ("val", NFD)) for n in range(2)),
                       "train/tea/0.png", "val/tea/0.png")  # fmt: skip
    train, val = find_images(root)
    assert train.classes == val.classes == (NFC, "tea")
    assert (train.labels, val.labels) == ([0, 0, 1], [0, 0, 1])


def test_composed_and_decomposed_folders_side_by_side_are_one_class(make_folder):
    root = make_folder(*(f"{kind}/{n}.png" for kind in (NFC, NFD, "tea") for n in range(5)))
    if len(list(root.iterdir())) < 3:
        pytest.skip("this file system makes no difference")
    train, val = find_images(root)
    assert train.classes == (NFC, "tea")
    assert [(train.labels + val.labels).count(label) for label in range(2)] == [10, 5]
    assert "in composed and decomposed letters, are one class" in said(root)


def test_the_split_does_not_depend_on_how_names_are_composed(make_folder, tmp_path):
    root = make_folder(*(f"{NFC}/{n}.png" for n in range(20)), *(f"tea/{n}.png" for n in range(20)))
    composed = {file.name for file in find_images(root)[1].files if file.parent.name != "tea"}
    (root / NFC).rename(root / NFD)
    assert {file.name for file in find_images(root)[1].files if file.parent.name != "tea"} == composed


@pytest.mark.parametrize("wrap", ["data", "a/b", "images"])
@pytest.mark.parametrize("paths", [CLASSES, IN_TWO])
def test_one_folder_more_around_it(make_folder, wrap, paths):
    root = make_folder(*(f"{wrap}/{path}" for path in paths))
    assert find_images(root)[0].classes == ("cat", "dog")
    assert count(root) == len(paths)
    assert f"the images are those in {wrap}/, the only folder with images" in said(root)
    (root / "meta").mkdir()
    (root / "meta" / "classes.json").touch()
    assert count(root) == len(paths)


def test_a_split_within_a_split(make_folder):
    root = make_folder(*(f"train/train/{path}" for path in CLASSES), *(f"test/data/{path}" for path in CLASSES))
    assert find_images(root)[1].classes == ("cat", "dog")


def test_of_three_parts_it_is_said_which_is_not_used(make_folder):
    root = make_folder(*(f"{part}/{path}" for part in ("train", "val", "test") for path in CLASSES))
    assert {file.parts[-3] for file in find_images(root)[1].files} == {"val"}
    assert "test/ is not used: val/ is there to validate" in said(root)


def test_images_to_test_on_without_classes_are_not_used(make_folder):
    """As Kaggle's contests have them."""
    root = make_folder(*(f"train/{path}" for path in CLASSES), "test/1.png", "test/2.png", "meta/1.png")
    train, val = find_images(root)
    assert len(train.files + val.files) == 6
    assert {file.parts[-3] for file in val.files} == {"train"}
    assert "test/ is not used: it holds no class folders" in said(root)
    assert "neither in the training nor in the validation set: meta" in said(root)


def test_classes_that_are_called_train_or_test(make_folder):
    """CIFAR-100 has a class of trains."""
    root = make_folder(*(f"{kind}/{n}.png" for kind in ("bus", "train", "test") for n in range(3)))
    assert find_images(root)[0].classes == ("bus", "test", "train")
    assert "train/ is taken for a class: it holds images, and no class folders" in said(root)


def test_loose_images_in_a_part_are_said(make_folder):
    root = make_folder(*IN_TWO, "train/loose.png", "val/cat.png")
    assert count(root) == 12
    assert "left out as lying in no class folder: train/loose.png, val/cat.png" in said(root)


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
        ("train/fish/0.jpg", None, r"class folder .*fish holds no images \(\.apng .*\): add some or remove"),
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
        (["Train/a.png", "TEST/a.png"], "Train holds no class folders: expected"),
        (["train/1.png", "val/a/1.png", "val/b/1.png"], "train holds no class folders: expected"),
        ([*IN_TWO, *(f"Valid/{path}" for path in CLASSES)], "holds Valid/, val/, which mean the same"),
        ([*IN_TWO, *(f"training/{path}" for path in CLASSES)], "holds train/, training/, which mean the same"),
        ([f"train/{path}" for path in CLASSES] + ["val/1.png"], "val holds no class folders"),
        (["train/steam/1.png", "train/diesel/1.png", "bus/1.png"], "bus/, and train/ with class folders: if train/ is"),
        (["images/1.png", "labels/1.png"], "images/ and labels/, as data sets for detection or segmentation"),
        (["JPEGImages/1.png", "Annotations/1.png"], "JPEGImages/ and Annotations/, as data sets"),
        (["images/train/1.png", "images/val/1.png", "masks/train/1.png"], "images/ and masks/, as data sets"),
        (["train/images/1.png", "train/labels/1.png", "val/images/1.png"], "images/ and labels/, as data sets"),
        (
            [f"{kind}/{part}/1.png" for kind in "ab" for part in ("train", "test")],
            "put these above the classes, as .*a/",
        ),
        (["cat/a/1.png", "dog/1.png", "a\x1bb/1.png"], r"class a\\x1bb has control characters in its name: rename it"),
    ],
)
def test_layouts_that_are_not_understood(make_folder, paths, said):
    with pytest.raises(DataError, match=said):
        find_images(make_folder(*paths))


def test_labels_next_to_images_without_pictures(make_folder):
    root = make_folder("images/1.png", "images/2.png")
    (root / "labels").mkdir()
    (root / "labels" / "1.txt").touch()
    with pytest.raises(DataError, match="images/ and labels/, as data sets for detection"):
        find_images(root)


def test_all_empty_classes_are_named_with_what_they_hold(make_folder):
    root = make_folder(*CLASSES)
    for name in ("fish", "ant"):
        (root / name).mkdir()
        (root / name / "1.heic").touch()
    with pytest.raises(DataError, match=r"class folders .*ant, .*fish hold no images .*only images .*not read \(ant/1"):
        find_images(root)


def test_an_empty_class_is_no_reason_to_look_for_classes_in_the_other(make_folder):
    root = make_folder("cat/a/1.png", "cat/b/1.png")
    (root / "dog").mkdir()
    with pytest.raises(DataError, match=r"class folder .*dog holds no images"):
        find_images(root)


def test_all_bad_files_are_named_at_once(make_folder, picture):
    root = make_folder(*CLASSES)
    for suffix in ("jpg", "png", "gif", "webp", "bmp", "tiff", "ppm", *["avif"] * features.check("avif")):
        path = root / "cat" / f"cut.{suffix}"
        picture(200, 150).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 9 // 10])
    (root / "dog" / "empty.jpg").touch()
    (root / "dog" / "text.jpg").write_text("text")
    with pytest.raises(DataError) as caught:
        find_images(root)
    message = str(caught.value)
    assert message.startswith("10 of 16 images cannot be read: ")
    assert all(f"cut.{suffix} cannot be decoded" in message for suffix in ("jpg", "png", "gif", "bmp", "tiff", "ppm"))
    assert "empty.jpg is empty (0 bytes)" in message
    assert message.endswith(": replace or remove them, or leave them out with --skip-unreadable 0.625")
    for number in range(50):
        (root / "dog" / f"{number}.jpeg").touch()
    with pytest.raises(DataError, match=r"^60 of 66 images cannot be read: .*; and 10 more, which"):
        find_images(root)


def test_what_follows_an_image_in_its_file_does_no_harm(make_folder):
    """As phones append a film to a JPEG."""
    root = make_folder(*CLASSES)
    Image.new("RGB", (40, 40)).save(root / "cat" / "film.jpg")
    with (root / "cat" / "film.jpg").open("ab") as file:
        file.write(bytes(1000))
    assert count(root) == 7


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
