"""C files, compiled here and called from Python."""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path

from diracnets.errors import ExportError

FLAGS = ("-std=c99", "-O3", "-Wall", "-Wextra", "-Werror", "-pedantic")


def compiler() -> list[str] | None:
    """The command of the C compiler: what the variable CC says, or cc, gcc or clang; None where there is none."""
    wanted = [os.environ["CC"]] if os.environ.get("CC", "").strip() else ["cc", "gcc", "clang"]
    for command in map(shlex.split, wanted):
        if shutil.which(command[0]):
            return command
    return None


def lacks_compiler() -> str:
    """What is missing to compile C, in a few words; "" where nothing is."""
    return "" if compiler() else "a C compiler (cc, gcc or clang, or what the variable CC names)"


def compile_c(sources: Sequence[Path], out: Path, flags: Sequence[str] = FLAGS) -> None:
    """Compile and link C files.

    Args:
        sources: .c files.
        out: the program or library to write.
        flags: of the compiler.

    Raises:
        ExportError: there is no compiler, or it fails; with the first lines that it printed.
    """
    command = compiler()
    if command is None:
        raise ExportError(f"C needs {lacks_compiler()}, which is missing here")
    arguments = [*command, *flags, *map(str, sources), "-o", str(out)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        said = "\n".join((done.stderr or done.stdout).strip().splitlines()[:5])
        raise ExportError(f"{command[0]} does not compile {sources[0].name}:\n{said}", lines=True)


def library(source: Path, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """A .c file as a library in this process.

    Raises:
        ExportError: it does not compile.
    """
    folder = tempfile.TemporaryDirectory(prefix="diracnets-c-")
    path = Path(folder.name) / "net.so"
    compile_c([source], path, [*flags, "-shared", "-fPIC"])
    loaded = ctypes.CDLL(str(path))
    weakref.finalize(loaded, folder.cleanup)
    return loaded
