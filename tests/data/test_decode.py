import io
import os
import struct
import sys
import threading
import zlib
from contextlib import suppress

import numpy as np
import pytest
import torch
from PIL import Image

from diracnets.data.decode import decoded, fitted, is_grey, random_part, to_input
from diracnets.data.image_file import SUFFIXES, opened
from diracnets.deploy.memory import peak_memory, reset_peak, used_memory
from diracnets.errors import DataError, FileError, UsageError

HALF = [0.5] * 3
DRAWS = [0.5, 0.5, 0.25, 0.75] * 10


def read(path, channels=3):
    with opened(path) as image:
        return np.asarray(decoded(image, channels)).astype(int)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "RGBA", "LA"])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
def test_every_kind_of_image_is_read_as_rgb_and_as_grey(tmp_path, picture, mode, suffix):
    path = tmp_path / f"x.{suffix}"
    image = picture().convert(mode)
    try:
        image.save(path, **({"quality": 95} if suffix in ("jpg", "webp") else {}))
    except (OSError, ValueError):
        pytest.skip(f"Pillow writes no {mode} as {suffix}")
    expected = np.asarray(image.convert("RGB")).astype(int)
    if mode not in ("1", "P"):  # whose dots lossy formats do not keep
        assert np.abs(read(path) - expected).mean() < 8
    assert read(path).shape == (30, 40, 3)
    assert read(path, channels=1).shape == (30, 40)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_white(tmp_path, mode):
    image = Image.new("RGBA", (4, 4), (10, 10, 10, 255))
    image.putpixel((1, 2), (10, 10, 10, 0))
    if mode == "P":
        image = image.quantize(4)
    image.convert(mode).save(tmp_path / "x.png")
    found = read(tmp_path / "x.png")
    assert found[2, 1].tolist() == [255] * 3
    assert np.abs(found[0, 0] - 10).max() <= 1


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_keep_their_upper_8(tmp_path, suffix):
    values = np.arange(0, 65536, 4096, dtype=np.uint16).reshape(4, 4)
    Image.fromarray(values).save(tmp_path / f"x.{suffix}")
    assert read(tmp_path / f"x.{suffix}", channels=1).tolist() == (values >> 8).tolist()
    assert read(tmp_path / f"x.{suffix}")[..., 2].tolist() == (values >> 8).tolist()


@pytest.mark.parametrize("mode", ["F", "I"])
def test_more_than_16_bits_are_refused(tmp_path, mode):
    Image.new(mode, (4, 4), 70000).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff cannot be decoded.*convert it to 8 or 16 bits"):
        read(tmp_path / "x.tiff")


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_respected(tmp_path, suffix, orientation):
    upright = Image.new("RGB", (64, 32), "black")
    upright.paste("red", (0, 0, 16, 16))  # top left
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / f"x.{suffix}", exif=exif, **({"quality": 95} if suffix != "tiff" else {}))
    found = read(tmp_path / f"x.{suffix}")
    assert found.shape == (32, 64, 3)
    assert found[8, 8, 0] > 200
    assert found[8, 56].max() < 60
    assert found[24, 8].max() < 60
    with opened(tmp_path / f"x.{suffix}") as image:
        assert random_part(image, (3, 16, 32), 1.0, [1.0 - 1e-7, 0.5, 0, 0] * 10).shape == (16, 32, 3)


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0II*\0\x08\0\0\0\x01\0i\x87\t\0\x01\0\0\0\xfb\xff\xff\xff"]
)
def test_damaged_metadata_does_not_matter(tmp_path, picture, exif):
    picture().save(tmp_path / "x.jpg", exif=exif)
    assert read(tmp_path / "x.jpg").shape == (30, 40, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "gif", "tiff"])
@pytest.mark.parametrize("keep", [0.6, 0.9])
def test_truncated_images_are_named(tmp_path, picture, suffix, keep):
    path = tmp_path / f"x.{suffix}"
    picture(200, 150).save(path)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(DataError, match=rf"x\.{suffix} "):
        read(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", r"x\.jpg is empty \(0 bytes\)"),
        (b"hello", r"x\.jpg is not an image that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"x\.jpg is not an image"),
    ],
)
def test_files_that_are_no_images_are_named(tmp_path, content, said):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read(tmp_path / "x.jpg")


