"""run.json: what a run folder remembers of how its run was begun, besides the recipe and the checkpoints."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from diracnets.errors import FileError
from diracnets.files import written_whole

NAME = "run.json"
_EARLIER = "environment.json"  # where earlier versions kept it, in the last of a list of entries


@dataclass(frozen=True)
class RunRecord:
    """How a run was begun.

    Args:
        data_dir: where its images are, as an absolute path; None where that was not given.
        start: the name of what its weights came from, None where they were fresh.
        teacher: the name or absolute path of the network that it learns from, None where there is none, or where it
            came from no file.
        teacher_fingerprint: of that network's weights, so that a run goes on with the same.
        images: a hash of which images of a folder it has, see `diracnets.training.same_images`.
        contents: a hash of what is in its images; None for a run of an earlier version.
        safeguards: how it is guarded, see `diracnets.training.safeguards`; empty for a run of an earlier version.
    """

    data_dir: str | None = None
    start: str | None = None
    teacher: str | None = None
    teacher_fingerprint: str | None = None
    images: str | None = None
    contents: str | None = None
    safeguards: Mapping[str, int] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write it to a run folder.

        Raises:
            FileError: the file cannot be written.
        """
        with written_whole(folder / NAME) as part:
            part.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> RunRecord:
        """The record in a run folder, also of an earlier version; an empty one where there is none.

        Raises:
            FileError: the file is damaged.

        >>> RunRecord.read(Path("no such folder")) == RunRecord()
        True
        """
        earlier = not (folder / NAME).exists()
        path = folder / (_EARLIER if earlier else NAME)
        if not path.exists():
            return cls()
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            data = data[-1] if earlier and data else data or {}
            texts = [item.name for item in fields(cls) if item.name != "safeguards"]
            values = {key: data.get(key) for key in texts}
            safeguards = dict(data.get("safeguards", {}))
        except (OSError, ValueError, AttributeError, LookupError, TypeError, RecursionError) as error:
            raise FileError(f"{path} is damaged: it does not say how the run was begun ({error})") from error
        if wrong := [key for key, value in values.items() if not isinstance(value, str | None)]:
            raise FileError(f"{path} is damaged: its {wrong[0]} is not text")
        return cls(**values, safeguards=safeguards)
