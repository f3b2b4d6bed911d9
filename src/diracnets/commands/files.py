"""What a file on the command line means: a run folder stands for the best checkpoint in it."""

from __future__ import annotations

from pathlib import Path

from diracnets.errors import UsageError
from diracnets.files import url_in

_SUFFIXES = (".pt", ".pt7", ".pth", ".safetensors")


def network_file(given: Path) -> Path:
    """`given`, or where it is a run folder, its checkpoint with the highest accuracy on the images held out.

    Raises:
        UsageError: a URL; a folder without that checkpoint, but with other files of networks, which the message names.

    >>> network_file(Path("model.safetensors")) == Path("model.safetensors")
    True
    """
    if (url := url_in(given)) and not given.exists():
        raise UsageError(f"{url} is a URL, which is not fetched: download the file first")
    if not given.is_dir():
        return given
    from diracnets.training.folder import RunFolder

    best = RunFolder(given).best
    if best.is_file():
        return best
    held = sorted(str(path) for path in given.iterdir() if path.suffix.lower() in _SUFFIXES)
    if held:
        raise UsageError(f"{given} is a folder that holds no {best.name}: choose one of {', '.join(held)}")
    return given
