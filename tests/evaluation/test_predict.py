"""Prediction needs the file and the images, and nothing else."""

import io
import json
import os
import sys
import threading
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import diracnets
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.model_file import save
from diracnets.data.decode import to_input
from diracnets.errors import DataError, FileError, UsageError
from diracnets.evaluation.predict import Prediction, Predictor, predict

pytestmark = pytest.mark.filterwarnings("ignore:.*photos. left out as:UserWarning")  # which has a test of its own
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def model_file(folder, channels=3, classes=("a", "b", "c"), dtype=torch.float32):
    torch.manual_seed(0)
    chain = nn.Sequential(
        nn.Conv2d(channels, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
    ).to(dtype)
    card = ModelCard((channels, 16, 16), MEAN[:channels], STD[:channels], classes)
    save(chain, folder / "model.safetensors", card=card)
    return folder / "model.safetensors"


def picture(path, color, size=(20, 14), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, color).convert(mode).save(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    picture(folder / "b.png", "red")
    picture(folder / "a.jpg", "green")
    picture(folder / "sub" / "c.PNG", "blue", mode="L")
    picture(folder / ".hidden" / "d.png", "white")
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_the_networks_on_the_normalized_image(tmp_path, photos, channels, dtype):
    path = model_file(tmp_path, channels, dtype=dtype)
    chain = diracnets.load(path)
    x = to_input(photos / "b.png", (channels, 16, 16), MEAN[:channels], STD[:channels])[None]
    expected = chain(x.to(dtype)).float().softmax(1)[0]
    (found,) = predict(path, photos / "b.png", device="cpu")
    assert [name for name, _ in found.top] == ["abc"[i] for i in expected.argsort(descending=True)]
    assert [p for _, p in found.top] == pytest.approx(expected.sort(descending=True).values.tolist(), abs=1e-6)
    assert (found.label, found.probability) == found.top[0]


def test_files_folders_patterns_and_pictures_in_order(tmp_path, photos):
    path = model_file(tmp_path)
    given = [photos / "b.png", str(photos), str(photos / "*.png"), Image.new("L", (9, 9)), str(photos / "**" / "c.*")]
    names = [prediction.name for prediction in predict(path, given)]
    b, a, c = (str(photos / name) for name in ("b.png", "a.jpg", "sub/c.PNG"))
    assert names == [b, a, b, c, b, "image 3", c]


def test_below_the_threshold_the_answer_is_unknown(tmp_path, photos):
    path = model_file(tmp_path)
    wanted = predict(path, photos)
    least, *_, most = sorted(each.probability for each in wanted)
    for threshold, known in ((least, 3), ((least + most) / 2, None), (most, 1), (1.0, 0)):
        found = predict(path, photos, threshold=threshold)
        assert [each.top for each in found] == [each.top for each in wanted]
        sure = [each.probability >= threshold for each in found]
        assert [each.label for each in found] == [
            each.top[0][0] if one else "unknown" for each, one in zip(found, sure, strict=True)
        ]
        assert known in (None, sum(sure))
    for impossible in (-0.1, 1.1, float("nan")):
        with pytest.raises(UsageError, match=r"threshold is .*; it must be a probability, 0 to 1"):
            predict(path, photos, threshold=impossible)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_batches_change_nothing(tmp_path, photos, batch_size):
    path = model_file(tmp_path)
    wanted, found = predict(path, photos), predict(path, photos, batch_size=batch_size)
    assert [p.name for p in found] == [p.name for p in wanted]
    assert [p.probability for p in found] == pytest.approx([p.probability for p in wanted])


def test_top_and_classes_without_names(tmp_path, photos):
    path = model_file(tmp_path, classes=())
    assert [len(prediction.top) for prediction in predict(path, photos, top=2)] == [2, 2, 2]
    (found,) = predict(path, photos / "a.jpg", top=9)
    assert {name for name, _ in found.top} == {"0", "1", "2"}
    assert sum(p for _, p in found.top) == pytest.approx(1)
    assert json.loads(json.dumps(asdict(found)))["label"] == found.label


def test_loaded_network_and_checkpoint_predict_as_their_file(tmp_path, photos):
    path = model_file(tmp_path)
    assert predict(diracnets.load(path), photos) == predict(path, photos, device="cpu")


def test_name_that_looks_like_a_pattern_is_a_file_where_there_is_one(tmp_path, photos):
    odd = picture(photos / "x[1].png", "red")
    assert [p.name for p in predict(model_file(tmp_path), str(odd))] == [str(odd)]


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.png", b""), ("text.jpg", b"not an image"), ("cut.png", None)],
    ids=["empty", "text", "cut"],
)
def test_broken_image_is_named(tmp_path, photos, name, content):
    whole = picture(tmp_path / "whole.png", "red", size=(200, 200)).read_bytes()
    (photos / name).write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.raises(DataError, match=name) as caught:
        predict(model_file(tmp_path), photos)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_broken_images_can_be_left_out_and_are_told(tmp_path, photos, batch_size):
    path = model_file(tmp_path)
    wanted = predict(path, photos)
    for name in ("0.png", "az.png", "z.png"):
        (photos / name).write_text("not an image")
    told = []
    found = predict(path, photos, batch_size=batch_size, on_unreadable=lambda *each: told.append(each))
    assert [each.name for each in found] == [each.name for each in wanted]
    assert [each.probability for each in found] == pytest.approx([each.probability for each in wanted])
    assert [name for name, _ in told] == [str(photos / name) for name in ("0.png", "az.png", "z.png")]
    assert all(isinstance(error, DataError) and name in str(error) for name, error in told)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("nowhere.png", FileError, "no image nowhere.png"),
        ("nowhere/*.png", FileError, "no file matches nowhere/"),
        ([3], UsageError, "image 0 is a int"),
    ],
)
def test_missing_images(tmp_path, images, error, message):
    with pytest.raises(error, match=message):
        predict(model_file(tmp_path), images)


