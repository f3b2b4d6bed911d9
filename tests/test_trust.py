"""What could run code, unpickle, unpack or ask a server, anywhere in the package: only where a reason is given.

A new use fails here. Take another way, or add it with the reason why nobody else's data gets there.
"""

import ast
import re
from pathlib import Path

import pytest

import diracnets

SRC = Path(diracnets.__file__).parent

# Where a name from outside is used, and why that is safe.
ALLOWED = {
    ("__init__.py", "importlib.import_module"): "a module of this package, by the public name asked for",
    ("cli.py", "importlib.import_module"): "a module of this package, by the command's name in COMMANDS",
    ("deploy/backend.py", "importlib.import_module"): "a backend of this package, or a package that it names itself",
    (
        "data/unpickle.py",
        "pickle.Unpickler",
    ): "with find_class and persistent_load refused: see tests/data/test_unpickle.py",
    ("artifacts/program.py", "torch.jit.load"): "a program, and run as one: only with --trust-teacher",
    ("artifacts/program.py", "torch.export.load"): "a program, and run as one: only with --trust-teacher",
    ("deploy/pt2.py", "torch.export.load"): "a file that this process or its parent has just exported",
    ("deploy/aoti.py", "torch._inductor.aoti_load_package"): "a file that this process or its parent has just exported",
    ("deploy/process.py", "torch.load"): "the user's own module, handed to a child process in a temporary folder that "
    "only this user may enter; any way to hand on an object of any class would unpickle it",
    ("runtime/environment.py", "subprocess.run"): "git, with fixed arguments",
    ("studies/runner.py", "subprocess.Popen"): "this Python and this package, without a shell",
    ("deploy/c/compiled.py", "subprocess.run"): "the user's C compiler on C that was just written, without a shell",
    ("deploy/c/compiled.py", "ctypes.CDLL"): "a library that was just compiled in a temporary folder of its own",
    ("deploy/memory.py", "ctypes.CDLL"): "the C library of this process, by no name",
    ("runtime/device.py", "ctypes.CDLL"): "the C library of this process, by no name",
    ("data/workers.py", "ctypes.CDLL"): "the C library of this process, by no name",
}

