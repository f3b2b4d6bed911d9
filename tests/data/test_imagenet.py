import hashlib
import io
import tarfile

import numpy as np
import pytest

from diracnets.cli import main
from diracnets.data import imagenet, imagenet_files
from diracnets.data.folder import find_images
from diracnets.data.imagenet import unpack_imagenet
from diracnets.errors import DataError, FileError, UsageError

scipy_io = pytest.importorskip("scipy.io", reason='needs pip install "diracnets[imagenet]"')

IDS = {1: "n03000001", 2: "n01000002", 3: "n02000003"}  # not in the order of the names


def tar(path, files, mode="w"):
    with tarfile.open(path, mode) as made:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


def tar_bytes(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as made:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.fixture
def jpeg(picture):
    def make(seed):
        buffer = io.BytesIO()
        picture(seed=seed).save(buffer, "JPEG")
        return buffer.getvalue()

    return make


@pytest.fixture
def archives(tmp_path, jpeg):
    """Three classes of three images, and one that is a kind of others; six validation images."""
    rows = [(number, wnid, f"thing {number}, stuff", 0, 3) for number, wnid in IDS.items()]
    rows.append((4, "n00000004", "all things", 3, 0))
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")]
    buffer = io.BytesIO()
    scipy_io.savemat(buffer, {"synsets": np.array(rows, kinds)})
    truth = "".join(f"{number}\n" for number in (3, 1, 2, 2, 1, 3)).encode()
    kit = "ILSVRC2012_devkit_t12/data"
    files = [(f"{kit}/meta.mat", buffer.getvalue()), (f"{kit}/ILSVRC2012_validation_ground_truth.txt", truth)]
    devkit = tar(tmp_path / "devkit.tar.gz", files, "w:gz")
    val = tar(tmp_path / "val.tar", [(f"ILSVRC2012_val_{n + 1:08d}.JPEG", jpeg(100 + n)) for n in (4, 2, 0, 1, 3, 5)])
    inner = [
        (f"{wnid}.tar", tar_bytes([(f"{wnid}_{n}.JPEG", jpeg(10 * number + n)) for n in (1, 5, 7)]))
        for number, wnid in IDS.items()
    ]
    return tar(tmp_path / "train.tar", inner), val, devkit


def unpack(archives, out, **more):
    return unpack_imagenet(*archives, out, check_hashes=False, **more)


def test_images_lie_in_the_folder_of_their_class(archives, tmp_path, jpeg):
    out = tmp_path / "imagenet"
    assert unpack(archives, out) == {"train": 9, "val": 6}
    train, _ = find_images(out)
    assert train.classes == tuple(sorted(IDS.values()))
    assert (out / "train" / "n01000002" / "n01000002_5.JPEG").read_bytes() == jpeg(25)
    for number, label in enumerate((3, 1, 2, 2, 1, 3)):
        file = out / "val" / IDS[label] / f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        assert file.read_bytes() == jpeg(100 + number)
    assert (out / "words.txt").read_text().splitlines()[0] == "n01000002 thing 2, stuff"
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_dir()) == ["imagenet"]
    with pytest.raises(UsageError, match="is there already"):
        unpack(archives, out)


def test_an_interruption_costs_one_class(archives, tmp_path, monkeypatch):
    out, unpacked = tmp_path / "imagenet", []
    real = imagenet._write

    def stopping(archive, image, path):
        if len(unpacked) == 5:
            raise KeyboardInterrupt
        unpacked.append(image.name)
        real(archive, image, path)

    monkeypatch.setattr(imagenet, "_write", stopping)
    with pytest.raises(KeyboardInterrupt):
        unpack(archives, out)
    assert not out.exists()
    first = list(unpacked)
    unpacked.clear()
    monkeypatch.setattr(imagenet, "_write", lambda *given: unpacked.append(given[1].name) or real(*given))
    assert unpack(archives, out) == {"train": 9, "val": 6}
    assert not set(first[:3]) & set(unpacked)
    assert len(unpacked) == 12


