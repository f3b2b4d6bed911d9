import csv
import importlib
import io
import itertools
import json
import os
import pickle
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image
from torch import nn
from torch.distributed.run import get_args_parser

import diracnets
from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.cli import COMMANDS, main, parse
from diracnets.commands.demo import demonstrate
from diracnets.data.images import CIFAR_MEAN, CIFAR_STD
from diracnets.errors import TrainingError
from diracnets.models.init import Init
from diracnets.training.recipe import Recipe, recipe_names

pytestmark = pytest.mark.usefixtures("bare_runs")

TINY = ["--data", "digits", "--model", "diracnet-10-0.25", "--epochs", "2", "--precision", "float32", "--device", "cpu"]
PROGRAM = [sys.executable, "-m", "diracnets"]


class Code:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on the digits."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["train", *TINY, "--run-dir", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def place(run, tmp_path, monkeypatch):
    """An empty working directory with a copy of the run, and files and folders that are wrong in many ways."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, "run")
    model = Path("run/model.safetensors").read_bytes()
    Path("short.safetensors").write_bytes(model[: len(model) // 2])
    Path("altered.safetensors").write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    Path("garbage.pt").write_bytes(b"garbage" * 100)
    torch.save({"format": "diracnets-checkpoint-1", "model": Code()}, "code.pt")
    Path("code.pkl").write_bytes(pickle.dumps(Code()))
    Path("key.toml").write_text('model = "diracnet-10-1"\nepoch = 3\n')
    Path("not.toml").write_text("epochs = = 3\n")
    Path("pictures").mkdir()
    for number in range(3):
        Image.new("L", (8, 8), 80 * number).save(f"pictures/{number}.png")
    Path("empty.png").write_bytes(b"")
    Path("text.png").write_text("no picture")
    Path("cut.png").write_bytes(Path("pictures/1.png").read_bytes()[:40])
    Path("nothing").mkdir()
    Path("some").mkdir()
    shutil.copy("run/last.pt", "some")
    for name, classes in {"one": ["a"], "hollow": ["a", "b"], "train-val/train": "ab", "train-val/val": "ac"}.items():
        for label in classes:
            Path(name, label).mkdir(parents=True)
            if (name, label) != ("hollow", "b"):
                for number in range(4):
                    Image.new("RGB", (40, 40), (60 * number, 0, 0)).save(Path(name, label, f"{number}.png"))
    return tmp_path


def files():
    return {path: path.stat().st_size for path in Path().rglob("*") if path.is_file()}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_the_options_are(command, capsys):
    assert main([command, "--help"]) == 0
    output = capsys.readouterr()
    assert output.out.startswith(f"usage: diracnets {command}")
    assert not output.err
    assert "\x1b" not in output.out


def test_export_folds_writes_and_does_not_overwrite(place, capsys):
    pytest.importorskip("onnxruntime", reason='needs pip install "diracnets[export]"')
    assert main(["export", "run", "--to", "onnx"]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert Path("run/best.onnx").stat().st_size > 1000
    assert main(["export", "run", "--to", "onnx"]) == 2
    assert "run/best.onnx exists" in capsys.readouterr().err


def test_export_lists_the_formats(capsys):
    assert main(["export", "--list"]) == 0
    rows = capsys.readouterr().out.splitlines()[2:]
    assert [row.split()[0] for row in rows][:3] == ["onnx", "openvino", "pt2"]
    assert all(row.strip().endswith("yes") or "is missing" in row for row in rows)


def test_help_lists_the_commands(capsys):
    assert main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert all(f"\n  {name} " in printed for name in COMMANDS)


@pytest.mark.parametrize("command", ["train", "verify"])
def test_help_is_words_in_a_terminal_of_any_width(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "12")
    assert main([command, "--help"]) == 0
    words = capsys.readouterr().out.replace("│", " ").split()
    assert "network" in words or "model" in words
    assert sum(len(word) == 1 for word in words) < len(words) / 4
    assert os.environ["COLUMNS"] == "12"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ('"$@" --version > /dev/full', 1, "diracnets: cannot write the output: No space left on device\n"),
        ('"$@" --version >&-', 0, ""),
        ('mkdir gone; cd gone; rmdir ../gone; "$@" info a.pt', 1, "diracnets: the current folder cannot be used ("),
    ],
)
def test_surroundings_that_are_broken_get_one_sentence(line, code, message, tmp_path):
    done = subprocess.run(["sh", "-c", line, "sh", *PROGRAM], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr[: len(message)], done.stderr.count("\n")) == (code, message, bool(message))


def test_help_imports_no_torch():
    lines = [
        "import sys, diracnets",
        "from diracnets.cli import COMMANDS, main",
        "assert all(main([name, '--help']) == 0 for name in COMMANDS) and main(['--help']) == 0",
        "assert not {'torch', 'numpy', 'PIL', 'matplotlib'} & set(sys.modules), 'help imports too much'",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True, capture_output=True)


WRONG = [  # words, exit code, part of the message
    ("", 2, None),
    ("trian", 2, "did you mean train?"),
    ("frobnicate", 2, "there are demo, "),
    ("--verson", 2, "did you mean --version?"),
    ("predict run ''", 2, "predict was given '', which is nothing"),
    ("train --run-dir= --data digits", 2, "train was given '--run-dir=', which is nothing"),
    ("train --data one", 2, "for the images in that folder, --data folder --data-dir one"),
    ("data check nothing", 1, "nothing holds no class folders: expected nothing/train/"),
    ("quantize run --out a.onnx", 2, "a.onnx would be a model file, whose name ends in .safetensors"),
    ("study prune run --write a.onnx --device cpu", 2, "a.onnx would be a model file"),
    ("fold run --out a.onnx", 2, "a.onnx would be a model file"),
    ("train --epoch 3", 2, "--epochs"),
    ("train --epochs three", 2, "three"),
    ("train --epochs 0", 2, "epochs is 0, but must be at least 1"),
    ("train --lr -0.1", 2, "lr is -0.1"),
    ("train --lr nan", 2, "lr is nan"),
    ("train --batch-size 0", 2, "batch_size is 0"),
    ("train --width 0", 2, "width is 0"),
    ("train --pad 0", 2, "pad must be"),
    ("train --schedule cosinus", 2, "cosine"),
    ("train --data digits --milestones 3", 2, "milestones belong to the step schedule"),
    ("train --recipe fast-cifarr", 2, "did you mean fast-cifar"),
    ("train --recipe key.toml", 2, "did you mean epochs?"),
    ("train --recipe not.toml", 1, "not.toml"),
    ("train --recipe missing.toml", 1, "missing.toml"),
    ("train --data cifar11", 2, "cifar10"),
    ("train --data digits --model diracnet-17-1", 2, "diracnet-16-1"),
    ("train --data digits --model resnet-18", 2, "resnet-18"),
    ("train --pool median", 2, "average"),
    ("train --data digits --model wrn-10-1 --pool average", 2, "leave pool out"),
    ("train --data digits --model diracnet-10-0.001", 2, "width"),
    ("train --data digits --device cuda:99", 2, "cuda:99"),
    ("train --data digits --device gpu", 2, "gpu"),
    ("train --data digits --pad 8", 2, "pad 8"),
    ("train --data digits --freeze", 2, "freeze"),
    ("train --data digits --workers -1", 2, "-1"),
    ("train --data digits --from missing.pt", 1, "missing.pt"),
    ("train --data digits --from some", 2, "some/last.pt"),
    ("train --data digits --from pictures", 1, "pictures is a folder"),
    ("train --data digits --model diracnet-16-1 --from run/best.pt", 2, "diracnet-10-0.25"),
    ("train --data digits --model diracnet-10-0.25 --run-dir run", 2, "already holds a run"),
    ("train --data digits --model diracnet-10-0.25 --run-dir text.png", 2, "text.png is a file"),
    ("train --data digits --model diracnet-10-0.25 --run-dir text.png/run", 1, "cannot write text.png"),
    ("train --resume", 2, "--resume needs --run-dir"),
    ("train --resume --run-dir nothing", 2, "no run to resume in nothing"),
    ("train --resume --run-dir run --epochs 9", 2, "epochs: 2, not 9"),
    ("train --resume --run-dir run --recipe fast-cifar", 2, "keeps its recipe"),
    ("train --data folder", 2, "--data-dir"),
    ("train --data-dir one", 2, "--data-dir needs --data: folder"),
    ("train --data folder --data-dir missing", 1, "missing"),
    ("train --data folder --data-dir one", 1, "one"),
    ("train --data folder --data-dir hollow", 1, "hollow"),
    ("train --data folder --data-dir train-val", 1, "train-val"),
    ("train --data folder --data-dir nothing", 1, "nothing"),
    ("train --data folder --data-dir one --image-size 0", 2, "image_size is 0"),
    ("eval missing.pt", 1, "there is no file missing.pt"),
    ("eval garbage.pt", 1, "garbage.pt"),
    ("eval run/best.pt --worst -1", 2, "--worst is -1"),
    ("eval run/best.pt --batch-size 0", 2, "0"),
    ("eval run/best.pt --data folder", 2, "--data-dir"),
    ("eval run/best.pt --data folder --data-dir missing", 1, "missing"),
    ("eval some", 2, "some/last.pt"),
    ("eval run --out text.png", 2, "text.png is a file"),
    ("eval run --out text.png/report", 2, "text.png is a file"),
    ("quantize run --out text.png/a.safetensors", 2, "text.png is a file"),
    ("parity run --json text.png/a.json", 2, "text.png is a file"),
    ("study depth --out text.png", 2, "text.png is a file"),
    ("study lens pictures/9.pt --device cpu", 1, "there is no file or run folder pictures/9.pt"),
    ("verify diracnet-28-1", 1, "the network of that name is not trained: take diracnet-28-1-cifar10"),
    ("info pictures", 1, "pictures is a folder"),
    ("eval run/best.pt --device cuda:99", 2, "cuda:99"),
    ("fold missing.pt", 1, "there is no file missing.pt"),
    ("fold run/model.safetensors", 2, "is already folded"),
    ("fold run/best.pt --out text.png/model.safetensors", 2, "text.png is a file"),
    ("fold run/best.pt --out run/../run/best.pt", 2, "is the checkpoint itself"),
    ("fold code.pt", 1, "code.pt"),
    ("export", 2, "a model file is missing"),
    ("export run", 2, "--to FORMAT is missing"),
    ("export run --to onxx", 2, "did you mean onnx?"),
    ("export run --to pt2 --batch 0", 2, "batch is 0"),
    ("export run --to pt2 --out nothing", 2, "nothing is a folder"),
    ("export run --to pt2 --out net.onnx", 2, "must end in .pt2"),
    ("export missing.pt --to pt2", 1, "there is no file missing.pt"),
    ("export altered.safetensors --to pt2", 1, "altered.safetensors has been altered or damaged"),
    ("export run --to pt2 --out text.png/net.pt2", 1, "cannot write text.png/net.pt2"),
    ("predict run/model.safetensors", 2, "predict needs images"),
    ("predict run/model.safetensors pictures --json --csv", 2, "--json and --csv"),
    ("predict run/model.safetensors pictures --top 0", 2, "top is 0"),
    ("predict run/model.safetensors missing.png", 1, "missing.png"),
    ("predict run/model.safetensors 'missing*.png'", 1, "missing*.png"),
    ("predict run/model.safetensors nothing", 1, "nothing"),
    ("predict run/model.safetensors empty.png", 1, "empty.png"),
    ("predict run/model.safetensors text.png", 1, "text.png"),
    ("predict run/model.safetensors https://example.com//cat.png", 1, "https://example.com//cat.png is a URL"),
    ("predict https://example.com/a.safetensors pictures", 2, "https://example.com/a.safetensors is a URL"),
    ("train --data folder --data-dir https://example.com/pets", 2, "https://example.com/pets is a URL"),
    ("fold pictures", 1, "pictures is a folder"),
    ("predict code.pkl pictures", 1, "code.pkl"),
    ("verify short.safetensors", 1, "short.safetensors"),
    ("verify altered.safetensors", 1, "altered.safetensors"),
    ("verify run/best.pt", 1, "with `diracnets fold run/best.pt`"),
    ("verify pictures", 1, "pictures is a folder"),
    ("info diracnet-28", 2, "diracnet-28-1"),
    ("info diracnt-28-1", 2, "did you mean diracnet-28-1?"),
    ("info missing.safetensors", 1, "missing.safetensors"),
    ("models lenet*", 2, "lenet*"),
    ("demo --out pictures", 2, "pictures holds files"),
    ("demo --out text.png", 2, "text.png is a file"),
    ("demo --out text.png/demo", 1, "cannot write text.png"),
]


@pytest.mark.parametrize(("words", "code", "message"), WRONG, ids=[words or "nothing" for words, _, _ in WRONG])
def test_wrong_use_gets_one_sentence_and_writes_nothing(words, code, message, place, capsys):
    before = files()
    arguments = [word.strip("'") for word in words.split()]
    assert main(arguments) == code
    output = capsys.readouterr()
    if message is None:
        assert "usage: diracnets COMMAND" in output.out
    else:
        assert message in " ".join(output.err.split())
        assert not output.out
    assert "Traceback" not in output.err
    assert "unexpected" not in output.err
    if output.err.startswith("diracnets: "):
        assert output.err.count("\n") == 1
    assert files() == before


def test_debug_shows_where_an_error_came_from(place, capsys):
    assert main(["verify", "--debug", "missing.safetensors"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_image_too_small_for_the_network_is_refused(place, capsys):
    shutil.copytree("one/a", "one/b")
    words = ["train", "--data", "folder", "--data-dir", "one", "--model", "diracnet-18", "--image-size", "16"]
    assert main([*words, "--workers", "0", "--device", "cpu"]) == 2
    assert "at least 32x32" in capsys.readouterr().err
    assert not Path("runs").exists()


def test_a_run_holds_what_it_should(run):
    names = {path.name for path in run.iterdir()}
    assert names >= {"recipe.toml", "environment.json", "metrics.jsonl", "last.pt", "best.pt", "model.safetensors"}
    recipe = Recipe.load(run / "recipe.toml")
    assert (recipe.model.name, recipe.optimization) == (
        "diracnet-10-0.25",
        Recipe.load("demo").replaced(epochs=2).optimization,
    )


def test_the_recipe_that_suits_the_data_gives_the_defaults():
    for data, recipe in {"digits": "demo", "cifar100": "fast-cifar", "folder": "fast-imagenet"}.items():
        settings = parse(["train", f"--data={data}"]).settings
        assert settings == Recipe.load(recipe).replaced(data=data)
    chosen = parse(["train", "--recipe", "paper-cifar", "--epochs", "3", "--pad", "2"]).settings
    paper = Recipe.load("paper-cifar")
    assert chosen == paper.replaced(epochs=3, pad=2)


@pytest.mark.slow
def test_runs_without_a_name_get_a_new_folder_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("diracnet-10-0.25-digits", "diracnet-10-0.25-digits-2"):
        assert main(["train", *TINY, "--epochs", "1", "--quiet"]) == 0
        assert (tmp_path / "runs" / name / "model.safetensors").exists()


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume_and_resumes(tmp_path):
    words = ["train", *TINY, "--num-train", "100", "--epochs", "500", "--run-dir", "slow"]
    for number, code, sign in ((signal.SIGINT, 130, "  1/500"), (signal.SIGTERM, 143, "resumed after")):
        process = subprocess.Popen(
            [*PROGRAM, *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None
        assert any(line.startswith(sign) for line in process.stdout)
        process.send_signal(number)
        _, error = process.communicate(timeout=60)
        assert process.returncode == code
        _, answer, stopped, end = error.split("\n")  # it begins with one, below what a terminal shows of Ctrl-C
        assert answer.startswith(("Ctrl-C: ", "SIGTERM: "))
        assert "a second" in answer
        assert stopped.startswith("diracnets: stopped after")
        assert not end
        words = error.split("go on with: diracnets ")[1].split()
        assert words[:4] == ["train", "--resume", "--run-dir", "slow"]


def train_on_pictures(run, *flags):
    """Train for an epoch on a few pictures in the folder images/."""
    for label in "ab":
        Path("images", label).mkdir(parents=True, exist_ok=True)
        for number in range(6):
            Image.effect_noise((40, 40), 10 * number + 5).save(Path("images", label, f"{number}.png"))
    words = ["train", "--data", "folder", "--model", "diracnet-10-0.25", "--image-size", "16", "--epochs", "1"]
    assert main([*words, "--data-dir", "images", "--workers", "0", "--run-dir", run, "--device", "cpu", *flags]) == 0


def test_resuming_finds_the_data_where_it_was(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_on_pictures("first")
    Path("first/model.safetensors").unlink()
    assert main(["train", "--run-dir", "first", "--resume", "--workers", "0", "--device", "cpu"]) == 0
    assert Path("first/model.safetensors").exists()
    told = capsys.readouterr().out
    assert "this run is finished, 1 of 1 epochs" in told
    command = next(line for line in told.splitlines() if ": to train on, " in line).split(": diracnets ")[1]
    words = command.replace("--epochs N", "--epochs 1 --run-dir second --workers 0 --device cpu").split()
    assert main(words) == 0
    assert diracnets.load("second/best.pt").card.provenance["start"] == "best.pt"


def test_photographs_go_on_from_trained_weights_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_on_pictures("first")
    words = [
        "train",
        "--data",
        "folder",
        "--data-dir",
        "images",
        "--from",
        "first",
        "--workers",
        "0",
        "--device",
        "cpu",
    ]
    assert main([*words, "--epochs", "2", "--run-dir", "second"]) == 0
    usual, used = Recipe.load("finetune"), Recipe.load("second/recipe.toml")
    assert used == usual.replaced(model="diracnet-10-0.25", image_size=16, epochs=2)
    told = capsys.readouterr().err
    assert "recipe finetune, as trained weights go on with photographs: all layers, 2 epochs, learning rate 0." in told
    assert diracnets.train("finetune", start="second", run="third", data_dir="images", device="cpu", quiet=True).chain
    assert Recipe.load("third/recipe.toml") == used.replaced(epochs=usual.optimization.epochs)


def test_starting_from_trained_weights(run, tmp_path):
    words = ["train", *TINY, "--epochs", "1", "--quiet", "--freeze", "--run-dir", str(tmp_path / "next")]
    assert main([*words, "--from", str(run / "model.safetensors")]) == 0
    old, new = diracnets.load(run / "model.safetensors"), diracnets.load(tmp_path / "next/model.safetensors")
    assert torch.allclose(old[0].weight, new[0].weight, atol=1e-5)


def test_starting_from_a_run_folder_takes_its_best_checkpoint(run, tmp_path):
    shutil.copytree(run, tmp_path / "first")
    (tmp_path / "first/last.pt").write_bytes(b"not looked at")
    words = ["train", *TINY, "--epochs", "1", "--quiet", "--freeze", "--run-dir", str(tmp_path / "next")]
    assert main([*words, "--from", str(tmp_path / "first")]) == 0
    old, new = diracnets.load(run / "best.pt"), diracnets.load(tmp_path / "next/best.pt")
    assert torch.equal(old.stem[0].weight, new.stem[0].weight)
    assert new.card.provenance["start"] == "best.pt"


def test_a_name_goes_before_a_folder_without_a_run_and_a_run_before_a_name(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("diracnet-28-1").mkdir()
    assert main(["info", "diracnet-28-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["file_bytes"] is None
    shutil.copy(run / "best.pt", "diracnet-28-1")
    assert main(["info", "diracnet-28-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "diracnet-28-1/best.pt"


def test_eval_prints_and_writes(run, tmp_path, capsys):
    assert main(["eval", str(run / "best.pt"), "--device", "cpu", "--worst", "3", "--out", str(tmp_path / "out")]) == 0
    output, errors = capsys.readouterr()
    assert "confusion matrix" not in errors
    assert "digits, 359 held-out images: top-1 " in output
    assert "By class, lowest F1 first" in output.splitlines()
    assert "Most confident errors" in output.splitlines()  # not broken at the width of the table
    for figure in ("confusion.png", "errors.png"):
        assert (tmp_path / "out" / figure).read_bytes()[1:4] == b"PNG"
    written = json.loads((tmp_path / "out/evaluation.json").read_text())
    assert main(["eval", str(run / "best.pt"), "--device", "cpu", "--worst", "3", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == written
    assert sum(map(sum, printed["confusion"])) == printed["images"] == 359
    assert sum(row["correct"] for row in printed["classes"]) == round(printed["top1"] * 359)
    assert all(row["correct"] == pytest.approx(row["precision"] * row["predicted"]) for row in printed["classes"])
    assert all(row["correct"] == pytest.approx(row["recall"] * row["images"]) for row in printed["classes"])
    assert len(printed["worst"]) == 3
    answered = [row["answered"] for row in printed["thresholds"]]
    assert answered == sorted(answered, reverse=True)
    assert re.search(rf"^0\.8 +{answered[3]:.2%} ", output, re.MULTILINE)
    assert all(mistake["true"] != mistake["predicted"] for mistake in printed["worst"])


def test_eval_without_matplotlib_writes_the_numbers_and_says_what_is_missing(run, tmp_path, monkeypatch, capsys):
    for name in {"matplotlib"} | {name for name in sys.modules if name.startswith("matplotlib.")}:
        monkeypatch.setitem(sys.modules, name, None)  # so that importing it fails
    assert main(["eval", str(run), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "no figures" in line]
    assert "matplotlib" in said
    assert "pip install" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["evaluation.json"]


def test_eval_averages_over_views(run, capsys):
    losses = {}
    for views in ("one", "mirror", "mirror-shift"):
        assert main(["eval", str(run / "best.pt"), "--device", "cpu", "--json", "--views", views]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["views"] == views
        losses[views] = printed["loss"]
    assert len(set(losses.values())) == 3
    assert main(["eval", str(run / "best.pt"), "--device", "cpu", "--views", "mirror"]) == 0
    assert f"loss {losses['mirror']:.4f}, views mirror" in capsys.readouterr().out


def test_a_network_with_branches_is_evaluated_and_predicts_but_folds_to_no_file(place, capsys):
    arguments = [*TINY, "--model", "dirac-wrn-10-0.25", "--epochs", "1", "--run-dir", "branched"]
    assert main(["train", *arguments]) == 0
    said = capsys.readouterr().out
    assert "dirac-wrn-10-0.25 has branches and folds to no chain" in said
    assert "`diracnets fold --unbranch` makes a chain" in said
    assert main(["eval", "branched/best.pt", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 359
    assert main(["predict", "branched/best.pt", "pictures", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 3
    assert main(["fold", "branched/best.pt"]) == 1
    assert "fold --unbranch" in capsys.readouterr().err
    assert not Path("branched/best.safetensors").exists()


def test_fold_unbranch_writes_a_chain_that_is_used_like_any_other(place, run, capsys):
    arguments = [*TINY, "--model", "dirac-wrn-10-0.25", "--epochs", "1", "--run-dir", "residual"]
    assert main(["train", *arguments]) == 0
    assert main(["fold", "residual/best.pt", "--unbranch"]) == 0
    assert "removed     3 sums of skip-connections" in capsys.readouterr().out
    accuracy = []
    for file in ("residual/best.pt", "residual/best.safetensors"):
        assert main(["eval", file, "--device", "cpu", "--json"]) == 0
        accuracy.append(json.loads(capsys.readouterr().out)["top1"])
    assert accuracy[0] == accuracy[1]
    assert main(["verify", "residual/best.safetensors"]) == 0
    assert main(["quantize", "residual/best.safetensors", "--out", "int8.safetensors"]) == 0
    assert main(["export", "residual/best.safetensors", "--to", "c", "--out", "residual.c"]) == 0
    assert main(["fold", str(run / "best.pt"), "--unbranch"]) == 2
    assert "has no branches" in capsys.readouterr().err
    assert main(["train", *TINY, "--from", "residual/best.safetensors", "--run-dir", "further"]) == 2
    assert "a chain that unbranch made of it has other layers; start from the network" in capsys.readouterr().err


def test_a_run_without_an_evaluation_says_so(place, capsys):
    Path("run/best.pt").unlink()
    assert main(["predict", "run", "pictures"]) == 2
    said = capsys.readouterr().err
    assert "no epoch of it was evaluated: resume it (diracnets train --run-dir run --resume), or choose run" in said


def test_a_run_folder_stands_for_its_best_checkpoint(place, capsys):
    for words in (["eval", "--device", "cpu", "--json"], ["info", "--json"], ["predict", "--json", "pictures"]):
        given = {}
        for file in ("run", "run/best.pt"):
            assert main([words[0], file, *words[1:]]) == 0
            given[file] = json.loads(capsys.readouterr().out)
        listed = given["run"].pop("checkpoints", []) if words[0] == "info" else []
        assert len(listed) == (3 if words[0] == "info" else 0)
        assert given["run"] == given["run/best.pt"]
    for one, other in zip(
        *(diracnets.load(file).state_dict().values() for file in ("run", "run/best.pt")), strict=True
    ):
        assert one.equal(other)
    assert diracnets.describe("run") == diracnets.describe("run/best.pt")
    assert diracnets.predict("run", "pictures") == diracnets.predict("run/best.pt", "pictures")
    assert main(["fold", "run"]) == 0
    assert "wrote       run/model.safetensors" in capsys.readouterr().out


def test_a_trained_network_is_folded_again_over_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main(["fold", "diracnet-28-0.5-digits"]) == 0
    assert files().keys() == {Path("diracnet-28-0.5-digits.safetensors")}


def test_eval_finds_the_data_where_the_run_had_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_on_pictures("run", "--quiet")
    for file in ("run", "run/model.safetensors"):
        assert main(["eval", file, "--workers", "0", "--device", "cpu"]) == 0
        printed = capsys.readouterr().out
        assert "folder, 2 held-out images: top-1 " in printed
        assert "top-5" not in printed  # of two classes, both are among the first five
    assert main(["eval", "run", "--workers", "0", "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top5"] is None
    shutil.copy("run/best.pt", "alone.pt")
    assert main(["eval", "alone.pt", "--device", "cpu"]) == 2
    assert "give --data-dir" in capsys.readouterr().err
    shutil.move("images", "elsewhere")
    assert main(["eval", "run", "--device", "cpu"]) == 1
    assert "give --data-dir if the images are elsewhere" in capsys.readouterr().err
    assert main(["eval", "run", "--data-dir", "elsewhere", "--workers", "0", "--device", "cpu"]) == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [(None, "does not say what it was trained on"), (TrainedOn("imagenet"), "was trained on imagenet")],
)
def test_eval_asks_for_data_that_it_cannot_know(data, said, tmp_path, capsys):
    card = ModelCard((3, 32, 32), CIFAR_MEAN, CIFAR_STD, data=data)
    file = tmp_path / "model.safetensors"
    diracnets.save(diracnets.fold(diracnets.create_model("diracnet-10-0.25").eval()), file, card=card)
    assert main(["eval", str(file), "--device", "cpu"]) == 2
    assert (
        f"{said}: give --data (digits, cifar10, cifar100, folder, shards, parquet), and --data-dir"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("form", ["--json", "--csv", "--top=1"])
def test_images_that_cannot_be_read_are_told_and_the_others_classified(form, place, capsys):
    words = ["predict", "run/model.safetensors", "pictures", "--device", "cpu", form]
    assert main(words) == 0
    wanted = capsys.readouterr().out
    assert main([*words[:2], "cut.png", "pictures", "text.png", "empty.png", *words[3:]]) == 1
    output = capsys.readouterr()
    if form == "--json":
        found = json.loads(output.out)
        assert [each["name"] for each in found if "error" in each] == ["cut.png", "text.png", "empty.png"]
        assert [place for place, each in enumerate(found) if "error" in each] == [0, 4, 5]  # in the order given
        assert [each for each in found if "error" not in each] == json.loads(wanted)
        assert found[5]["error"] == "empty.png is empty (0 bytes): replace or remove it"
        assert {*found[1]["top"][0]} == {"class", "probability"}
    else:
        assert output.out == wanted
    known, doubt, *lines = output.err.splitlines()
    assert "answers have a probability below" in doubt or "answers has" in doubt
    assert known.startswith("the network knows only 10 classes (0, 1, 2, 3, 4 and 5 more): ")
    assert known.endswith("it takes grayscale images and ignores colours")
    assert [name for name, line in zip(("cut.png", "text.png", "empty.png"), lines, strict=False) if name in line] == [
        "cut.png", "text.png", "empty.png"
    ]  # fmt: skip
    assert lines[3:] == ["diracnets: 3 of 6 images cannot be read; the others were classified"]


def test_flags_of_earlier_versions_are_taken_with_one_warning(capsys):
    words = [
        "train",
        "--recipe",
        "paper-cifar",
        "--drops",
        "3",
        "--augment.pad=2",
        "--no-fresh-statistics",
        "--images=50",
    ]
    with pytest.warns(FutureWarning, match="--drops is now --milestones, --augment.pad is now --pad") as warned:
        settings = parse(words).settings
    assert len(warned) == 1
    paper = Recipe.load("paper-cifar")
    assert settings == paper.replaced(milestones=(3,), pad=2, num_train=50, recalibrate_bn=False)
    for flags, init in {
        ("--init", "0.1"): Init(filters=0.1),
        ("--init=normal",): Init(filters="normal"),
        ("--start", "deep", "--init", "kaiming"): Init("deep", filters="kaiming"),
        ("--start=deep",): Init("deep", filters="normal"),
    }.items():
        with pytest.warns(FutureWarning, match="is now --"):
            assert parse(["train", "--recipe", "paper-cifar", *flags]).settings.model.init == init
    assert main(["train", "--drops", "3", "--help"]) == 0
    assert capsys.readouterr().err == "diracnets: --drops is now --milestones\n"


def test_flags_of_today_warn_of_nothing():
    flags = ["--init", "kaiming", "--milestones", "3", "--recalibrate-bn", "--alpha", "0.5", "--bias=None"]
    settings = parse(["train", "--recipe", "paper-cifar", *flags]).settings
    assert settings.model.init == Init("kaiming", filters="normal", alpha=0.5)


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
def test_every_setting_is_a_flag(capsys):
    assert main(["train", "--help"]) == 0
    page = capsys.readouterr().out
    flags = [flag.replace("[no-]", "") for flag in re.findall(r"^  (?:-h, )?(--[\w\[\]-]+)", page, re.MULTILINE)]
    assert {f"--{name.replace('_', '-')}" for name in Recipe().settings()} <= set(flags)
    assert sorted(flags) == sorted(flag for flag in flags_of("train") - {"-h"} if not flag.startswith("--no-"))


def test_every_flag_of_train_stands_in_a_group_with_its_default(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["train", "--recipe", "paper-cifar", "--help"]) == 0
    page = capsys.readouterr().out
    assert page.endswith("\n\nOthers\n  -h, --help            Show this page.\n")
    assert "\nOptimization\n  --epochs INT          Passes over the training images. [default: 200]\n" in page
    assert "\n  --[no-]nesterov       Use Nesterov momentum in SGD. [default: off]\n" in page
    assert all(line.endswith("]") for line in page.splitlines() if "[default" in line)


@pytest.mark.parametrize("command", [*COMMANDS, "study cifar", "study depth", "study signal"])
def test_texts_of_options_break_only_where_a_line_is_full(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command.split(), "--help"]) == 0
    text = capsys.readouterr().out
    assert "(default: )" not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    boxed = [line[2:-2] if line[0] == "│" else line[2:].ljust(78) for line in lines if line[:1] in (" ", "│")]
    assert boxed
    for line, following in itertools.pairwise(boxed):
        indent = len(following) - len(following.lstrip())
        word = following.split()[:1]
        goes_on = indent >= 6 and word and line[indent : indent + 1].strip() and line[indent - 2 : indent] == "  "
        if goes_on and "•" not in line and word != ["[default:"]:  # which is never broken itself
            assert len(line.rstrip()) + 1 + len(word[0]) > len(line), (line, following)


def test_what_one_copies_from_a_table_is_never_broken(monkeypatch, capsys):
    monkeypatch.setattr("diracnets.commands.output._PIPE_WIDTH", 30)
    assert main(["models", "--trained"]) == 0
    assert {line.split(" ")[0] for line in capsys.readouterr().out.splitlines()} >= set(diracnets.list_weights())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_has_two_spellings(command, capsys):
    texts = []
    for words in (["help", command], [command, "--help"]):
        assert main(words) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]
    assert f"usage: diracnets {command}" in texts[0]


def test_a_page_of_options_has_those_without_a_flag_too(capsys):
    assert main(["plan", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "usage: diracnets plan MODEL [OPTIONS]"
    title = lines.index("Network and images")
    assert lines[title + 1].split() == ["MODEL", "The", "network,", "by", "name."]
    assert lines[lines.index("Others") + 1 :][0].split()[0] == "--json"  # all others are in a group


def test_what_a_user_should_know_of_the_data_is_printed_before_training(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    Path("images/.DS_Store").touch()
    Path("images/loose.png").touch()
    train_on_pictures("run")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:5] == [
        "2 classes: a, b",
        "to validate: one image in five of each class, always the same ones",
        "left out as hidden, or the system's own: .DS_Store",
        "left out as lying in no class folder: loose.png",
    ]
    assert main(["eval", "run", "--workers", "0", "--device", "cpu"]) == 0
    errors = capsys.readouterr().err.splitlines()
    assert errors[:3] == printed[2:5]
    assert errors[3:] == ["for the confusion matrix, add --out FOLDER (a figure) or --json (its numbers)"]


def test_a_run_within_the_data_does_not_spoil_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    train_on_pictures("images/runs/first")
    (tmp_path / "images/runs/broken").mkdir()
    assert main(["eval", "images/runs/first", "--workers", "0", "--device", "cpu", "--out", "images/seen"]) == 0
    assert "left out as written by diracnets: runs/first" in capsys.readouterr().err
    words = ["train", "--resume", "--run-dir", "images/runs/first", "--workers", "0", "--device", "cpu"]
    assert main(words) == 0
    assert "left out as written by diracnets: runs/first, seen" in capsys.readouterr().out


EVIL = "a\x1b[2J\x9b\u202ecat\n.png"
SHOWN = r"a\x1b[2J\x9b\u202ecat\n.png"


def test_control_characters_in_names_do_not_reach_the_terminal(place, capsys):
    evil, wrong = Path("pictures", EVIL), Path("pictures", "b" + EVIL)
    Image.new("L", (8, 8)).save(evil)
    wrong.write_text("no picture")
    words = ["predict", "run/model.safetensors", "pictures", "--device", "cpu"]
    assert main(words) == 1
    output = capsys.readouterr()
    for text in output:
        assert SHOWN in text
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)
    assert output.err.count("\n") == 4  # what it knows, a doubt, the image, and the sum
    assert main([*words, "--json"]) == 1
    assert str(evil) in [each["name"] for each in json.loads(capsys.readouterr().out)]
    assert main(["predict", "run", str(wrong)]) == 1
    assert SHOWN in capsys.readouterr().err
    assert main(["predict", f"{EVIL}.safetensors", "pictures"]) == 1
    assert SHOWN in capsys.readouterr().err


def test_control_characters_in_names_of_images_to_train_and_evaluate_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for label in "ab":
        Path("images", label).mkdir(parents=True)
        for number in range(10):
            Image.effect_noise((40, 40), 9).save(Path("images", label, f"{number}{EVIL}"))
    Path("images", EVIL).touch()
    train_on_pictures(f"run{EVIL}")
    assert main(["eval", f"run{EVIL}", "--worst", "99", "--workers", "0", "--device", "cpu"]) == 0
    output = capsys.readouterr()
    for text in output:
        assert SHOWN in text
        assert not {"\x1b", "\x9b", "\u202e"} & set(text)


def test_an_image_is_piped_in(place, monkeypatch, capsys):
    before = os.dup(0)
    for name in ("-", "/dev/stdin"):
        out, into = os.pipe()
        os.write(into, Path("pictures/1.png").read_bytes())
        os.close(into)
        os.dup2(out, 0)
        os.close(out)
        try:
            with open(0, closefd=False) as piped, monkeypatch.context() as patch:
                patch.setattr(sys, "stdin", piped)
                assert main(["predict", "run", name, "--json", "--device", "cpu"]) == 0
        finally:
            os.dup2(before, 0)
        (found,) = json.loads(capsys.readouterr().out)
        assert found["name"] == name
    os.close(before)


def test_a_recipe_that_notepad_saved(tmp_path):
    (tmp_path / "mine.toml").write_bytes(b'\xef\xbb\xbf[data]\nname = "cifar10"\n')
    assert Recipe.load(tmp_path / "mine.toml").data.name == "cifar10"


def test_every_recipe_is_listed_by_help(capsys):
    assert main(["train", "--help"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in recipe_names())


def test_eval_refuses_images_of_another_kind(run, place, capsys):
    shutil.copytree("one/a", "one/b")
    assert main(["eval", "run/best.pt", "--data", "folder", "--data-dir", "one", "--workers", "0"]) == 2
    assert "run/best.pt has other classes than folder" in capsys.readouterr().err


def test_eval_refuses_the_images_of_another_set(run, capsys):
    """The size is that of the set, not of the network, so that the classes are compared."""
    card = ModelCard((3, 32, 32), CIFAR_MEAN, CIFAR_STD, classes=("cat", "dog"))
    net = diracnets.create_model("diracnet-10-0.25", num_classes=2).eval()
    file = run.parent / "cats.safetensors"
    diracnets.save(diracnets.fold(net), file, card=card)
    assert main(["eval", str(file), "--data", "digits"]) == 2
    assert "has other classes than digits" in capsys.readouterr().err


def test_fold_proves_and_the_file_answers_the_same(run, tmp_path, capsys):
    out = tmp_path / "new" / "model.safetensors"
    assert main(["fold", str(run / "best.pt"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "6 Dirac parameterizations and 7 batch norms into one flat chain" in printed
    assert "largest difference" in printed
    assert main(["verify", str(out)]) == 0
    assert f"{out} is valid" in capsys.readouterr().out
    for file in (run / "best.pt", out):
        assert main(["eval", str(file), "--json", "--device", "cpu"]) == 0
    network, chain = capsys.readouterr().out.split("\n}\n")[:2]
    assert json.loads(network + "}")["confusion"] == json.loads(chain + "}")["confusion"]


def test_predictions_as_table_json_and_csv_agree(place, capsys):
    words = ["predict", "run/model.safetensors", "pictures", "pictures/0*.png", "--top", "2", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    names = ["pictures/0.png", "pictures/1.png", "pictures/2.png", "pictures/0.png"]
    assert [each["name"] for each in found] == names
    assert main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["image"], row["label"], float(row["probability"])) for row in rows if row["rank"] == "1"] == [
        (each["name"], each["label"], pytest.approx(each["probability"])) for each in found
    ]
    assert len(rows) == 8
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[-4:]] == names
    assert all(
        f"{each['label']} {each['probability']:.1%}" in line for each, line in zip(found, lines[-4:], strict=True)
    )


def test_below_the_threshold_all_forms_answer_unknown(place, capsys):
    words = ["predict", "run/model.safetensors", "pictures", "--top", "2", "--device", "cpu"]
    assert main([*words, "--json"]) == 0
    sure = json.loads(capsys.readouterr().out)
    lowest = min(each["probability"] for each in sure)
    words += ["--threshold", str(lowest + 1e-6)]
    assert main([*words, "--json"]) == 0
    printed, notes = capsys.readouterr()
    labels = [each["label"] for each in json.loads(printed)]
    assert labels == ["unknown" if each["probability"] == lowest else each["label"] for each in sure]
    assert f"1 of {len(sure)} images is unknown: no class has a probability of" in notes
    assert main([*words, "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["answer"], row["rank"]) for row in rows] == [(label, rank) for label in labels for rank in "12"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()[-len(sure) :]
    assert [line.split()[1] for line in lines] == labels


@pytest.mark.parametrize(("bias", "said"), [(0.0, True), (9.0, False)])
def test_answers_of_low_probability_are_told(bias, said, tmp_path, capsys):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    nn.init.zeros_(net[2].weight)
    net[2].bias.data = torch.tensor([bias, 0.0, 0.0])
    card = ModelCard((3, 8, 8), mean=(0.5,) * 3, std=(0.1,) * 3, classes=("red", "green", "blue"))
    diracnets.save(net, tmp_path / "model.safetensors", card=card)
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    assert main(["predict", str(tmp_path / "model.safetensors"), str(tmp_path / "a.png"), "--device", "cpu"]) == 0
    told = "the answer has a probability below 0.6: it may be wrong, or the image of no class; --threshold P"
    assert (told in capsys.readouterr().err) == said


def test_info_of_a_name_and_of_files(run, capsys):
    assert main(["info", "diracnet-18"]) == 0
    printed = capsys.readouterr().out
    assert "11,523,368, 11,511,784 after folding" in printed
    assert main(["info", str(run / "model.safetensors")]) == 0
    printed = capsys.readouterr().out
    assert "classes          10: 0, 1, 2" in printed
    assert not re.search(r"\d\.\d{7}", printed)  # numbers with the digits that count
    assert main(["info", "diracnet-28-1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 368730


def test_models_can_be_filtered(capsys):
    assert main(["models", "diracnet-?8*"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:]]
    assert ["diracnet-28-1", "368,730", "3x32x32", "10"] in rows
    assert ["diracnet-18", "11,523,368", "3x224x224", "1,000"] in rows
    assert all(row[0].startswith("diracnet-") for row in rows)


@pytest.mark.slow
def test_demo_does_it_all_and_its_next_commands_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1, precision="float32")
    for _ in range(2):  # the second time over the first
        demonstrate(recipe, Path("demo"), "cpu", goal=0.0)
    printed = capsys.readouterr().out
    assert "359 of 359 predictions are the same" in printed
    assert "6 Dirac parameterizations and 7 batch norms" in printed
    assert len(list(Path("demo/digits").glob("*.png"))) == 8
    assert Path("demo/run/curve.png").exists()
    lines = printed.split("What to try next\n")[-1].splitlines()
    commands = [line.split("diracnets ", 1)[1].split() for line in lines]
    assert [command[0] for command in commands] == ["predict", "info", "eval", "fold", "train"]
    for command in commands[:-1]:
        assert main(command) == 0
    assert parse(commands[-1]).settings.model.name == "diracnet-52-0.5"


def test_demo_fails_below_its_goal(tmp_path):
    recipe = Recipe.load("demo").replaced(model="diracnet-10-0.25", epochs=1)
    with pytest.raises(TrainingError, match=r"less than its goal of 97.5%"):
        demonstrate(recipe, tmp_path / "demo", "cpu")


def test_a_reader_that_stops_reading_is_no_error():
    with subprocess.Popen([*PROGRAM, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stdout_is_told():
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run([*PROGRAM, "--help"], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 1
    assert "No space left" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("variable", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_colours_on_a_terminal_unless_they_are_not_wanted(variable, coloured):
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"}
    mother, daughter = pty.openpty()
    subprocess.run(
        [*PROGRAM, "models", "--help"],
        stdout=daughter,
        stderr=daughter,
        env={**environment, "TERM": "xterm", **variable},
        check=True,
    )
    os.close(daughter)
    assert (b"\x1b[" in os.read(mother, 65536)) == coloured
    os.close(mother)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_a_command_as_an_exit_unless_they_are_ignored(number, monkeypatch, capsys):
    monkeypatch.setattr(diracnets.cli, "_run", lambda words: signal.raise_signal(number))
    before = signal.getsignal(number)
    try:
        signal.signal(number, signal.SIG_DFL)
        assert main(["study"]) == 128 + number  # so that a study stops the training runs that it started
        signal.signal(number, signal.SIG_IGN)
        assert main(["study"]) == 0
    finally:
        signal.signal(number, before)


def test_info_lists_the_checkpoints_of_a_run(place, capsys):
    last = Path("run/last.pt")
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content[:-50])
    assert main(["info", "run"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert [row[0] for row in rows] == ["earlier/epoch-0001-batch-000000.pt", "last.pt", "best.pt"]
    assert [row[-1] for row in rows] == ["whole", "damaged", "whole"]
    assert main(["info", "run", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["checkpoints"]
    assert [(each["epochs"], each["damage"] is None) for each in listed[:2]] == [(1, True), (None, False)]
    assert "last.pt is damaged" in listed[1]["damage"]


def test_info_lists_checkpoints_where_none_is_the_best_yet(place, capsys):
    assert main(["info", "some"]) == 2
    output = capsys.readouterr()
    assert "last.pt" in output.out
    assert "some/last.pt" in output.err


def flags_of(name):
    """The option strings of a command."""
    kind = getattr(importlib.import_module(f"diracnets.commands.{name}"), COMMANDS[name][0])
    if hasattr(kind, "form"):
        kind, _ = kind.form([])
    pending, found = [tyro.extras.get_parser(kind)], set()
    while pending:
        for action in pending.pop()._actions:
            found |= set(action.option_strings)
            pending += [each for each in (action.choices or {}).values()] if isinstance(action.choices, dict) else []
    return found


@pytest.mark.filterwarnings("ignore:get_parser:DeprecationWarning")
@pytest.mark.parametrize("name", COMMANDS)
def test_torchrun_takes_no_flag_for_one_of_its_own(name):
    """It completes abbreviations, also of flags that stand after the program."""
    theirs = {flag for action in get_args_parser()._actions for flag in action.option_strings} - {"-h", "--help"}
    own = flags_of(name) - {"-h", "--help"}
    assert own or name == "verify"
    taken = {flag: other for flag in own for other in theirs if flag.startswith("--") and other.startswith(flag)}
    assert not taken
    assert not own & theirs


def test_the_run_folder_by_its_earlier_flag(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.warns(FutureWarning, match="--run is now --run-dir"):
        assert parse(["train", "--data", "digits", "--run", "here"]).run == Path("here")
    assert parse(["train", "--data", "digits", "--run-dir", "here"]).run == Path("here")
