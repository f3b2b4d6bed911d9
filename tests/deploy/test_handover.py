"""The examples of docs/handover.md, each where its package is installed."""

import importlib
import re
import shutil
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from diracnets.folding.fold import fold
from diracnets.models.build import build_model

PAGE = Path(__file__).parents[2] / "docs" / "handover.md"
MODEL = Path(__file__).parent / "files" / "digits-average.safetensors"
FIRST, *EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the page's example of a package, and give the names that it leaves."""
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "digits").mkdir(parents=True)
    shutil.copy(MODEL, tmp_path / "runs" / "digits" / "model.safetensors")

    def run(package):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other packages
            try:
                importlib.import_module(package)
            except (ImportError, RuntimeError, OSError) as error:
                pytest.skip(f"{package} cannot be imported: {error}")
            code = next(code for code in EXAMPLES if re.search(rf"^(import|from) {package}\b", code, re.MULTILINE))
            names = {}
            exec(compile(FIRST + code, f"{PAGE} ({package} {version(package)})", "exec"), names)
            return names

    return run


def accuracy(scores, labels):
    return float((scores.argmax(1) == labels).float().mean())


def test_there_is_an_example_for_each_test():
    assert len(EXAMPLES) == sum(name.startswith("test_") for name in globals()) - 1


def assert_sums_up(made):
    with torch.no_grad():
        largest = made["chain"](made["images"]).max(1).values
    summed = made["relevance"].sum((1, 2, 3))
    off = ((summed - largest) / largest).abs()
    assert off.max() < 1e-2
    assert off.median() < 1e-4
    assert made["relevance"].flatten(1).std(1).min() > 1e-3  # and is spread over the pixels


def test_zennit(run):
    made = run("zennit")
    assert_sums_up(made)
    torch.manual_seed(0)
    images = made["images"]
    net = build_model("wrn-10-0.25", in_channels=1, image_size=8)
    for _ in range(20):
        net(images)
    with made["Gradient"](model=fold(net.eval()), composite=made["composite"]) as attributor:
        logits, relevance = attributor(images, lambda out: out * torch.eye(10)[out.argmax(1)])
    ratio = relevance.sum((1, 2, 3)) / logits.max(1).values
    assert 6 < ratio.median() < 8.5  # three additions, each of which about doubles it


def test_captum(run):
    assert_sums_up(run("captum"))


@pytest.mark.slow
def test_spikingjelly(run):
    made = run("spikingjelly")
    of_chain = accuracy(made["chain"](made["images"]), made["labels"])
    assert of_chain > 0.95
    assert accuracy(made["votes"], made["labels"]) > of_chain - 0.02


@pytest.mark.slow
def test_maraboupy(run):
    made = run("maraboupy")
    import onnx

    kinds = {node.op_type for node in onnx.load("digits.onnx").graph.node}
    assert kinds == {"Conv", "Relu", "Flatten", "Gemm"}
    assert made["answer"] == "unsat"
    assert made["first"] == int(made["labels"][0])
    asked = Path("digits.vnnlib").read_text()
    assert (asked.count("(declare-const X_"), asked.count("(assert "), asked.count("(")) == (64, 129, asked.count(")"))
    query = made["Marabou"].read_onnx("digits.onnx")  # the proof is of this network
    (computed,) = query.evaluateWithMarabou([made["pixels"].numpy()[None]], filename="evaluated.log")
    assert abs(computed - made["chain"](made["images"][:1]).detach().numpy()).max() < 1e-3


@pytest.mark.slow
def test_hls4ml(run):
    made = run("hls4ml")
    with torch.no_grad():
        wanted = made["chain"](made["images"][: len(made["answers"])]).numpy()
    assert abs(made["answers"] - wanted).max() < 0.02 * abs(wanted).max()
    assert (made["answers"].argmax(1) == wanted.argmax(1)).all()


def test_qonnx(run):
    made = run("qonnx")
    kinds = [node.op_type for node in made["model"].graph.node]
    assert kinds.count("Transpose") == 1  # of the images, none between the layers
    assert set(kinds) == {"Transpose", "Conv", "Relu", "Flatten", "Gemm"}
    with torch.no_grad():
        wanted = made["chain"](made["images"][:1]).numpy()
    assert abs(made["logits"] - wanted).max() < 1e-4
