import dataclasses
import hashlib
import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from diracnets.data import load
from diracnets.data.cifar import CIFAR10, CIFAR100, load_cifar, unpack
from diracnets.data.load import load_data
from diracnets.errors import DataError, FileError, UsageError

IMAGES = 6  # a file


def batch(published, seed):
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, published.classes, IMAGES).tolist()
    data = generator.integers(0, 256, (IMAGES, 3072), dtype=np.uint8)
    return {b"batch_label": b"batch", b"data": data, published.labels_key.encode(): labels, b"filenames": [b"x"]}


def write(published, folder, **changed):
    """Files in the original layout, with the content of those named in `changed` replaced; what was published, now."""
    folder.mkdir(parents=True)
    *batches, meta = published.files
    names = [f"class {n}".encode() for n in range(published.classes)]
    content = {name: batch(published, seed) for seed, name in enumerate(batches)}
    content[meta] = {published.classes_key.encode(): names}
    md5s = {}
    for name, value in content.items():
        (folder / name).write_bytes(pickle.dumps(changed.get(name.replace(".", "_"), value), 2))
        md5s[name] = hashlib.md5((folder / name).read_bytes()).hexdigest()
    return dataclasses.replace(published, files=md5s), content


def packed(published, folder, archive):
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(folder, published.folder)
    return dataclasses.replace(published, md5=hashlib.md5(archive.read_bytes()).hexdigest())


@pytest.mark.parametrize("published", [CIFAR10, CIFAR100])
@pytest.mark.parametrize("inside", [True, False])
def test_the_files_are_found_in_their_folder_and_above_it(tmp_path, published, inside):
    fake, content = write(published, tmp_path / published.folder)
    data = load_cifar(fake, tmp_path / published.folder if inside else tmp_path, fetch=False)
    *train, test, _ = content.values()
    assert (len(data.train), len(data.val)) == (IMAGES * len(train), IMAGES)
    assert data.classes[-1] == f"class {published.classes - 1}"
    assert data.input_size == (3, 32, 32)
    assert data.train.labels.tolist() == [label for each in train for label in each[published.labels_key.encode()]]
    assert data.val.name(2) == f"{published.name} test 2"
    pixels, _, _ = next(data.val.batches(IMAGES))
    planes = torch.from_numpy(test[b"data"]).view(-1, 3, 32, 32).double()
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in ((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    torch.testing.assert_close(pixels, ((planes - mean) / std).float(), atol=2e-6, rtol=0)


def test_the_archive_is_unpacked_where_it_lies(tmp_path):
    fake, _ = write(CIFAR10, tmp_path / "made")
    data_dir = tmp_path / "data"
    data_dir.mkdir()
    fake = packed(fake, tmp_path / "made", data_dir / fake.archive)
    load_cifar(fake, data_dir, fetch=False)
    assert sorted(file.name for file in data_dir.iterdir()) == ["cifar-10-batches-py", "cifar-10-python.tar.gz"]
    (data_dir / fake.archive).unlink()
    assert len(load_cifar(fake, data_dir, fetch=False).train) == 5 * IMAGES


def test_the_archive_is_downloaded_where_it_is_missing(tmp_path, monkeypatch):
    fake, _ = write(CIFAR100, tmp_path / "made")
    fake = packed(fake, tmp_path / "made", tmp_path / "served.tar.gz")
    asked = []

    def fetch(url, target, checksum, largest):
        asked.append((url, checksum.digits))
        target.parent.mkdir(parents=True)
        target.write_bytes((tmp_path / "served.tar.gz").read_bytes())

    monkeypatch.setattr("diracnets.data.cifar.download", fetch)
    monkeypatch.setattr(load, "CIFAR100", fake)
    assert len(load_data("cifar100", data_dir=tmp_path / "new").train) == IMAGES
    load_data("cifar100", data_dir=tmp_path / "new")
    assert asked == [(CIFAR100.url, fake.md5)]


def test_a_mistyped_folder_is_said_and_not_left_empty(tmp_path, monkeypatch, capsys):
    (tmp_path / "pictures" / CIFAR10.folder).mkdir(parents=True)
    (tmp_path / "others").mkdir()
    nowhere = dataclasses.replace(CIFAR10, url="http://127.0.0.1:9/cifar-10-python.tar.gz")
    monkeypatch.setattr("diracnets.web._PAUSE", 0.01)
    with pytest.raises(FileError, match="cannot download"):
        load_cifar(nowhere, tmp_path / "picturse")
    said = capsys.readouterr().err
    assert f"there is no folder {tmp_path}/picturse: it is made" in said
    assert "did you mean pictures?" in said
    with pytest.raises(FileError, match="cannot download"):
        load_cifar(nowhere, tmp_path / "mistyped" / "deeply")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["others", "pictures"]


def test_without_files_or_download_the_ways_out_are_named(tmp_path):
    with pytest.raises(
        FileError, match=r"holds neither cifar-10-batches-py/ nor cifar-10-python.tar.gz: put one.*https"
    ):
        load_data("cifar10", data_dir=tmp_path, download=False)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_archive_is_named_and_left_alone(tmp_path):
    (tmp_path / CIFAR10.archive).write_bytes(b"half of it")
    with pytest.raises(FileError, match=r"cifar-10-python\.tar\.gz is damaged or incomplete .*: delete it"):
        load_data("cifar10", data_dir=tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == [CIFAR10.archive]


def test_missing_and_damaged_files_are_named(tmp_path):
    fake, _ = write(CIFAR10, tmp_path / CIFAR10.folder)
    with (tmp_path / CIFAR10.folder / "data_batch_3").open("r+b") as file:
        file.seek(-100, 2)
        file.write(b"x")
    with pytest.raises(FileError, match="data_batch_3 is damaged"):
        load_cifar(fake, tmp_path)
    (tmp_path / CIFAR10.folder / "data_batch_3").unlink()
    with pytest.raises(FileError, match="cifar-10-batches-py lacks data_batch_3: complete it, or delete it"):
        load_cifar(fake, tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"data_batch_2": batch(CIFAR10, 0) | {b"labels": [0, 1, 2, 3, 4, 10]}}, "the label 10, and"),
        (
            {"data_batch_2": batch(CIFAR10, 0) | {b"labels": [0, 1, 2, 3, 4, -1]}},
            "the label -1, and labels go from 0 to 9",
        ),
        ({"data_batch_2": batch(CIFAR10, 0) | {b"labels": [1, 2]}}, "holds no 6 labels under 'labels'"),
        ({"data_batch_2": batch(CIFAR10, 0) | {b"data": np.zeros((6, 3000), np.uint8)}}, "holds no rows of 3x32x32"),
        ({"test_batch": {b"labels": [1]}}, "holds no rows of 3x32x32"),
        ({"batches_meta": {b"label_names": [b"cat"]}}, r"batches\.meta does not name 10 classes"),
        ({"batches_meta": {b"label_names": print}}, r"batches\.meta is not a CIFAR file .* refused"),
    ],
)
def test_content_that_is_not_cifar(tmp_path, changed, said):
    fake, _ = write(CIFAR10, tmp_path / CIFAR10.folder, **changed)
    with pytest.raises(DataError, match=said):
        load_cifar(fake, tmp_path)