@pytest.mark.parametrize("content", [True, False])
def test_a_pipe_is_read_to_its_end(tmp_path, picture, content):
    os.mkfifo(tmp_path / "pipe")
    buffer = io.BytesIO()
    picture().save(buffer, "png")
    written = buffer.getvalue() if content else b""
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(written,))
    writer.start()
    if content:
        assert (read(tmp_path / "pipe") == np.asarray(picture())).all()
    else:
        with pytest.raises(DataError, match=r"pipe is empty \(0 bytes\)"):
            read(tmp_path / "pipe")
    writer.join()


def test_a_stream_has_the_name_it_is_given(picture):
    buffer = io.BytesIO()
    picture().save(buffer, "png")
    buffer.seek(0)
    with opened(buffer, "the first") as image:
        assert decoded(image, 3).size == (40, 30)
    with pytest.raises(DataError, match="the second is not an image"), opened(io.BytesIO(b"text"), "the second"):
        pass


def test_missing_files_are_named(tmp_path):
    with pytest.raises(FileError, match=r"cannot read .*nothing\.png: No such file"):
        read(tmp_path / "nothing.png")


@pytest.mark.parametrize("limit", [999, 400])
def test_decompression_bombs_are_refused(tmp_path, picture, monkeypatch, limit):
    picture(50, 20).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns above it, and raises above twice that
    with pytest.raises(DataError, match=rf"x\.png has .* pixels, more than the {limit}"):
        read(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    opened_before = Image.open(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=rf"the image has 50x20 pixels, more than the {limit}"):
        to_input(opened_before, (3, 32, 32), HALF, HALF)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    opened_before.load()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert to_input(opened_before, (3, 32, 32), HALF, HALF).shape == (3, 32, 32)  # it is in memory already


def header(kind, width, height):
    """A file of a few hundred bytes that says to be of some size."""
    big, little = struct.pack(">II", width, height), struct.pack("<II", width, height)
    short = struct.pack(">HH", height % 65536, width % 65536)
    options = {"no_jp2": True} if kind == "jp2" else {}
    if kind == "ppm":
        return f"P6 {width} {height} 255\n".encode()
    if kind == "tiff":
        tags = [(256, width), (257, height), (258, 8), (259, 8), (262, 1), (273, 8), (277, 1), (278, height), (279, 60)]
        entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
        return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(64)
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, {"jp2": "jpeg2000", "jpg": "jpeg"}.get(kind, kind), **options)
    made = bytearray(buffer.getvalue())
    if kind == "png":
        made[16:24] = big
        made[29:33] = struct.pack(">I", zlib.crc32(made[12:29]))
    elif kind == "jpg":
        place = made.index(b"\xff\xc0") + 5
        made[place : place + 4] = short
    elif kind == "gif":
        made[6:10] = struct.pack("<HH", width % 65536, height % 65536)
    elif kind == "bmp":
        made[18:26] = little
    elif kind == "webp":
        made[26:30] = struct.pack("<HH", width % 16384, height % 16384)
    elif kind == "avif":
        place = made.index(b"ispe") + 8
        made[place : place + 8] = big
    else:
        place = made.index(b"\xff\x51") + 6
        made[place : place + 8] = big
    return bytes(made)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured through /proc")
@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "gif", "bmp", "tiff", "ppm", "jp2", "avif"])
def test_a_few_bytes_never_become_gigabytes(tmp_path, kind):
    suffix = f".{kind}"
    if suffix not in SUFFIXES:
        pytest.skip(f"this Pillow does not read {kind}")
    for size, said in [
        ((16_000, 16_000), "pixels, more than the 89,478,485"),  # more than twice as many as are safe
        ((11_000, 11_000), "11000x11000 pixels, more than the 89,478,485"),
        ((9_400, 9_400), r"9400x9400 pixels in [0-9]+ bytes"),
        ((1, 89_000_000), "(1x89000000|too many) pixels"),
    ]:
        if max(size) > 65_535 and kind in ("jpg", "gif", "webp", "avif"):
            continue  # which cannot say so
        (tmp_path / f"x{suffix}").write_bytes(header(kind, *size))
        reset_peak()
        before = used_memory()
        with pytest.raises(DataError, match=said):
            read(tmp_path / f"x{suffix}")
        assert peak_memory() - before < 1 << 27  # of 350 MB to 1 GB; the allocator takes 64 MiB at a time


