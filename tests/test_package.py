import importlib.metadata
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import diracnets
from diracnets.cli import parse
from diracnets.training.recipe import Recipe

README = Path(__file__).parent.parent / "README.md"


TRAINING = README.parent / "docs" / "training.md"


def blocks(language, page=README):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_importing_costs_nothing():
    lines = [
        "import sys, diracnets",
        "assert 'create_model' in dir(diracnets)",
        "assert not {'torch', 'numpy'} & set(sys.modules)",
    ]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], check=True)


@pytest.mark.parametrize("name", diracnets.__all__)
def test_every_public_name_is_there(name):
    assert getattr(diracnets, name) is not None
    assert name in dir(diracnets)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        diracnets.nonsense  # noqa: B018


def test_the_installed_version_is_the_code_s():
    assert importlib.metadata.version("diracnets") == diracnets.__version__


def test_the_module_does_what_the_command_does():
    ended = subprocess.run([sys.executable, "-m", "diracnets", "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"diracnets {diracnets.__version__}\n"


@pytest.mark.parametrize("code", blocks("python"))
def test_the_readme_s_python_runs(code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(README), "exec"), {})


@pytest.mark.parametrize("page", [README, TRAINING], ids=lambda page: page.name)
def test_a_page_s_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for run in ("photos", "first"):
        Recipe().save(f"runs/{run}/recipe.toml")  # for --resume
    lines = [shlex.split(line, comments=True) for block in blocks("sh", page) for line in block.splitlines()]
    commands = [words[1:] for words in lines if words and words[0] == "diracnets"]
    assert len(commands) >= 8
    for words in commands:
        assert type(parse(words)).__name__.lower().startswith(words[0][:4])


def test_the_readme_s_make_targets_exist():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"`make ([a-z]+)", README.read_text(encoding="utf-8"))
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
