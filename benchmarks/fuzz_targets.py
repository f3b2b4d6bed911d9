"""What `fuzz.py` tries: for each kind of file, good files to begin with, how they are changed, and what reads them."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import random
import re
import struct
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_mutate import (
    Mutation,
    change_number,
    gzipped,
    json_text,
    pickle_opcodes,
    picture,
    prefixed,
    safetensors,
    tar_headers,
    toml_lines,
    zip_records,
)
from PIL import Image, features
from safetensors import SafetensorError
from safetensors.torch import load as tensors_in
from torch import nn

from diracnets.artifacts import model_file
from diracnets.artifacts.card import ModelCard
from diracnets.artifacts.checkpoint import Checkpoint, save_checkpoint
from diracnets.artifacts.load import load
from diracnets.artifacts.model_format import hash_of
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.cifar import CIFAR10, unpack
from diracnets.data.decode import random_part, to_input
from diracnets.data.image_file import check_whole, opened
from diracnets.data.imagenet import unpack_imagenet
from diracnets.data.parquet import find_rows
from diracnets.data.shards import find_samples
from diracnets.data.unpickle import read_pickle
from diracnets.folding.fold import fold
from diracnets.models.build import build_model
from diracnets.runtime.precision import Precision
from diracnets.training.checkpoints import Checkpoints
from diracnets.training.recipe import Recipe, recipe_names
from diracnets.training.state import State, precision_of

SIZE = (3, 32, 32)


@dataclass(frozen=True)
class Target:
    """One kind of file.

    Attributes:
        name: of the file that is written.
        seeds: makes good files, and some hostile ones, in a folder.
        read: what reads the file, given its path and an empty folder to write to.
        aware: changes that know the format.
        share: of all inputs.
        memory: MiB that reading may take above what the process has.
    """

    name: str
    seeds: Callable[[Path], list[bytes]]
    read: Callable[[Path, Path], object]
    aware: tuple[Mutation, ...]
    share: float
    memory: int = 256


def card(size: tuple[int, ...] = (1, 8, 8), **more: Any) -> ModelCard:  # noqa: ANN401
    return ModelCard(size, (0.5,) * size[0], (0.25,) * size[0], tuple("abcdefghij"), **more)


def model_files(place: Path) -> list[bytes]:
    torch.manual_seed(0)
    path = place / "made.safetensors"
    chains = [fold(build_model("diracnet-10-0.25", in_channels=1, image_size=8).eval())]
    chains.append(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.GELU(),
            nn.AvgPool2d(2),
            nn.Upsample(scale_factor=2.0),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Dropout(0.1),
            nn.Linear(4, 10),
        )
    )
    made = []
    for chain in chains:
        model_file.save(chain.eval(), path, card=card(provenance={"accuracy": 0.5}))
        made.append(path.read_bytes())
    shipped = Path(model_file.__file__).parents[1]
    small = sorted((file.stat().st_size, file) for file in shipped.rglob("*.safetensors"))
    return made + [file.read_bytes() for size, file in small[:3] if size < 1 << 18]


def resigned(data: bytes) -> bytes:
    """A model file with the SHA-256 that its content has now; as it is where safetensors cannot read it."""
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    try:
        content = json.loads(header["__metadata__"]["diracnets"])
        content["sha256"] = hash_of(content, tensors_in(data))
    except (SafetensorError, KeyError, TypeError):
        return data
    header["__metadata__"]["diracnets"] = json.dumps(content)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def checkpoints(place: Path) -> list[bytes]:
    torch.manual_seed(0)
    recipe = Recipe().replaced(model="diracnet-10-0.25", ema_decay=0.9)
    net = build_model("diracnet-10-0.25", in_channels=1, image_size=8)
    training = State(recipe.optimization, net, Precision("float32", "it was asked for"), 10)
    net(torch.randn(2, 1, 8, 8)).sum().backward()
    training.optimizer.step()
    path = place / "made.pt"
    known = card(architecture=net.config, recipe=recipe.table(), provenance={"epoch": 1})
    made = []
    for resume in (training.to_data(), None):
        save_checkpoint(path, Checkpoint(known, net.state_dict(), resume))
        made.append(re.sub(rb"\.made-[0-9a-f]{8}", b".made-00000000", path.read_bytes()))  # of a part's random name
    laughs: list[Any] = []
    for _ in range(12):
        laughs = [laughs] * 9
    state = net.state_dict()
    flat = torch.cat([each.flatten().float() for each in state.values()]).split(
        [each.numel() for each in state.values()]
    )
    for value in (
        {name: part.view(each.shape) for part, (name, each) in zip(flat, state.items(), strict=True)},
        {"format": laughs},
        {"format": "diracnets-checkpoint-2", "card": {**known.to_data(), "fold": {"a": laughs}}, "state": {}},
    ):
        for new in (True, False):
            torch.save(value, path, _use_new_zipfile_serialization=new)
            made.append(re.sub(rb"X.\0\0\0\d{14,15}", b"X\x0e\0\0\0" + b"1" * 14, path.read_bytes()))  # of an address
    return made


def read_checkpoint(path: Path, _: Path) -> None:
    load(path)
    saved = Checkpoints(path.parent).read_one(path)
    recipe = Recipe.from_table(dict(saved.card.recipe or {}), str(path), warn=False)
    resumed = dict(saved.resume or {})
    State(recipe.optimization, saved.network(), precision_of(resumed), 10).restore(resumed)


def recipes(_: Path) -> list[bytes]:
    from diracnets.training import recipe

    shipped = [(Path(recipe.__file__).parent / "recipes" / f"{name}.toml").read_bytes() for name in recipe_names()]
    old = b'model = "diracnet-28-1"\nstart = "deep"\ninit = "normal"\nepochs = 3\nlr = 0.1\nmixup = 0.2\n'
    old += b"drops = [1, 2]\ndrop_factor = 0.1\n"
    return [*shipped, old]


def read_recipe(path: Path, out: Path) -> None:
    recipe = Recipe.load(path)
    recipe.save(out / "again.toml")
    if Recipe.load(out / "again.toml") != recipe:
        raise AssertionError("saved and loaded, it is another recipe")


def batch(images: int = 3) -> dict[bytes, Any]:
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3072), np.uint8)
    return {
        b"data": pixels,
        b"labels": list(range(images)),
        b"batch_label": b"1 of 1",
        b"filenames": [b"a.png"] * images,
    }


def cifar_pickles(_: Path) -> list[bytes]:
    names = {"label_names": list("abcdefghij"), "num_cases_per_batch": 3}
    return [pickle.dumps(value, protocol) for value in (batch(), names) for protocol in (0, 1, 2, 4)]


def read_cifar(path: Path, _: Path) -> None:
    found = read_pickle(path.read_bytes(), str(path))
    repr(found), sorted(map(str, found))  # what an error may print


def cifar_archives(_: Path) -> list[bytes]:
    files = {f"{CIFAR10.folder}/{name}": pickle.dumps(batch(), 2) for name in CIFAR10.files}
    bomb = {f"{CIFAR10.folder}/batches.meta": bytes(1 << 22)}
    return [packed(tar(files)), packed(tar(bomb)), packed(tar(files, tarfile.GNU_FORMAT))]


def read_archive(path: Path, out: Path) -> None:
    unpack(path, out / CIFAR10.folder, CIFAR10.files)


def packed(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def tar(files: dict[str, bytes], kind: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=kind) as made:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return out.getvalue()


def image(kind: str, size: tuple[int, int] = (40, 30), mode: str = "RGB", **more: Any) -> bytes:  # noqa: ANN401
    out = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels // 16 * 16).convert(mode).save(out, kind, **more)
    return out.getvalue()


@cache
def shards(_: Path) -> list[bytes]:
    jpeg, png = image("JPEG"), image("PNG")
    named = {
        f"train/{n}.{kind}": content for n in range(6) for kind, content in (("jpg", jpeg), ("cls", b"%d" % (n % 2)))
    }
    listed = {
        f"{n:04d}.{kind}": content
        for n in range(4)
        for kind, content in (("json", b'{"label": "%d", "x": [1]}' % (n % 2)), ("png", png))
    }
    odd = {
        "../../a.jpg": jpeg,
        "../../a.cls": b"1",
        "/b.jpg": jpeg,
        "/b.cls": b"1",
        "e/../f.jpg": jpeg,
        "e/../f.cls": b"0",
        "c" * 200 + ".jpg": jpeg,
        "c" * 200 + ".cls": b"0",
    }
    return [
        tar(files, kind)
        for files in (named, listed, odd)
        for kind in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
        if files is not odd or kind != tarfile.USTAR_FORMAT
    ]


def read_shard(path: Path, _: Path) -> None:
    for part in find_samples(path, skip=0.5):
        for number in range(min(4, len(part.labels))):
            part.source.fitted(number, SIZE)
            part.source.name(number)


@cache
def imagenet(_: Path) -> list[bytes]:
    """A letter that says which of the three archives it is, and the archive."""
    from scipy.io import savemat

    rows = [(1, "n03000001", "thing", 0, 2), (2, "n01000002", "stuff", 0, 2)]
    kinds = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "num_children", "num_train_images")]
    meta = io.BytesIO()
    savemat(meta, {"synsets": np.array(rows, kinds)}, do_compression=True)
    where = "ILSVRC2012_devkit_t12/data"
    kit = tar(
        {
            f"{where}/meta.mat": b"MATLAB 5.0 MAT-file".ljust(116) + meta.getvalue()[116:],
            f"{where}/ILSVRC2012_validation_ground_truth.txt": b"1\n2\n",
        }
    )
    val = tar({f"ILSVRC2012_val_0000000{n}.JPEG": b"image" for n in (1, 2)})
    train = tar(
        {f"{wnid}.tar": tar({f"{wnid}_{n}.JPEG": b"image" for n in (1, 2)}) for wnid in ("n03000001", "n01000002")}
    )
    return [b"D" + packed(kit), b"V" + val, b"T" + train]


def read_imagenet(path: Path, out: Path) -> None:
    data = path.read_bytes()
    good = {seed[:1]: seed[1:] for seed in imagenet(Path())}
    files = {kind: path.with_name(f"{kind.decode()}.tar") for kind in good}
    for kind, file in files.items():
        file.write_bytes(data[1:] if data[:1] == kind else good[kind])
    unpack_imagenet(files[b"T"], files[b"V"], files[b"D"], out / "imagenet", check_hashes=False)


def headers(data: bytes, choice: random.Random) -> bytes:
    return (gzipped(tar_headers) if data[:2] == b"\x1f\x8b" else tar_headers)(data, choice)


def images(_: Path) -> list[bytes]:
    made = [image(kind) for kind in ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")]
    made += [image("PNG", mode=mode) for mode in ("L", "LA", "P", "RGBA", "1", "I;16")]
    made += [image("JPEG", progressive=True), image("JPEG", mode="CMYK"), image("WEBP", mode="RGBA", lossless=True)]
    made += [image("TIFF", compression=kind) for kind in ("tiff_lzw", "tiff_adobe_deflate", "jpeg", "packbits")]
    made += [image(kind) for kind, feature in (("JPEG2000", "jpg_2000"), ("AVIF", "avif")) if features.check(feature)]
    frames = [Image.new("RGB", (20, 20), (n * 40, 0, 0)) for n in range(4)]
    for kind in ("GIF", "PNG", "WEBP", "TIFF"):
        out = io.BytesIO()
        frames[0].save(out, kind, save_all=True, append_images=frames[1:])
        made.append(out.getvalue())
    return made + bombs()


def bombs() -> list[bytes]:
    """A few hundred bytes that say they are gigabytes, and some that are a little below the limit."""

    def png(width: int, height: int, kind: int, depth: int = 8, pixels: int = 1000) -> bytes:
        made = b"\x89PNG\r\n\x1a\n"
        for name, body in (
            (b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)),
            (b"IDAT", zlib.compress(bytes(pixels), 9)),
            (b"IEND", b""),
        ):
            made += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
        return made

    sides = ((100_000, 100_000), (2**31 - 1, 1), (9400, 9400), (65_000, 1300))
    made = (
        [png(9400, 9400, 0, 1, 9400 * 1176)]
        + [png(*side, kind) for side in sides for kind in (0, 2, 6)]
        + [png(9400, 9400, 0, 1), png(9400, 9400, 4, 16)]
    )
    for side in ((65_000, 65_000), (9400, 9400)):
        made.append(b"P6\n%d %d\n255\n" % side + bytes(100))
        made.append(
            b"GIF89a"
            + struct.pack("<HHBBB", *side, 0x80, 0, 0)
            + bytes(6)
            + b","
            + struct.pack("<HHHHB", 0, 0, *side, 0)
            + b"\x02\x02\x44\x01\0;"
        )
        made.append(
            b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, *side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(50)
        )
        made.append(
            b"RIFF"
            + struct.pack("<I", 50)
            + b"WEBPVP8X"
            + struct.pack("<I", 10)
            + b"\x10\0\0\0"
            + side[0].to_bytes(3, "little")
            + side[1].to_bytes(3, "little")
            + bytes(20)
        )
    return made


def read_image(path: Path, _: Path) -> None:
    check_whole(path)
    pixels = to_input(path, SIZE, (0.5,) * 3, (0.5,) * 3)
    if pixels.shape != SIZE:
        raise AssertionError("pixels of another shape")
    with opened(path) as picture_:
        random_part(picture_, (3, 96, 96), 0.1, [0.4] * 40)


def parquet(place: Path) -> list[bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    png = image("PNG", (8, 8))
    table = pa.table({"image": [{"bytes": png, "path": "a.png"}] * 10, "label": [0, 1] * 5})
    named = {"info": {"features": {"label": {"names": ["a", "b"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}}}
    bomb = pa.table({"image": [bytes(1 << 16)] * 200, "label": ["a", "b"] * 100})
    made = []
    for value, more in (
        (table, {}),
        (table, {"compression": "none", "use_dictionary": False}),
        (bomb, {"compression": "zstd"}),
    ):
        if value is table:
            value = value.replace_schema_metadata({"huggingface": json.dumps(named)})
        pq.write_table(value, place / "made.parquet", row_group_size=50, **more)
        made.append((place / "made.parquet").read_bytes())
    return made


def read_parquet(path: Path, _: Path) -> None:
    for part in find_rows(path):
        for number in range(min(3, len(part.labels))):
            part.source.fitted(number, SIZE)


def records(_: Path) -> list[bytes]:
    """A letter that says which file it is, and its JSON."""
    run = {"data_dir": "/data", "start": None, "teacher": "x", "teacher_fingerprint": "y", "safeguards": {"keep": 1}}
    shard = {"file": "train-0.tar", "bytes": 100, "sha256": "0" * 64, "index": "train-0.json"}
    split = {"name": "train", "filenames": ["train-0.tar"], "shard_lengths": [2], "shards": [shard]}
    info = {"splits": {"train": split}, "classes": ["a", "b"]}
    index = {
        "format": "diracnets-shard-index-1",
        "size": 4096,
        "names": ["a.png", "b.png"],
        "offsets": [512, 1536],
        "sizes": [300, 300],
        "labels": [0, 1],
        "bad": [],
        "others": 0,
        "cut": None,
        "version": None,
    }
    earlier = [{"data_dir": "/data", "start": "x"}]
    return [
        kind + json.dumps(value).encode() for kind, value in ((b"R", run), (b"I", info), (b"X", index), (b"E", earlier))
    ]


def read_record(path: Path, out: Path) -> None:
    from diracnets.data.shard_index import ShardIndex
    from diracnets.training.safeguards import Safeguards

    data = path.read_bytes()
    if data[:1] in (b"R", b"E"):
        (out / ("run.json" if data[:1] == b"R" else "environment.json")).write_bytes(data[1:])
        Safeguards.of(RunRecord.read(out).safeguards)
    elif data[:1] == b"X":
        ShardIndex.from_json(data[1:])
    else:
        (out / "_info.json").write_bytes(data[1:])
        (out / "train-0.tar").write_bytes(shards(Path())[0])
        find_samples(out, skip=0.9)


TARGETS: dict[str, Target] = {
    "model files": Target(
        "a.safetensors", model_files, lambda path, _: model_file.verify(path), (safetensors(resigned),), 2.0
    ),
    "checkpoints": Target("last.pt", checkpoints, read_checkpoint, (zip_records,), 2.0),
    "recipes": Target("a.toml", recipes, read_recipe, (toml_lines, toml_lines, change_number), 12.0),
    "CIFAR pickles": Target("data_batch_1", cifar_pickles, read_cifar, (pickle_opcodes,), 42.0),
    "CIFAR archives": Target(
        "cifar-10-python.tar.gz", cifar_archives, read_archive, (gzipped(tar_headers),), 1.5, memory=640
    ),
    "shards": Target("train-0.tar", shards, read_shard, (tar_headers,), 3.0),
    "ImageNet archives": Target("a.tar", imagenet, read_imagenet, (prefixed(headers),), 1.5),
    "images": Target("a.png", images, read_image, (picture,), 2.5, memory=1536),
    "Parquet": Target("a.parquet", parquet, read_parquet, (), 3.5),
    "records": Target("a.json", records, read_record, (prefixed(json_text),), 30.0),
}