@pytest.mark.parametrize("kind", ["ico", "icns", "eps", "tga", "pdf", "pcx", "psd"])
def test_formats_that_are_not_named_are_not_tried(tmp_path, picture, kind):
    with suppress(KeyError, ValueError, OSError):
        picture(64, 64).save(tmp_path / f"x.{kind}")
    if kind == "psd":
        (tmp_path / "x.psd").write_bytes(b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(99))
    with pytest.raises(DataError, match="is not an image that can be read"):
        read(tmp_path / f"x.{kind}")


@pytest.mark.parametrize("size", [(40, 30), (300, 500), (1000, 90), (96, 96), (1, 1), (700, 3)])
@pytest.mark.parametrize("input_size", [(3, 96, 96), (1, 96, 96), (3, 28, 28), (3, 80, 120)])
def test_any_image_fits_any_input(picture, size, input_size):
    pixels = fitted(picture(*size), input_size)
    assert pixels.shape == (*input_size[1:], input_size[0])
    assert pixels.dtype == np.uint8
    part = random_part(picture(*size), input_size, 0.08, DRAWS)
    assert part.shape == pixels.shape


@pytest.mark.parametrize("size", [(1, 65_000), (65_000, 1), (2, 60_000), (40_000, 3)])
@pytest.mark.parametrize("input_size", [(3, 224, 224), (1, 96, 160), (3, 32, 32)])
def test_a_thin_image_needs_no_memory_for_what_is_cropped_away(tmp_path, size, input_size):
    """Scaled to cover the input it would have up to 3.7 billion pixels."""
    Image.new("RGB", size, (10, 120, 200)).save(tmp_path / "thin.png")
    assert (tmp_path / "thin.png").stat().st_size < 2000
    channels, height, width = input_size
    expected = np.full((height, width, channels), (10, 120, 200) if channels == 3 else 96, np.uint8)
    with opened(tmp_path / "thin.png") as image:
        before = Image.core.get_stats()["allocated_blocks"]
        found = fitted(image, input_size)
        blocks = Image.core.get_stats()["allocated_blocks"] - before
    assert (found == expected).all()
    assert blocks < 20  # of 16 MiB
    with opened(tmp_path / "thin.png") as image:
        assert (random_part(image, input_size, 0.08, DRAWS) == expected).all()


@pytest.mark.parametrize("size", [(301, 233), (97, 1203), (2000, 1333), (50, 61), (225, 224), (640, 480)])
def test_what_is_computed_is_the_centre_of_the_image_resized(size):
    """The same numbers as by resizing all of it: on noise, where it matters most, to one level of 256."""
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    scale = 256 / 224 * max(224 / size[0], 224 / size[1])
    whole = max(224, round(size[0] * scale)), max(224, round(size[1] * scale))
    left, top = (whole[0] - 224) // 2, (whole[1] - 224) // 2
    expected = noise.resize(whole, Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    difference = np.abs(fitted(noise, (3, 224, 224)).astype(int) - np.asarray(expected).astype(int))
    assert difference.max() <= 1
    assert difference.mean() < 0.3  # where an upscaled image has many values just between two levels


def test_large_inputs_see_the_centre_and_tiny_ones_the_whole(picture):
    image = picture(448, 300)
    image.paste("black", (0, 0, 40, 300))  # a bar at the left border, which the centre crop leaves out
    assert fitted(image, (3, 200, 200))[:, 0].max() > 0
    assert fitted(image, (3, 32, 32))[:, 0].max() == 0
    exact = picture(224, 224)
    assert fitted(exact, (3, 224, 224)).tobytes() == exact.tobytes()
    larger = picture(512, 512)
    expected = larger.resize((256, 256), Image.Resampling.BILINEAR).crop((16, 16, 240, 240))
    assert fitted(larger, (3, 224, 224)).tobytes() == expected.tobytes()


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_random_part_is_what_its_numbers_say(tmp_path, picture, suffix):
    image = picture(800, 600)
    image.save(tmp_path / f"x.{suffix}", quality=98)
    draws = [0.25, 0.5, 0.5, 1 - 2**-24] * 10  # a quarter of the area, square, centred, at the bottom
    with opened(tmp_path / f"x.{suffix}") as file:
        found = random_part(file, (3, 64, 64), 0.0, draws)
        assert file.width == (400 if suffix == "jpg" else 800)  # a JPEG is decoded at half its size: 346 pixels for 64
    side, left, top = 346, 227, 254
    box = (left, top, left + side, top + side)
    expected = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR, box=box)).astype(int)
    assert np.abs(found - expected).mean() < 1.5


