"""What this package does on one GPU, in stages of at most nine minutes each.

    python benchmarks/gpu.py --data-dir data --airbench airbench94_muon.py      # all stages, in order
    python benchmarks/gpu.py --data-dir data --stage 2 --set muon_lr=0.03       # one of them, by another recipe
    python benchmarks/gpu.py --toy                                              # every stage in seconds, on a CPU

| stage | what | aim |
| 1  | time of a training step against the plain network's, eager and compiled; images/s; the loader | 1.02, 1.01 |
| 2  | DiracNet-28-10 on CIFAR-10, for as many epochs as the time allows | error of 4.0% |
| 3  | the same on CIFAR-100 | 19.25% |
| 3b | Wide ResNet-28-10 on CIFAR-100, by the recipe and for the epochs of stage 3 | |
| 4  | time to 94% and 96% on CIFAR-10: the sprint family, and programs of cifar10-airbench, run as they are | theirs |
| 5  | DiracNet-18 on Imagenette | |

It needs what the package needs to train, nothing else. `--data-dir` has packed pieces (see packed.py) or the usual
files; they are unpacked once into the folder `--work`, so that pieces may also come one call after the other. Each
stage runs in a process of its own. It writes what it finds into gpu.json, in `--work` and in `--out` (by default the
folder that the variable OUT names), as soon as it finds it; a finished stage is skipped when it is asked for again, and
one that was cut off goes on from its last checkpoint or measurement. Stages with `--set` count as stages of their own.
Settings are for choosing a recipe on images held out of the training set: give `select_on=5000` with them.

A stage ends in time by itself: how many epochs it trains follows from the measured speed of a few steps, evaluation
included. Should it not, it is stopped shortly before, and keeps what it has.

Weights of networks on photographs and of the best sprint are written too, as model files in float16; parts of a large
one are joined by `cat`. Those of the wide networks are too large.

Networks train in bfloat16 autocast, channels_last, cudnn.benchmark on. Times of stage 4 are of training alone, as
cifar10-airbench takes them: no evaluation, no compilation or other warm-up; both in the same call, one after the other.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import packed

STAGES = ("1", "2", "3", "3b", "4", "5")
SPARE = 15.0  # seconds before its end at which a stage is asked to stop
GRACE = 10.0  # seconds that it then has
SIDE, TOY_SIDE = 160, 40  # of photographs


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--data-dir", nargs="+", type=Path, default=[], help="folders with packed pieces or files")
    parser.add_argument("--work", type=Path, help="what is kept between calls; by default in the temporary folder")
    parser.add_argument("--out", type=Path, help="where results go; by default $OUT, or the folder --work")
    parser.add_argument("--minutes", type=float, default=9.0, help="for each stage")
    parser.add_argument("--set", nargs="+", default=[], metavar="NAME=VALUE", help="of the recipes of stages 2 to 5")
    parser.add_argument("--airbench", nargs="+", type=Path, default=[], help="programs of cifar10-airbench")
    parser.add_argument("--seeds", type=int, default=5, help="of each network of stage 4")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--toy", action="store_true", help="tiny networks, few images: to try the program")
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of a process that runs one stage
    options = parser.parse_args(words)
    if options.minutes * 60 <= 2 * (SPARE + GRACE):
        parser.error(f"--minutes {options.minutes:g} is too short: give at least 1")
    for word in options.set:
        if "=" not in word:
            parser.error(f"--set {word} is no NAME=VALUE, such as muon_lr=0.03")
    if options.set and "1" in options.stage:
        parser.error("--set changes recipes, and stage 1 has none: name the others with --stage")
    if missing := [str(path) for path in [*options.data_dir, *options.airbench] if not path.exists()]:
        parser.error(f"there is no {', '.join(missing)}")
    if options.work is None:
        options.work = Path(tempfile.gettempdir()) / ("diracnets-gpu-toy" if options.toy else "diracnets-gpu")
    if options.out is None:
        options.out = Path(os.environ["OUT"]) if os.environ.get("OUT") else options.work
    return options


def key_of(stage: str, options: argparse.Namespace) -> str:
    """What gpu.json calls a stage: its number, and the settings that its recipe was given."""
    return " ".join([stage, *sorted(options.set)])


def results(options: argparse.Namespace) -> dict[str, dict[str, object]]:
    """What stages have found so far, by key."""
    path = options.work / "gpu.json"
    return json.loads(path.read_text()) if path.exists() else {}


def write_results(options: argparse.Namespace, found: dict[str, dict[str, object]]) -> None:
    """Write gpu.json, whole or not at all, to where it is kept and to where results go."""
    for folder in {options.work.resolve(), options.out.resolve()}:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / ".gpu.json"
        part.write_text(json.dumps(found, indent=1, allow_nan=False) + "\n")
        part.replace(folder / "gpu.json")


def run_apart(stage: str, options: argparse.Namespace, began: float) -> bool:
    """Run one stage in a process of its own, and whether it came to its end."""
    until = began + 60 * options.minutes
    words = [word for word in sys.argv[1:] if not word.startswith("--until")]
    child = subprocess.Popen([sys.executable, __file__, *words, "--stage", stage, f"--until={until}"])
    try:
        child.wait(max(1.0, until - SPARE - time.time()))
    except subprocess.TimeoutExpired:
        print(f"stage {stage} is asked to stop: its {options.minutes:g} minutes are over", flush=True)
        child.send_signal(signal.SIGTERM)  # training saves its state
        try:
            child.wait(GRACE)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    return child.returncode == 0


def main() -> None:
    """Run the stages that are asked for and not finished yet."""
    began = time.time()
    options = arguments()
    if options.until is not None:
        import gpu_stages  # and torch, which the parent does without

        sys.exit(gpu_stages.run(options.stage[0], options))
    if options.data_dir:
        have = packed.take_in(options.data_dir, options.work / "data", TOY_SIDE if options.toy else SIDE)
        print(f"unpacked: {', '.join(have)}; {time.time() - began:.0f} s", flush=True)
    write_results(options, results(options))
    unfinished = []
    for stage in options.stage:
        if results(options).get(key_of(stage, options), {}).get("finished"):
            print(f"stage {key_of(stage, options)} was finished before", flush=True)
        elif not run_apart(stage, options, began):
            unfinished.append(stage)
        began = time.time()
    if unfinished:
        sys.exit(f"not finished: stage {', '.join(unfinished)}; the same command goes on with what is left")


if __name__ == "__main__":
    main()