def test_another_image_size_is_refused():
    with pytest.raises(UsageError, match="the images of cifar10 have 32 pixels, not 64"):
        load_data("cifar10", image_size=64)


def archive(path, *members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            if isinstance(content, bytes):
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
            else:
                entry.type, entry.linkname = tarfile.SYMTYPE, content
                tar.addfile(entry)
    return path


def test_only_the_named_files_come_out(tmp_path):
    path = archive(
        tmp_path / "x.tgz",
        ("../escaped", b"1"),
        ("/tmp/escaped", b"2"),
        ("set/a", b"3"),
        ("set/b", b"4"),
        ("set/c", b"5"),
    )
    unpack(path, tmp_path / "set", ["a", "b"])
    assert {file.name: file.read_bytes() for file in (tmp_path / "set").iterdir()} == {"a": b"3", "b": b"4"}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["set", "x.tgz"]


@pytest.mark.parametrize(
    ("members", "cut", "said"),
    [
        ([("set/a", b"1")], 0, "lacks set/b"),
        ([("set/a", b"1"), ("set/b", "/etc/passwd")], 0, "lacks set/b"),
        ([("set/a", bytes(1000)), ("set/b", bytes(range(256)) * 40)], 40, "is damaged|cannot unpack"),
        ([], None, "is damaged: "),
    ],
)
def test_bad_archives_leave_nothing(tmp_path, members, cut, said):
    path = archive(tmp_path / "x.tgz", *members)
    path.write_bytes(b"no archive" if cut is None else path.read_bytes()[: len(path.read_bytes()) - cut])
    with pytest.raises(FileError, match=said):
        unpack(path, tmp_path / "set", ["a", "b"])
    assert [file.name for file in tmp_path.iterdir()] == ["x.tgz"]
