"""Runs that are killed, stopped, starved of disk or shown damaged files: benchmarks/faults.py, in short."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "faults.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="forks, and limits files as Linux does"),
]


def test_nothing_is_lost(tmp_path):
    pytest.importorskip("sklearn")
    kinds = ["kill", "aimed", "disk", "read-only", "damage"]
    words = ["--kinds", *kinds, "--times", "1", "--kills", "6", "--out", str(tmp_path / "faults.json")]
    done = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "faults.json").read_text())
    assert len(found["measured"]) >= 16
    assert all(row["faults"] for row in found["measured"])