# Modules of which every name counts but those that cannot do anything, and single names.
MODULES = (
    "pickle",
    "_pickle",
    "marshal",
    "shelve",
    "dill",
    "cloudpickle",
    "joblib",
    "yaml",
    "runpy",
    "pty",
    "subprocess",
)
MODULES += ("urllib.request", "requests", "socket", "ftplib", "xml", "torch.hub", "torch.package")
HARMLESS = {"pickle.UnpicklingError", "pickle.PicklingError", "pickle.PickleError", "socket.gethostname"}
HARMLESS |= {"subprocess.SubprocessError", "subprocess.DEVNULL", "subprocess.STDOUT", "subprocess.PIPE"}
NAMES = {"eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "importlib.import_module"}
NAMES |= {"os.system", "os.popen", "tempfile.mktemp", "shutil.unpack_archive", "ctypes.CDLL", "ctypes.cdll"}
NAMES |= {"torch.load", "torch.jit.load", "torch.export.load", "torch._inductor.aoti_load_package"}
NAMES |= {"torch.distributed.checkpoint.load", "torch.utils.cpp_extension.load", "numpy.load"}
NAMES |= {"PIL.Image.open", "pandas.read_pickle", "sklearn.datasets.fetch_openml"}
STARTS = ("os.exec", "os.spawn", "os.posix_spawn")
METHODS = {"extract", "extractall"}  # of an archive, whatever its name
SAFE = {  # names that a keyword makes harmless
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "extract": ("filter", "data"),
    "extractall": ("filter", "data"),
    "PIL.Image.open": ("formats", None),
}
ANY = {("web.py", "urllib.request")}  # a module that one file may use as it needs: all that is asked of servers


def uses(source):
    """Each risky name in a program and its line, by its full name, whatever it was imported as."""
    nodes = list(ast.walk(ast.parse(source)))
    known = {}
    for node in nodes:
        if isinstance(node, ast.Import):
            known |= {
                each.asname or each.name.partition(".")[0]: each.name if each.asname else each.name.partition(".")[0]
                for each in node.names
            }
        elif isinstance(node, ast.ImportFrom) and not node.level:
            known |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
    keywords = {
        id(node.func): {key.arg: key.value for key in node.keywords} for node in nodes if isinstance(node, ast.Call)
    }

    def full(node):
        if isinstance(node, ast.Name):
            return known.get(node.id, node.id)
        if isinstance(node, ast.Attribute) and (before := full(node.value)):
            return f"{before}.{node.attr}"
        return None

    for node in nodes:
        if not isinstance(node, ast.Name | ast.Attribute) or not isinstance(node.ctx, ast.Load):
            continue
        name = full(node) or ""
        if isinstance(node, ast.Attribute) and node.attr in METHODS:
            name = node.attr
        risky = name in NAMES | METHODS or name.startswith(STARTS)
        risky |= any(name.startswith(f"{module}.") for module in MODULES) and name not in HARMLESS
        key, value = SAFE.get(name, (None, None))
        given = keywords.get(id(node), {}).get(key)
        if given is not None and (value is None or (isinstance(given, ast.Constant) and given.value == value)):
            continue
        if risky:
            yield name, node.lineno
        if name == "subprocess.run" or name.endswith((".Popen", ".run", ".call", ".check_output")):
            shell = keywords.get(id(node), {}).get("shell")
            if shell is not None and not (isinstance(shell, ast.Constant) and shell.value is False):
                yield "shell=", node.lineno


def test_everything_risky_has_a_reason():
    found = {}
    for path in sorted(SRC.rglob("*.py")):
        place = path.relative_to(SRC).as_posix()
        for name, line in uses(path.read_text(encoding="utf-8")):
            if not any(place == file and name.startswith(module) for file, module in ANY):
                found.setdefault((place, name), f"{place}:{line} uses {name}")
    assert not (new := [found[key] for key in found.keys() - ALLOWED.keys()]), f"say in ALLOWED why it is safe: {new}"
    assert not (gone := ALLOWED.keys() - found.keys()), f"no longer there: {gone}"


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(x)",
        "import torch as t\nt.load(x, weights_only=False)",
        "from torch import load as read\nread(x)",
        "import torch\nread = torch.load",
        "import torch\ntorch.load(x, weights_only=trusted)",
        "from torch.jit import load\nload(x)",
        "import pickle\npickle.loads(x)",
        "from pickle import Unpickler\nUnpickler(x)",
        "def f():\n    import numpy as np\n    return np.load(x, allow_pickle=True)",
        "eval(x)",
        "import os\nos.execvp(x, y)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "tar.extractall(x)",
        "tar.extract(x, y, filter='fully_trusted')",
        "from PIL import Image\nImage.open(x)",
        "import urllib.request\nurllib.request.urlopen(x)",
        "import tempfile\ntempfile.mktemp()",
    ],
)
def test_a_risky_use_is_seen(source):
    assert list(uses(source))


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(x, weights_only=True)",
        "import numpy as np\nnp.load(x, allow_pickle=False)",
        "from PIL import Image\nImage.open(x, formats=f)",
        "tar.extract(x, y, filter='data')",
        "model.eval()\nre.compile('x')",
    ],
)
def test_a_harmless_use_is_not(source):
    assert not list(uses(source))


def test_what_security_md_names_exists():
    text = (Path(__file__).parent.parent / "SECURITY.md").read_text(encoding="utf-8")
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(named) > 10
    for file, test in named:
        assert f"def {test}(" in (Path(__file__).parent.parent / file).read_text(encoding="utf-8") or not test, test
