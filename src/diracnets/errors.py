"""What goes wrong, in classes: each message is a sentence for the user that names the value or file and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DiracNetsError(Exception):
    """Anything that diracnets reports about its input or surroundings; the command line prints it without traceback."""

    exit_code = 1


class UsageError(DiracNetsError, ValueError):
    """A name, number or combination of options that makes no sense."""

    exit_code = 2


class DataError(DiracNetsError):
    """Images or labels that cannot be used."""


class FileError(DiracNetsError):
    """A file that is missing, damaged, not what it should be, or that cannot be written."""


class FoldError(DiracNetsError):
    """A model that cannot be folded exactly."""


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
