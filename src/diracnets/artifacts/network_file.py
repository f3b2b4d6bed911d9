"""Where a file is wanted, a run folder stands for its best checkpoint."""

from __future__ import annotations

from pathlib import Path

from diracnets.errors import UsageError, some_of
from diracnets.files import url_in

BEST = "best.pt"  # of a run: the checkpoint with the highest accuracy on the held-out images
_SUFFIXES = (".pt", ".pt7", ".pth", ".safetensors")


def network_file(given: str | Path) -> Path:
    """`given`, or for a run folder its checkpoint with the highest accuracy on the held-out images.

    Raises:
        UsageError: a URL, or a folder with other networks but no best checkpoint, or with runs; the message lists them.

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
    held = sorted(str(path) for path in given.iterdir() if path.suffix.lower() in _SUFFIXES)
    if held:
        raise UsageError(f"{given} is a folder without {best.name}: choose one of {', '.join(held)}")
    if runs := sorted(str(path.parent) for path in given.glob(f"*/{BEST}")):
        raise UsageError(f"{given} is a folder of runs: choose one of {some_of(runs)}")
    return given