def test_what_is_left_out_of_a_folder_is_said(tmp_path, photos):
    path, notes = model_file(tmp_path), []
    with pytest.warns(UserWarning, match=r"photos: left out as hidden.*: \.hidden; .*left out as no image: notes\.txt"):
        predict(path, photos)
    assert len(predict(path, photos, on_note=notes.append)) == 3
    assert [note.rpartition(": ")[2] for note in notes] == [".hidden", "notes.txt"]


def test_what_is_missing_is_named_like_what_cannot_be_read(tmp_path, photos):
    (tmp_path / "none").mkdir()
    good = str(photos / "a.jpg")
    wrong = ["nowhere.png", str(tmp_path / "none"), "*.nothing", "https://example.com//a.png", "x" * 5000, "-"]
    told = []
    found = predict(
        model_file(tmp_path), [good, *wrong, good], on_unreadable=lambda name, error: told.append((name, str(error)))
    )
    assert [each.name for each in found] == [good, good]
    assert [name for name, _ in told] == wrong
    messages = dict(told)
    assert messages["https://example.com//a.png"] == (
        "https://example.com//a.png is a URL, which is not fetched: download it first"
    )
    assert "File name too long" in messages["x" * 5000]
    assert len(messages["x" * 5000]) < 300


@pytest.mark.parametrize("folder", ["photos [2024]", "a[!b]", "[a]/[b]", "*"])
@pytest.mark.parametrize("pattern", ["*.png", "**/*.png", "[ab].png", "**"])
def test_a_pattern_below_a_folder_with_brackets(tmp_path, folder, pattern):
    wanted = [str(picture(tmp_path / "in" / folder / name, "red")) for name in ("a.png", "b.png")]
    for given in (tmp_path / "in" / folder / pattern, tmp_path / "i?" / folder / pattern):
        assert [each.name for each in predict(model_file(tmp_path), str(given))] == wanted


