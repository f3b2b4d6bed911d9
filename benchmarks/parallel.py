"""What a second process is worth on a CPU: steps of two processes against one, and how much of sending is hidden.

    python benchmarks/parallel.py --output results/parallel.json

A batch is trained on by 2 processes of 1 thread each, by 1 process of 2 threads, and by 1 of 1 thread, in turn in every
round. The 2 processes also take each step without sending gradients (`no_sync`), and send as many numbers alone, in
DDP's buckets. Hidden behind the backward pass is `1 - (step - step without sending) / sending alone`.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import distributed
from torch.nn.functional import cross_entropy

from diracnets import create_model
from diracnets.nn.dirac import parameter_groups
from diracnets.runtime.environment import circumstances
from diracnets.runtime.ranks import joined
from diracnets.training.parallel import Trainee

WAYS = {"2 processes of 1 thread": (2, 1), "1 process of 2 threads": (1, 2), "1 process of 1 thread": (1, 1)}
BUCKET = 25 * 2**20 // 4  # numbers in a bucket of DistributedDataParallel
MEASURES = ("step", "unsent", "sending", "agreeing")


def measure(model: str, size: int, batch: int, steps: int, sync_bn: bool) -> dict[str, list[float]]:
    """Seconds of each step: as trained, without sending gradients, sending alone, and agreeing to go on."""
    with joined("cpu") as ranks:
        torch.manual_seed(0)
        net = create_model(model, num_classes=10, image_size=size).to(memory_format=torch.channels_last)
        trainee = Trainee(net, ranks, sync_bn=sync_bn)
        optimizer = torch.optim.SGD(parameter_groups(net, 5e-4), lr=0.01, momentum=0.9, fused=True)
        images = torch.randn(batch // ranks.count, 3, size, size).to(memory_format=torch.channels_last)
        labels = torch.arange(len(images)) % 10
        gradients = torch.zeros(sum(parameter.numel() for parameter in net.parameters())).split(BUCKET)
        trainee.train(True)

        def step() -> None:
            loss = cross_entropy(trainee(images), labels)
            with trainee.statistics_shared(1 / ranks.count):
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        def unsent() -> None:
            with trainee.gradients_kept():
                cross_entropy(trainee(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

        def sending() -> None:
            for work in [distributed.all_reduce(bucket, async_op=True) for bucket in gradients]:
                work.wait()

        actions = {"step": step}
        if not ranks.alone:
            actions |= {"unsent": unsent, "sending": sending, "agreeing": lambda: ranks.highest(0, 0)}
        seconds: dict[str, list[float]] = {name: [] for name in actions}
        for number in range(steps + 3):
            for name, action in actions.items():
                ranks.wait()
                begun = time.perf_counter()
                action()
                if number >= 3:  # the first ones allocate memory, and DDP orders its buckets
                    seconds[name].append(time.perf_counter() - begun)
        return seconds


def start(processes: int, threads: int, words: list[str]) -> dict[str, list[float]]:
    """What rank 0 of so many processes measures."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    running = []
    for rank in range(processes):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": threads}
        environment = {**os.environ, **{name: str(value) for name, value in own.items()}}
        command = [sys.executable, __file__, *words, "--measure"]
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    answers = [process.communicate()[0] for process in running]
    if any(process.returncode for process in running):
        raise SystemExit("a process failed, see above")
    found: dict[str, list[float]] = json.loads(answers[0])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="diracnet-28-1")
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--batch-size", type=int, default=128, help="images a step, of all processes together")
    parser.add_argument("--steps", type=int, default=10, help="in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sync-bn", action="store_true")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        found = measure(options.model, options.image_size, options.batch_size, options.steps, options.sync_bn)
        if os.environ["RANK"] == "0":
            print(json.dumps(found))
        return
    seconds: dict[str, dict[str, list[float]]] = {way: {name: [] for name in MEASURES} for way in WAYS}
    for _ in range(options.rounds):
        for way, (processes, threads) in WAYS.items():
            for name, values in start(processes, threads, sys.argv[1:]).items():
                seconds[way][name] += values
    rows = {}
    for way, measured in seconds.items():
        rows[way] = {
            name: {
                "median_ms": round(1000 * statistics.median(values), 3),
                "min_ms": round(1000 * min(values), 3),
                "max_ms": round(1000 * max(values), 3),
            }
            for name, values in measured.items()
            if values
        }
    medians = {way: {name: row["median_ms"] for name, row in measured.items()} for way, measured in rows.items()}
    two, wide, single = (medians[way] for way in WAYS)
    longer = max(0.0, two["step"] - two["unsent"])
    hidden = round(1 - longer / two["sending"], 3) if longer <= two["sending"] else None
    result = {
        "what": "a step of training: forward, backward, gradients over all processes, SGD",
        "model": options.model,
        "image_size": options.image_size,
        "batch_size": options.batch_size,
        "sync_bn": options.sync_bn,
        "steps": options.steps * options.rounds,
        "rows": rows,
        "two_processes_over_two_threads": round(two["step"] / wide["step"], 3),
        "two_processes_over_one_thread": round(two["step"] / single["step"], 3),
        "sending_hidden": hidden,  # None: processes wait for each other for longer than sending takes
        "circumstances": circumstances(),
    }
    for way, measured in medians.items():
        print(f"{way}: {', '.join(f'{name} {value:.1f} ms' for name, value in measured.items())}")
    print(
        f"2 processes take {result['two_processes_over_two_threads']:.2f} of 2 threads' time, "
        f"{result['two_processes_over_one_thread']:.2f} of 1 thread's; "
        + (
            "waiting for each other hides what sending costs"
            if hidden is None
            else f"{hidden:.0%} of sending is hidden"
        )
    )
    if options.output:
        options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