def test_random_parts_have_the_areas_and_proportions_asked_for():
    from diracnets.data.decode import _random_box

    generator = np.random.default_rng(0)
    areas, ratios = [], []
    for _ in range(2000):
        left, top, width, height = _random_box(400, 300, 0.3, generator.random(40).tolist())
        assert left >= 0
        assert top >= 0
        assert left + width <= 400
        assert top + height <= 300
        areas.append(width * height / 120_000)
        ratios.append(width / height)
    assert 0.29 < min(areas) < 0.32
    assert max(areas) > 0.95
    assert 0.74 < min(ratios) < 0.77
    assert 1.3 < max(ratios) < 1.35
    assert _random_box(1000, 10, 1.0, [0.5] * 40) == (493, 0, 13, 10)  # no attempt fits: the central part


def test_to_input_is_normalized_and_the_same_from_a_file_and_a_picture(tmp_path, picture):
    image = picture(300, 200)
    image.save(tmp_path / "x.png")
    one = to_input(image, (3, 96, 96), HALF, [0.25] * 3)
    assert one.dtype == torch.float32
    assert one.shape == (3, 96, 96)
    assert one.equal(to_input(str(tmp_path / "x.png"), (3, 96, 96), HALF, [0.25] * 3))
    expected = (fitted(image, (3, 96, 96)).astype(float) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(one.permute(1, 2, 0).numpy(), expected, atol=1e-5)
    assert to_input(image, (1, 8, 8), [0.3], [0.4]).shape == (1, 8, 8)
    assert image.size == (300, 200)


def test_a_damaged_picture_in_memory_and_odd_channels(picture):
    buffer = io.BytesIO()
    picture(200, 200).save(buffer, "png")
    broken = Image.open(io.BytesIO(buffer.getvalue()[:2000]))
    with pytest.raises(DataError, match="the image cannot be decoded"):
        to_input(broken, (3, 32, 32), HALF, HALF)
    with pytest.raises(UsageError, match="the network takes 4"):
        to_input(picture(), (4, 32, 32), [0.5] * 4, [0.5] * 4)


@pytest.mark.parametrize(
    ("mode", "grey"),
    [("1", True), ("L", True), ("LA", True), ("I;16", True), ("I", True), ("F", True), ("P", False), ("RGB", False),
     ("RGBA", False), ("CMYK", False)],
)  # fmt: skip
def test_grey_is_a_matter_of_the_kind(mode, grey):
    assert is_grey(Image.new(mode, (2, 2))) == grey


def test_a_jpeg_of_endless_scans_is_refused(tmp_path):
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, "JPEG", progressive=True)
    content = buffer.getvalue()
    last = content[content.rindex(b"\xff\xda") : -2]
    for count in (1, 300):
        (tmp_path / "a.jpg").write_bytes(content[:-2] + last * count + content[-2:])
        if count == 1:
            assert to_input(tmp_path / "a.jpg", (1, 8, 8), (0.5,), (0.5,)).shape == (1, 8, 8)
        else:
            with pytest.raises(DataError, match=r"a\.jpg has 306 scans"):
                to_input(tmp_path / "a.jpg", (1, 8, 8), (0.5,), (0.5,))
