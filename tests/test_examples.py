"""Each program in examples/ runs, and comes to the result that it promises."""

import runpy
import shutil
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
DIGITS = Path(__file__).parent / "deploy" / "files" / "digits-average.safetensors"


def main_of(name):
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]


@pytest.mark.usefixtures("bare_runs")
def test_own_dataset(tmp_path, capsys):
    assert main_of("own_dataset")(tmp_path / "run", epochs=2) > 0.6
    assert "new pictures are right" in capsys.readouterr().out


def test_own_network(capsys):
    pytest.importorskip("sklearn")
    found = main_of("own_network")(epochs=1, depth=8)
    assert found["dirac"] > 0.2
    assert found["difference"] < 1e-3
    assert "9 Dirac parameterizations and 8 batch norms" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")  # of the packages that it exports to
def test_deploy(tmp_path, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("onnxruntime")
    found = main_of("deploy")(tmp_path, str(DIGITS))
    assert len(found) == 1 + bool(shutil.which("cc"))
    assert min(found.values()) > 0.95
