"""What started this process, besides its user: a job of torchrun, and `diracnets train --devices`."""

from __future__ import annotations

import os
import socket

DEVICES = "DIRACNETS_DEVICES"  # what --devices was, for the command that resumes


def job() -> str | None:
    """The job that torchrun started this process for, the same after restarts; None where it did not.

    Without an id of its own (`--rdzv-id`), a job is that of the torchrun process which started rank 0.
    """
    number = os.environ.get("TORCHELASTIC_RUN_ID")
    if number is None:
        return None
    return number if number != "none" else f"{socket.gethostname()}-{os.getppid()}-{os.environ.get('MASTER_PORT')}"
