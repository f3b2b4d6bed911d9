"""docs/guide.md as a reader follows it: each command and each Python block is executed, in order, and what the guide
shows is compared with what is printed."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from diracnets.cli import main

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "guide.md"
NETWORK = "diracnet-28-1-cifar100"
CLASSES = ("church", "fish", "parachute", "radio")
BLOCK = re.compile(r"^```(sh|python|text)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SHORTER = {"train": ["--epochs", "2", "--workers", "0"]}  # what the test adds, to be fast


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with photographs: stripes that are as wide as their class says."""
    monkeypatch.chdir(tmp_path)
    for number in range(5 * len(CLASSES)):
        kind = number % len(CLASSES)
        image = Image.new("RGB", (40, 36), (40 + 9 * number, 90, 200 - 9 * number))
        for x in range(number % 3, 40, 4 * kind + 3):
            ImageDraw.Draw(image).line((x, 0, x, 36), "white", kind + 1)
        file = Path("photos", CLASSES[kind], f"{number}.jpg")
        file.parent.mkdir(parents=True, exist_ok=True)
        image.save(file)
    Path("new").mkdir()
    image.save("new/lake.jpg")
    return tmp_path


def squashed(text):
    """Text without what differs from run to run: numbers, and the space between words."""
    return re.sub(r"\s+", " ", re.sub(r"[-+]?\d[\d,.]*(e[-+]\d+)?", "#", text))


def run_line(words, capfd):
    """One command line; gives what it printed."""
    if words[0] == "diracnets":
        code = main([*words[1:], *SHORTER.get(words[1], [])])
    elif shutil.which("cc") is None:
        return None
    else:
        code = subprocess.run(words, check=False).returncode
    printed = "".join(capfd.readouterr())
    assert code == 0, f"{shlex.join(words)}\n{printed}"
    return printed


def walk(text, capfd):
    names, printed, shown = {}, "", 0
    for language, content in BLOCK.findall(text):
        if language == "sh":
            lines = [shlex.split(line, comments=True) for line in content.splitlines()]
            printed = squashed("".join(run_line(words, capfd) or "" for words in lines if words))
        elif language == "python":
            exec(compile(content, str(GUIDE), "exec"), names)
        else:
            for line in content.splitlines():
                assert line == "..." or squashed(line).strip() in printed, line
                shown += 1
    return shown


def small(text, folder):
    """The guide with a tiny network in the place of the one that ships."""
    import torch

    from diracnets import ModelCard, Recipe, create_model, fold, save

    torch.manual_seed(0)
    net = create_model("diracnet-10-0.25").eval()
    card = ModelCard((3, 32, 32), (0.5,) * 3, (0.25,) * 3, classes=tuple("abcdefghij"), architecture=net.config)
    file = folder / "tiny.safetensors"
    save(fold(net), file, card=card)
    Recipe.load("finetune").replaced(epochs=2).save(folder / "short.toml")
    text = text.replace('train("finetune"', 'train("short.toml"').replace("diracnet-28-1 on", "diracnet-10-0.25 on")
    return text.replace(NETWORK, str(file))


@pytest.mark.usefixtures("bare_runs")
@pytest.mark.filterwarnings("ignore")  # of the packages that the guide exports to
def test_the_guide_is_true(place, capfd, monkeypatch):
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("COLUMNS", "100")
    text = GUIDE.read_text(encoding="utf-8")
    assert NETWORK in text
    assert walk(small(text, place), capfd) >= 10
    assert {"runs/photos/model.safetensors", "photos.onnx", "classify"} <= {
        str(path.relative_to(place)) for path in place.rglob("*")
    } or shutil.which("cc") is None
