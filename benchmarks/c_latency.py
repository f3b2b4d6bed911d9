"""Time of an int8 chain in C beside TensorFlow Lite Micro and LiteRT on the same parameters, one thread, one image.

python benchmarks/c_latency.py MODEL_FILE... --out results/c_latency.json

Calls are interleaved, and the ratio is that of the least times: the machine may do other things. TensorFlow Lite Micro
is the package tflite-micro, whose kernels on this kind of processor are the reference ones. Other .tflite files may be
put beside with --tflite FILE..., named by what stands before the suffix.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from ai_edge_litert.interpreter import Interpreter, OpResolverType
from tflite_micro.python.tflite_micro import runtime
from timing import interleaved

from diracnets import load
from diracnets.artifacts.card import ModelCard, attach_card, card_of
from diracnets.deploy.backend import Options, find
from diracnets.deploy.c import write_c
from diracnets.deploy.c.compiled import FLAGS, library
from diracnets.deploy.integer import rounded_chain
from diracnets.models.integer import IntegerChain
from diracnets.runtime.environment import circumstances

Array: TypeAlias = npt.NDArray[Any]
Network: TypeAlias = "InC | InLiteRT | InMicro"


class InC:
    """The network in C, which takes int8; compiled with these flags besides those of `FLAGS`."""

    def __init__(self, model: IntegerChain, folder: Path, flags: list[str]) -> None:
        card = card_of(model)
        assert card is not None
        write_c(model, card, folder / "net.c", from_pixels=False)
        self.code = library(folder / "net.c", [*FLAGS, *flags])
        channels, height, width = card.input_size
        self.image, self.outputs = np.zeros((1, height, width, channels), np.int8), np.zeros(10, np.int8)
        self.pointers = [each.ctypes.data_as(ctypes.c_void_p) for each in (self.image, self.outputs)]

    def set(self, image: Array) -> None:
        self.image[:] = image

    def run(self) -> None:
        self.code.net_run(*self.pointers)

    def get(self) -> Array:
        return self.outputs.copy()


class InLiteRT:
    def __init__(self, path: Path, kernels: OpResolverType) -> None:
        self.interpreter = Interpreter(str(path), num_threads=1, experimental_op_resolver_type=kernels)
        self.interpreter.allocate_tensors()
        self.run = self.interpreter.invoke

    def set(self, image: Array) -> None:
        self.interpreter.set_tensor(self.interpreter.get_input_details()[0]["index"], image)

    def get(self) -> Array:
        return self.interpreter.get_tensor(self.interpreter.get_output_details()[0]["index"])[0]


class InMicro:
    def __init__(self, path: Path) -> None:
        self.interpreter = runtime.Interpreter.from_file(str(path), arena_size=1_000_000)
        self.set(np.zeros((1, 32, 32, 3), np.int8))
        self.run = self.interpreter.invoke

    def set(self, image: Array) -> None:
        self.interpreter.set_input(image, 0)

    def get(self) -> Array:
        return np.asarray(self.interpreter.get_output(0))[0]


def differences(networks: dict[str, Network], many: int = 20) -> dict[str, int]:
    """The largest difference to C's outputs on images of noise, in steps of int8."""
    random, largest = np.random.default_rng(0), dict.fromkeys(networks, 0)
    for _ in range(many):
        image = random.integers(-128, 128, (1, 32, 32, 3), np.int8)
        outputs = {}
        for name, network in networks.items():
            network.set(image)
            network.run()
            outputs[name] = network.get().astype(int)
        first = outputs["C, any x86-64"]
        largest = {name: max(most, int(abs(outputs[name] - first).max())) for name, most in largest.items()}
    return largest


def measure(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, dict[str, float]]:
    times = interleaved(calls, rounds, torch.device("cpu"))
    first = times["C, any x86-64"]
    rows = {}
    for name, seconds in times.items():
        rows[name] = {
            "median_ms": round(1e3 * statistics.median(seconds), 3),
            "least_ms": round(1e3 * min(seconds), 3),
            "least_over_that_of_c": round(min(seconds) / min(first), 3),
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--tflite", nargs="*", type=Path, default=[])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for name in arguments.models:
        model = load(name)
        card = card_of(model)
        assert isinstance(card, ModelCard)
        if not isinstance(model, IntegerChain):  # the weights do not change the time
            model = rounded_chain(model, card, torch.randn(8, *card.input_size))
        attach_card(model, card)
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            find("litert").write(model, card, folder / "net.tflite", Options(batch=1))
            networks: dict[str, Network] = {
                "C, any x86-64": InC(model, folder, []),
                "C, -march=native": InC(model, folder, ["-march=native"]),
                "TensorFlow Lite Micro": InMicro(folder / "net.tflite"),
                "LiteRT, reference kernels": InLiteRT(folder / "net.tflite", OpResolverType.BUILTIN_REF),
                "LiteRT, fast kernels": InLiteRT(folder / "net.tflite", OpResolverType.AUTO),
            }
            largest = differences(networks)
            for path in arguments.tflite:
                networks[f"{path.stem} in TensorFlow Lite Micro"] = InMicro(path)
                networks[f"{path.stem} in LiteRT, fast kernels"] = InLiteRT(path, OpResolverType.AUTO)
            times = measure({name: network.run for name, network in networks.items()}, arguments.rounds)
            title = str((card.architecture or {}).get("name"))
            rows.append({"network": title, "largest_difference_in_steps": largest, "times": times})
        print(json.dumps(rows[-1], indent=1))
    if arguments.out:
        content = {"circumstances": circumstances(), "rounds": arguments.rounds, "measured": rows}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
