"""The words of a command line before they are parsed: which flags it gives, and their current names."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence

from diracnets.training.renamed import RENAMED, renamed_words

_ON_OFF = {f"--{no}recalibrate{dash}bn" for no in ("", "no-") for dash in "-_"}
_THREE = (["True"], ["False"], ["None"])


def modern(options: Sequence[str]) -> list[str]:
    """The options by their current names, with one warning if some were renamed."""
    old: dict[str, str] = {}
    made: list[str] = []
    words = list(options)
    values = {option: given(words, option) for option in ("start", "init")}
    drawn = values["start"] is not None or values["init"] in ("normal", "None") or _is_number(values["init"])
    for word in words:
        name, equals, value = word.partition("=")
        flag = name.removeprefix("--").replace("_", "-")
        no = "no-" if flag.startswith("no-") else ""
        bare = flag.removeprefix("no-")
        new = "run-dir" if flag == "run" else RENAMED.get(bare.replace("-", "_"), "").replace("_", "-")
        if flag == "init" and drawn:
            new = "filters"
        elif bare.startswith("augment."):
            new = bare.removeprefix("augment.")
        if name.startswith("--") and new:
            old[f"--{flag}"] = f"--{no}{new}"
            word = f"--{no}{new}{equals}{value}"
        made.append(word)
    for index, word in enumerate(made):  # which was a flag without a value
        if word in _ON_OFF and (word.startswith("--no-") or made[index + 1 : index + 2] not in _THREE):
            made[index] = f"{word.replace('--no-', '--')}={not word.startswith('--no-')}"
    if old:
        warnings.warn(renamed_words(old), FutureWarning, stacklevel=2)
    return made


def _is_number(text: str | None) -> bool:
    try:
        return text is not None and float(text) == float(text)
    except ValueError:
        return False


def given(options: Sequence[str], flag: str) -> str | None:
    """The value of --flag in `options`, if it is there.

    >>> given(["--quiet", "--epochs", "3", "--run-dir=here"], "epochs"), given(["--run-dir=here"], "run-dir")
    ('3', 'here')
    """
    for option, value in itertools.zip_longest(options, options[1:]):
        if option == f"--{flag}":
            return value
        if option.startswith(f"--{flag}="):
            return option.partition("=")[2]
    return None


def without(options: Sequence[str], *flags: str) -> list[str]:
    """The options without some flags and their values.

    >>> without(["--quiet", "--devices", "2", "--run-dir=here"], "devices", "run-dir")
    ['--quiet']
    """
    names = {f"--{flag}" for flag in flags}
    heads = [word.partition("=")[0].replace("_", "-") for word in options]
    befores = ["", *(head if "=" not in word else "" for head, word in zip(heads, options, strict=True))]
    return [
        word
        for before, head, word in zip(befores, heads, options, strict=False)
        if before not in names and head not in names
    ]