def test_other_archives_than_the_originals_are_refused(archives, tmp_path, monkeypatch, capsys):
    words = ["data", "imagenet", *map(str, archives), str(tmp_path / "imagenet")]
    assert main(words) == 1
    assert "is not the original ILSVRC2012_devkit_t12.tar.gz" in capsys.readouterr().err
    assert not (tmp_path / "imagenet").exists()
    hashes = [hashlib.md5(file.read_bytes()).hexdigest() for file in archives]
    kept = {what: (name, md5) for (what, (name, _)), md5 in zip(imagenet_files.ORIGINALS.items(), hashes, strict=True)}
    with monkeypatch.context() as patch:
        patch.setattr(imagenet_files, "ORIGINALS", kept)
        assert main(words) == 0
    assert "9 images to train on" in capsys.readouterr().out
    assert main([*words[:-1], str(tmp_path / "again"), "--no-hash"]) == 0


def test_shards_are_those_of_the_unpacked_folder(archives, tmp_path, capsys):
    pytest.importorskip("webdataset", reason='needs pip install "diracnets[shards]"')
    from diracnets.data.pack import pack

    shards = tmp_path / "shards"
    words = ["data", "imagenet", *map(str, archives), str(shards), "--shards"]
    assert main(words) == 1  # not the originals
    assert main([*words, "--no-hash"]) == 0
    assert "9 images in 1 shards" in capsys.readouterr().out
    unpack(archives, tmp_path / "imagenet")
    pack(tmp_path / "imagenet", tmp_path / "again")
    one, other = (
        {file.name: file.read_bytes() for file in folder.iterdir()} for folder in (shards, tmp_path / "again")
    )
    assert one == other | {"words.txt": (tmp_path / "imagenet" / "words.txt").read_bytes()}
    assert main([*words, "--no-hash"]) == 2
    assert "is there already" in capsys.readouterr().err
    cut = tmp_path / "cut.tar"
    cut.write_bytes(archives[0].read_bytes()[:-20_000])
    assert main([*words[:2], str(cut), *words[3:5], str(tmp_path / "part"), "--shards", "--no-hash"]) == 1
    assert not list(tmp_path.glob("*part*"))


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("../../evil_1.JPEG", "no image of this class"),
        ("/tmp/evil_1.JPEG", "no image of this class"),
        ("n01000002_1.JPEG", "no image of this class"),
        ("n03000001_1.JPEG", "holds 1 images, and should hold 3"),
    ],
)
def test_a_class_with_other_content_is_refused(archives, tmp_path, name, said):
    inner = [(f"{IDS[1]}.tar", tar_bytes([(name, b"x")]))]
    with pytest.raises(DataError, match=said):
        unpack((tar(tmp_path / "bad.tar", inner), *archives[1:]), tmp_path / "imagenet")
    assert not (tmp_path / "imagenet").exists()
    assert not list(tmp_path.rglob("*evil*"))


def test_links_are_never_followed_and_count_as_missing(archives, tmp_path):
    with tarfile.open(tmp_path / "links.tar", "w") as made:
        link = tarfile.TarInfo("ILSVRC2012_val_00000001.JPEG")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        made.addfile(link)
    with pytest.raises(DataError, match="lacks 6 of 6 images: the first is number 1"):
        unpack((archives[0], tmp_path / "links.tar", archives[2]), tmp_path / "imagenet")


def test_damaged_archives_are_named(archives, tmp_path):
    train, val, devkit = archives
    cut = tmp_path / "cut.tar"
    cut.write_bytes(train.read_bytes()[:-20_000])
    with pytest.raises(DataError, match=r"cut\.tar .*cut off|cut\.tar lacks"):
        unpack((cut, val, devkit), tmp_path / "imagenet")
    cut.write_bytes(devkit.read_bytes()[:300])
    with pytest.raises(FileError, match=r"cut\.tar is damaged"):
        unpack((train, val, cut), tmp_path / "imagenet")
    with pytest.raises(FileError, match="cannot read"):
        unpack((train, val, tmp_path / "none"), tmp_path / "imagenet")
    with pytest.raises(DataError, match="not the development kit"):
        unpack((train, val, val), tmp_path / "imagenet")
