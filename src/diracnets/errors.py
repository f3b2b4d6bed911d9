"""What goes wrong, in classes: each message is a sentence for the user that names the value or file and what to do."""

from __future__ import annotations

import difflib
import os
import re
import reprlib
import textwrap
import unicodedata
from collections.abc import Iterable
from itertools import product

_LONGEST = 2_500  # characters of a message; what a file holds may have any number
_UNBROKEN = "\N{NO-BREAK SPACE}"
_AROUND = 8  # words before and after one with a slash that may belong to the same path


class DiracNetsError(Exception):
    """Anything that diracnets reports about its input or surroundings; the command line prints it without traceback.

    Control characters in the message, which the name of a file may bring along, are spelled out, and of a very long one
    the middle is left out.

    Args:
        message: a sentence.
        lines: whether it has several lines, each to be printed as one.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, lines: bool = False) -> None:
        text = printable(message, keep="\n\t" if lines else "\t")
        end = _LONGEST // 3
        super().__init__(text if lines or len(text) <= _LONGEST else f"{text[: 2 * end]} ... {text[-end:]}")


class UsageError(DiracNetsError, ValueError):
    """A name, number or combination of options that makes no sense."""

    exit_code = 2


class DataError(DiracNetsError):
    """Images or labels that cannot be used."""


class FileError(DiracNetsError):
    """A file that is missing, damaged, not what it should be, or that cannot be written."""


class FoldError(DiracNetsError):
    """A model that cannot be folded exactly."""


class ExportError(DiracNetsError):
    """A network that a format cannot hold, or an exported file that computes something else."""


class TrainingError(DiracNetsError):
    """A training that cannot go on."""

    exit_code = 3


class MissingExtraError(DiracNetsError, ImportError):
    """An optional dependency that is not installed; the message holds the command that installs it."""


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", cutoff: float = 0.6) -> str:
    """The part of an error message that corrects a misspelt word.

    Args:
        word: what was given.
        known: the words that there are.
        otherwise: what to say where none is near.
        cutoff: how similar the nearest must be, 0 to 1, as in `difflib.get_close_matches`.

    >>> did_you_mean("tran", ["train", "eval"]), did_you_mean("x", ["train", "eval"], "choose train or eval")
    ('did you mean train?', 'choose train or eval')
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean {near[0]}?" if near else otherwise


def first_line(error: BaseException) -> str:
    """The first sentence of an error's message, to be part of another one; at most 200 characters.

    >>> first_line(ValueError("no such layer. More follows."))
    'no such layer'
    """
    return str(error).strip().partition("\n")[0].partition(". ")[0][:200].rstrip(".") or "no message"


def shown(value: object) -> str:
    """How a value of a file is printed in an error: at most about 100 characters, whatever it is.

    >>> shown({"epochs": "many"}), shown(1 << 20_000)
    ("{'epochs': 'many'}", 'a number of 20001 bits')
    """
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"a number of {value.bit_length()} bits"
    try:
        text = repr(value) if isinstance(value, str | bytes | int | float) else reprlib.repr(value)
    except (ValueError, RecursionError):  # of a number too long to print, within it
        text = f"a {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:60]}...{text[-30:]}"


def some_of(names: Iterable[object], limit: int = 5) -> str:
    """The first few names of a list, and how many more there are.

    >>> some_of("abc"), some_of("abcde", limit=2)
    ('a, b, c', 'a, b and 3 more')
    """
    words = [str(name) for name in names]
    return ", ".join(words[:limit]) + (f" and {len(words) - limit} more" if len(words) > limit else "")


def lines_of(text: str, width: int, indent: int = 0) -> list[str]:
    """Text in lines of a width, 20 at least, that end between words; what one copies stays whole, even if it is longer.

    That is a word, a path that is there, a command in `backticks` or 'quotes', what pip is to install, and words joined
    by no-break spaces. Lines after the first are indented.

    >>> lines_of("it is in runs/photos/model.safetensors; `diracnets models` lists it", 20)
    ['it is in', 'runs/photos/model.safetensors;', '`diracnets models`', 'lists it']
    """
    joined = re.sub(
        r"`[^`]*`|(?<!\w)'[^']*'|(pip install|tensorboard --logdir) \S+",
        lambda found: found[0].replace(" ", _UNBROKEN),
        _with_whole_paths(text),
    )
    lines = textwrap.wrap(
        joined, max(width, 20), break_long_words=False, break_on_hyphens=False, subsequent_indent=" " * indent
    )
    return [line.replace(_UNBROKEN, " ") for line in lines]


def _with_whole_paths(text: str) -> str:
    """Text with no-break spaces in the paths of files and folders that are there."""
    words = text.split(" ")
    for at in [number for number, word in enumerate(words) if os.sep in word]:
        for first, last in product(range(max(0, at - _AROUND), at + 1), range(at + _AROUND, at - 1, -1)):
            path = " ".join(words[first : last + 1])
            if " " in path and os.path.lexists(path.lstrip("(").rstrip(".,;:)")):
                return _with_whole_paths(text.replace(path, path.replace(" ", _UNBROKEN)))
    return text


def printable(text: str, keep: str = "") -> str:
    """Text that cannot act on the terminal it is printed on: control characters, and those that turn the direction of
    writing, are spelled out. A file's name may hold any of them.

    Args:
        text: any.
        keep: characters to leave as they are, such as line breaks.

    >>> print(printable("cat\\x1b[2J.png"))
    cat\\x1b[2J.png
    """
    if text.isprintable():
        return text
    return "".join(letter if letter in keep or not _acts(letter) else repr(letter)[1:-1] for letter in text)


def _acts(letter: str) -> bool:
    if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp"):
        return True
    return unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
