"""Where a file is wanted, a run folder stands for its best checkpoint."""

from __future__ import annotations

import shlex
from pathlib import Path

from diracnets.errors import UsageError, some_of
from diracnets.places import url_in

BEST = "best.pt"  # of a run: the checkpoint with the highest accuracy on the held-out images
LAST = "last.pt"  # of a run: the checkpoint that it is resumed from
_SUFFIXES = (".pt", ".pt7", ".pth", ".safetensors")


def network_file(given: str | Path) -> Path:
    """`given`, or for a run folder its checkpoint with the highest accuracy on the held-out images.

    Raises:
        UsageError: a URL; a run that was not evaluated yet; a folder with other networks but no best checkpoint, or
            with runs, which the message lists.

    >>> network_file(Path("model.safetensors")) == Path("model.safetensors")
    True
    """
    given = Path(given)
    if (url := url_in(given)) and not given.exists():
        raise UsageError(f"{url} is a URL, and is not downloaded: download the file first")
    if not given.is_dir():
        return given
    best = given / BEST
    if best.is_file():
        return best
    if (given / LAST).is_file():
        raise UsageError(
            f"the run in {given} has no best network yet, as no epoch of it was evaluated: resume it "
            f"({shlex.join(['diracnets', 'train', '--run-dir', str(given), '--resume'])}), or choose {given / LAST}"
        )
    held = sorted(str(path) for path in given.iterdir() if path.suffix.lower() in _SUFFIXES)
    if held:
        raise UsageError(f"{given} is a folder without {best.name}: choose one of {', '.join(held)}")
    if runs := sorted(str(path.parent) for path in given.glob(f"*/{BEST}")):
        raise UsageError(f"{given} is a folder of runs: choose one of {some_of(runs)}")
    return given
