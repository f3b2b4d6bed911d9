"""Networks in C on all test images of CIFAR-10: accuracy, exactness, flash, RAM and stack on a Cortex-M4.

python benchmarks/c_code.py MODEL_FILE... --data-dir data --out results/c.json

A model file of floats is evaluated as it is; with --round also in int8, rounded plainly, calibrated on training
images.
Programs that are missing (arm-none-eabi-gcc, valgrind) leave their columns out.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch

from diracnets import load
from diracnets.artifacts.card import attach_card, card_of
from diracnets.data.cifar import CIFAR10, read_images
from diracnets.deploy.c import write_c
from diracnets.deploy.c.compiled import compile_c
from diracnets.deploy.c.network import network_of
from diracnets.deploy.integer import rounded_chain
from diracnets.models.integer import IntegerChain
from diracnets.runtime.environment import circumstances

BESIDE = [  # with ai-edge-litert 2.3.0, one image at a time; arena: the least with which TFLM's interpreter allocates
    {
        "network": "the MLPerf Tiny reference model IC01 (ResNet-8) in int8, evaluated by us",
        "accuracy": 0.8697,
        "multiply_adds": 12_500_000,
        "file_bytes": 98_496,
        "ram_bytes": [54_000, 56_000],
    },
    {
        "network": "the MLPerf Tiny reference model IC02 (ResNet-8 of width 40) in int8, evaluated by us",
        "accuracy": 0.9131,
        "multiply_adds": 76_470_000,
        "file_bytes": 512_024,
        "ram_bytes": [134_000, 134_000],
    },
]


def measure(model: torch.nn.Module, name: str, images: np.ndarray, labels: np.ndarray) -> dict[str, object]:
    """A row of the table; images are uint8 [many, height, width, channels]."""
    card = card_of(model)
    assert card is not None
    integers = isinstance(model, IntegerChain)
    network = network_of(model, card)
    kind = np.int8 if integers else np.float32
    pixels = images.tobytes()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "net.c"
        write_c(model, card, path)
        compile_c([path, path.with_suffix(".main.c")], path.with_suffix(""))
        said = subprocess.run([path.with_suffix(""), "-"], input=pixels, capture_output=True, check=True).stdout
        outputs = np.frombuffer(said, kind).reshape(len(images), -1)
        stated = re.search(r"NET_RAM (\d+)", path.with_suffix(".h").read_text())
        assert stated is not None
        row: dict[str, object] = {
            "network": name,
            "precision": "int8" if integers else "float32",
            "accuracy": float((outputs.argmax(1) == labels).mean()),
            "images": len(images),
            "multiply_adds": sum(_multiply_adds(step) for step in network.steps),
            "weight_bytes": sum(
                a.nbytes for a in (network.weights, network.biases, network.multipliers, network.shifts)
            ),
            "ram_bytes": int(stated[1]),
            **_exactness(model, images, outputs),
            **_on_cortex_m4(path),
            **_instructions(path.with_suffix(""), pixels[: len(pixels) // len(images)]),
        }
    print(row)
    return row


def _multiply_adds(step) -> int:  # noqa: ANN001
    if step.kind not in ("conv", "linear"):
        return 0
    places = step.before[1] if step.kind == "linear" else step.after[1] * step.after[2]
    return int(step.after[0] * step.taps * places)


def _exactness(model: torch.nn.Module, images: np.ndarray, outputs: np.ndarray) -> dict[str, object]:
    """How far the outputs in C are from the chain's in torch."""
    card = card_of(model)
    assert card is not None
    mean, std = (np.array(values) for values in (card.mean, card.std))
    found = []
    with torch.inference_mode():
        for begin in range(0, len(images), 500):
            x = ((images[begin : begin + 500] / 255 - mean) / std).astype(np.float32)
            found.append(model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy())
    wanted = np.concatenate(found)
    if isinstance(model, IntegerChain):
        outputs = model.output.real(torch.from_numpy(outputs.copy())).numpy()
        return {"images_with_equal_outputs": int((outputs == wanted).all(1).sum())}
    return {"largest_difference": float(np.abs(outputs - wanted).max()), "largest_output": float(np.abs(wanted).max())}


def _on_cortex_m4(path: Path) -> dict[str, object]:
    """Flash of the network with its code, and the stack of all functions together."""
    if shutil.which("arm-none-eabi-gcc") is None:
        return {}
    compiler = ["arm-none-eabi-gcc", "-mcpu=cortex-m4", "-mthumb", "-std=c99", "-Os", "-fstack-usage", "-c"]
    subprocess.run([*compiler, path.name], cwd=path.parent, check=True)
    size = subprocess.run(["arm-none-eabi-size", "net.o"], cwd=path.parent, check=True, capture_output=True, text=True)
    text, data, bss = map(int, size.stdout.splitlines()[1].split()[:3])
    stack = sum(int(line.split("\t")[1]) for line in path.with_suffix(".su").read_text().splitlines())
    return {"cortex_m4": {"flash_bytes": text + data, "bss_bytes": bss, "stack_bytes_at_most": stack}}


def _instructions(program: Path, image: bytes) -> dict[str, object]:
    """Of this processor, compiled for any of its kind, for one image: the difference of two images and one."""
    if shutil.which("valgrind") is None:
        return {}
    counts = []
    for many in (1, 2):
        command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", program, "-"]
        done = subprocess.run(command, input=image * many, capture_output=True, check=True)
        counts.append(int(re.search(rb"Collected : (\d+)", done.stderr)[1]))  # type: ignore[index]
    return {"instructions": counts[1] - counts[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--round", action="store_true")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = arguments.data_dir / CIFAR10.folder
    images, labels = (tensor.numpy() for tensor in read_images(CIFAR10, folder / "test_batch"))
    rows = []
    for name in arguments.models:
        model = load(name)
        title = str((card_of(model).architecture or {}).get("name", Path(name).stem))
        rows.append(measure(model, title, images, labels))
        if arguments.round and not isinstance(model, IntegerChain):
            card = card_of(model)
            few = read_images(CIFAR10, folder / "data_batch_1")[0][:1000].numpy()
            x = ((few / 255 - np.array(card.mean)) / np.array(card.std)).astype(np.float32).transpose(0, 3, 1, 2)
            integers = rounded_chain(model, card, torch.from_numpy(x.copy()))
            attach_card(integers, card)
            rows.append(measure(integers, f"{title}, rounded", images, labels))
        if arguments.out:
            content = {"circumstances": circumstances(), "measured": rows, "beside": BESIDE}
            arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
