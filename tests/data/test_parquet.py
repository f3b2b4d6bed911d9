import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diracnets.data.load import load_data
from diracnets.data.parquet import find_rows
from diracnets.errors import DataError, FileError

pa = pytest.importorskip("pyarrow", reason='needs pip install "diracnets[parquet]"')
pq = pytest.importorskip("pyarrow.parquet")

CLASSES = ["cat", "dog", "eel"]


def encoded(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write(path, images, labels, *, struct=True, names=CLASSES, rows=4, **more):
    """A file as `datasets` writes one."""
    values = [{"bytes": each, "path": None} for each in images] if struct else images
    table = pa.table({"image": values, "label": labels, **more})
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, row_group_size=rows)


@pytest.fixture
def pictures(picture):
    return [encoded(picture(seed=seed)) for seed in range(30)]


@pytest.fixture
def hub(tmp_path, pictures):
    """A set in three files of several row groups."""
    write(tmp_path / "data" / "train-00000-of-00002.parquet", pictures[:10], [n % 3 for n in range(10)])
    write(tmp_path / "data" / "train-00001-of-00002.parquet", pictures[10:20], [n % 3 for n in range(10)])
    write(tmp_path / "data" / "validation-00000-of-00001.parquet", pictures[20:], [n % 3 for n in range(10)])
    return tmp_path


def test_each_image_with_its_label_and_place(hub, pictures):
    train, val = find_rows(hub)
    assert train.classes == ("cat", "dog", "eel")
    assert (train.labels, val.labels) == ([n % 3 for n in range(10)] * 2, [n % 3 for n in range(10)])
    assert train.source.name(17) == f"{hub}/data/train-00001-of-00002.parquet row 7"
    for each, first in ((train, 0), (val, 20)):
        for index in range(len(each.labels)):
            assert encoded(each.source.image(index)) == pictures[first + index]
    chosen = train.source.select([17, 3])
    assert encoded(chosen.image(0)) == pictures[17]


def test_another_image_in_a_row_is_seen(hub, pictures, picture):
    before = find_rows(hub)[0].source.content(range(20))
    assert find_rows(hub)[0].source.content(range(20)) == before
    others = [*pictures[:7], encoded(picture(seed=99)), *pictures[8:10]]
    write(hub / "data" / "train-00000-of-00002.parquet", others, [n % 3 for n in range(10)])
    assert find_rows(hub)[0].source.content(range(20)) != before


def test_row_groups_are_read_again_where_few_are_kept(hub, monkeypatch):
    monkeypatch.setattr("diracnets.data.parquet.KEPT", 1)  # of which 8 row groups are more: they are kept
    data = load_data("parquet", data_dir=hub, image_size=16, workers=0)
    assert data.input_size == (3, 16, 16)
    seen = torch.cat([indices for _, _, indices in data.train.batches(6, epoch=1)])
    assert sorted(seen.tolist()) == list(range(20))


def test_few_row_groups_are_kept_and_bundles_mix_the_set(tmp_path, picture, monkeypatch):
    images = [encoded(picture(seed=seed % 5)) for seed in range(64)]
    write(tmp_path / "train.parquet", images, [n // 22 for n in range(64)], rows=2)
    size = max(find_rows(tmp_path)[0].source._tables[0].sizes)
    monkeypatch.setattr("diracnets.data.parquet.KEPT", 17 * size)
    train, _ = find_rows(tmp_path)
    bundles = train.source.bundles()
    assert len(set(bundles.tolist())) == 16  # of two of the 32 row groups
    for index in torch.randperm(len(train.labels)).tolist():
        train.source.image(index)
        assert sum(column.nbytes for column in train.source._read.values()) <= 17 * size
    monkeypatch.setattr("diracnets.data.parquet.KEPT", 8 * size)
    labels = np.sort(np.arange(64) % 16)
    write(tmp_path / "train.parquet", images, labels, rows=2, names=[str(n) for n in range(40)])
    assert any("sorted by class" in note for note in find_rows(tmp_path)[0].notes)


def test_bytes_and_names_of_classes_without_metadata(tmp_path, pictures):
    write(tmp_path / "pets.parquet", pictures, ["dog", "cat"] * 15, struct=False, names=None, id=list(range(30)))
    train, val = find_rows(tmp_path / "pets.parquet")
    assert train.classes == ("cat", "dog")
    assert len(train.labels) + len(val.labels) == 30
    assert len(val.labels) == 6
    assert any("not used: id" in note for note in train.notes)


def test_files_in_folders_of_parts(tmp_path, pictures):
    for part in ("train", "test", "validation"):
        write(tmp_path / "default" / part / "0000.parquet", pictures[:6], [0, 1] * 3)
    train, _ = find_rows(tmp_path)
    assert any("left out" in note and "test/0000.parquet" in note for note in train.notes)


def test_what_is_wrong_is_named_by_file_and_row(hub, pictures, tmp_path):
    file = hub / "data" / "train-00000-of-00002.parquet"
    write(file, [*pictures[:5], b"no image", *pictures[6:10]], [0, 1, -1, None, 2, *[0, 1] * 2, 2])
    with pytest.raises(DataError, match=r"3 of 30 samples.*row 2 has no label; .*row 3 has .*row 5 is not an image"):
        find_rows(hub)
    train, _ = find_rows(hub, skip=0.1)
    assert len(train.labels) == 17
    assert train.source.name(2).endswith("train-00000-of-00002.parquet row 4")
    write(file, pictures[:10], [0, 1, 3, *[2] * 7])
    with pytest.raises(DataError, match=r"row 2 is 3, which is none of the 3 classes"):
        find_rows(hub)
    write(file, pictures[:10], [0] * 10, names=["ape", "bee"])
    with pytest.raises(DataError, match="are not those of"):
        find_rows(hub)
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(FileError, match=r"00000-of-00002\.parquet cannot be read as Parquet"):
        find_rows(hub)
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"no column of images: it has text \(string\)"):
        find_rows(tmp_path / "x.parquet")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileError, match="no Parquet files"):
        find_rows(tmp_path / "none")


def test_an_image_that_is_only_a_path_is_refused(tmp_path, pictures):
    values = [{"bytes": each, "path": None} for each in pictures[:4]] + [{"bytes": None, "path": "a.png"}]
    pq.write_table(pa.table({"image": values, "label": [0, 1, 0, 1, 0]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"row 4 holds no image, or only the path of one"):
        find_rows(tmp_path)


def test_a_file_whose_statistics_end_the_process_is_an_error():
    file = Path(__file__).parent / "files" / "ends-the-process.parquet"  # where Arrow asks for a column's sizes
    with pytest.raises(FileError, match="cannot be read as Parquet"):
        find_rows(file)


def test_fewer_images_than_labels_are_an_error(tmp_path):
    file = Path(__file__).parent / "files" / "fewer-images-than-labels.parquet"
    with pytest.raises(DataError, match=r"200 samples .* cannot be used"):
        find_rows(file)
