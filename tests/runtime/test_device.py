import os
import platform
import subprocess
import sys

import pytest
import torch

from diracnets.errors import UsageError
from diracnets.runtime.device import choose_device, repeatable


def pretend(monkeypatch, cuda, mps):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(("cuda", "mps", "chosen"), [(2, False, "cuda"), (0, True, "mps"), (0, False, "cpu")])
def test_auto_takes_the_fastest_kind(cuda, mps, chosen, monkeypatch):
    pretend(monkeypatch, cuda, mps)
    assert choose_device("auto").type == chosen


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:2", "mps", "gpu", "cpu:1", "meta", "cuda:x", ""])
def test_what_is_not_there_is_refused(name, monkeypatch):
    pretend(monkeypatch, 2 if name == "cuda:2" else 0, False)
    with pytest.raises(UsageError):
        choose_device(name)


def test_repeatable_repeats_and_restores():
    drawn = []
    for _ in range(2):
        with repeatable(5, deterministic=True):
            assert torch.are_deterministic_algorithms_enabled()
            drawn.append(torch.randn(3))
    assert drawn[0].equal(drawn[1])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another library hands out the memory")
def test_memory_that_is_kept_stays_with_the_process():
    script = (
        "import numpy, resource\n"
        "from diracnets.runtime.device import keep_memory\n"
        "def faults():\n"
        "    for _ in range(3): numpy.ones(2**23)\n"  # 64 MiB
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(3): numpy.ones(2**23)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "given_back = faults()\n"
        "keep_memory()\n"
        "print(given_back, faults())"
    )
    unchosen = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=unchosen).stdout
    given_back, kept = map(int, said.split())
    assert given_back > 300 > 50 > kept  # huge pages make few faults