def test_a_pattern_does_not_follow_links_in_circles_nor_find_an_image_twice(tmp_path):
    wanted = [str(picture(tmp_path / "p" / name, "red")) for name in ("a.png", "b/c.png")]
    (tmp_path / "p" / "b" / "up").symlink_to(tmp_path / "p")
    assert [each.name for each in predict(model_file(tmp_path), str(tmp_path / "p" / "**" / "*.png"))] == wanted


def test_an_image_may_be_a_stream_or_come_through_a_pipe(tmp_path, photos, monkeypatch):
    path, content = model_file(tmp_path), (photos / "b.png").read_bytes()
    (wanted,) = predict(path, photos / "b.png")

    class Stdin:
        buffer = io.BytesIO(content)
        isatty = staticmethod(lambda: False)

    monkeypatch.setattr(sys, "stdin", Stdin())
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=(tmp_path / "pipe").write_bytes, args=(content,))
    writer.start()
    found = predict(path, [tmp_path / "pipe", "-", io.BytesIO(content)])
    writer.join()
    assert [each.name for each in found] == [str(tmp_path / "pipe"), "-", "image 2"]
    assert all(each.top == wanted.top for each in found)
    with pytest.raises(DataError, match=r"^- is empty \(0 bytes\)"):
        predict(path, "-")
    Stdin.isatty = staticmethod(lambda: True)
    with pytest.raises(FileError, match="- stands for an image that is piped in, but nothing is"):
        predict(path, "-")


def test_a_thin_image_is_classified(tmp_path):
    Image.new("RGB", (1, 65_000), "red").save(tmp_path / "thin.png")
    assert len(predict(model_file(tmp_path), tmp_path / "thin.png")) == 1


def test_a_predictor_answers_step_by_step(tmp_path, photos):
    predictor = Predictor(model_file(tmp_path), device="cpu")
    assert predictor.card.classes == ("a", "b", "c")
    batch = torch.stack([predictor.decode(photos / name) for name in ("b.png", "a.jpg")])
    rows = predictor.probabilities(batch)
    assert rows.sum(1).tolist() == pytest.approx([1, 1])
    answers = [predictor.answer(name, row, 2) for name, row in zip("xy", rows, strict=True)]
    wanted = predict(model_file(tmp_path), [photos / "b.png", photos / "a.jpg"], top=2)
    assert [answer.top for answer in answers] == [answer.top for answer in wanted]
    with pytest.raises(DataError, match="the upload is not an image"):
        predictor.decode(io.BytesIO(b"text"), "the upload")


PIXELS = np.random.default_rng(0).integers(0, 256, (20, 12, 3), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_arrays_and_tensors_give_what_their_picture_gives(tmp_path, channels):
    path = model_file(tmp_path, channels)
    pixels = PIXELS if channels == 3 else PIXELS[..., 0]
    (wanted,) = predict(path, Image.fromarray(pixels))
    tensor = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy() if channels == 3 else pixels)
    forms = [pixels, pixels / 255, (pixels / 255).astype(np.float32), tensor, tensor / 255, tensor.double() / 255]
    for given in forms:
        assert predict(path, given) == [wanted]
    batches = [np.stack([pixels.reshape(20, 12, -1)] * 2), tensor.reshape(-1, 20, 12)[None].repeat(2, 1, 1, 1)]
    for given in batches:
        found = predict(path, given)
        assert [(each.name, each.label) for each in found] == [("image 0", wanted.label), ("image 1", wanted.label)]
        assert found[1].probability == pytest.approx(wanted.probability)
    assert [each.name for each in predict(path, [pixels, batches[0], tensor])] == [
        "image 0", "image 1[0]", "image 1[1]", "image 2"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (PIXELS.transpose(2, 0, 1), r"shape \(3, 20, 12\), which in an array is \[H, W, C\].*: 12 channels"),
        (torch.from_numpy(PIXELS), r"shape \(20, 12, 3\), which in a tensor is \[C, H, W\].*: 20 channels"),
        (PIXELS.astype(np.float32), "0 to 255, and floats should lie in 0..1: give pixels of 0..255 as uint8"),
        (torch.randn(3, 9, 9), "floats should lie in 0..1: .* leave normalization to diracnets"),
        (torch.full((3, 9, 9), torch.nan), "floats should lie in 0..1"),
        (PIXELS.astype(np.int64), "is of int64, and should be of uint8"),
        (torch.zeros(0, 3, 9, 9), "holds no image"),
        (torch.zeros(3, 0, 9), "should have height, width and channels"),
        (np.zeros(9, np.uint8), "should have height, width and channels"),
        (torch.zeros(3, 9, 9, device="meta"), "without values"),
    ],
)
def test_arrays_and_tensors_that_could_mean_something_else_are_refused(tmp_path, given, message):
    path, told = model_file(tmp_path), []
    with pytest.raises(DataError, match=f"image 0 .*{message}"):
        predict(path, given)
    found = predict(path, [given, PIXELS], on_unreadable=lambda name, _: told.append(name))
    assert ([each.name for each in found], told) == (["image 1"], ["image 0"])


def test_opacity_is_over_white_as_in_a_file(tmp_path):
    path = model_file(tmp_path)
    given = np.dstack([PIXELS, np.full((20, 12), 99, np.uint8)])
    assert predict(path, given) == predict(path, Image.fromarray(given))


def test_folder_without_images(tmp_path):
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="none holds no images"):
        predict(model_file(tmp_path), tmp_path / "none")


def test_the_bytes_of_a_file_are_an_image(tmp_path, photos):
    path, photo = model_file(tmp_path), photos / "b.png"
    content = photo.read_bytes()
    wanted = predict(path, photo)[0].top
    assert [each.top for each in predict(path, [content, bytearray(content)])] == [wanted] * 2
    assert [each.top for each in predict(path, memoryview(content))] == [wanted]


@pytest.mark.parametrize(
    ("given", "message"),
    [(None, "images is None: give a path"), (3, "images is 3"), ([(PIXELS, 1)], "without their labels")],
)
def test_what_is_no_image_is_said(tmp_path, given, message):
    with pytest.raises(UsageError, match=message):
        predict(model_file(tmp_path), given)


def test_no_images_give_no_predictions(tmp_path):
    assert predict(model_file(tmp_path), []) == []


def network(*layers, size=(3, 8, 8), training=False, classes=()):
    chain = nn.Sequential(*layers).train(training)
    if size:
        attach_card(chain, ModelCard(size, MEAN, STD, classes))
    return chain


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (network(nn.Flatten()), {"top": 0}, "top is 0"),
        (network(nn.Flatten()), {"batch_size": -1}, "batch_size is -1"),
        (network(nn.Flatten()), {"device": "cpu"}, "where|move a loaded network"),
        (network(nn.Flatten(), training=True), {}, "training mode"),
        (network(nn.Flatten(), size=None), {}, "does not say which size .* card = diracnets.ModelCard"),
        (network(nn.Identity()), {}, "does not classify"),
        (network(nn.Flatten(), classes=("a", "b")), {}, "does not classify"),
    ],
)
def test_models_and_numbers_that_make_no_sense(model, options, message):
    with pytest.raises(UsageError, match=message):
        predict(model, Image.new("RGB", (8, 8)), **options)


def test_numbers_that_are_not_finite_are_an_error_with_the_images_name(photos):
    class Overflowing(nn.Flatten):
        def forward(self, x):
            return super().forward(x) * float("inf")

    with pytest.raises(DataError, match=r"no finite numbers for .*b\.png"):
        predict(network(Overflowing()), photos / "b.png")


def test_prediction_is_frozen_and_short():
    prediction = Prediction("x.png", "a", 0.75, (("a", 0.75), ("b", 0.25)))
    with pytest.raises(AttributeError):
        prediction.label = "b"
    assert repr(prediction) == "<x.png: a 75.0%, b 25.0%>"
