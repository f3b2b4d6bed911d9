"""Quantize a network, export it to ONNX and to C, and run it there: python examples/deploy.py

Needs the extras `demo` and `export`, and for the last part a C compiler.
"""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime

import diracnets
from diracnets.data.images import ImageData


def held_out(data: ImageData) -> tuple[np.ndarray, np.ndarray]:
    """The digits that no network here was trained on: pixels [B, 1, 8, 8] of 0 to 255, and labels [B]."""
    images, labels, _ = next(data.val.batches(len(data.val.labels)))
    pixels = (images * data.std[0] + data.mean[0]) * 255  # batches are normalized
    return pixels.round().byte().numpy(), labels.numpy()


def in_onnx(file: Path, pixels: np.ndarray) -> np.ndarray:
    """[B, 1, 8, 8] pixels -> [B] classes, by ONNX Runtime."""
    session = onnxruntime.InferenceSession(file)
    (logits,) = session.run(None, {session.get_inputs()[0].name: pixels})
    return logits.argmax(1)


def in_c(file: Path, pixels: np.ndarray) -> np.ndarray:
    """The same by the C file, compiled as a library."""
    library = file.with_suffix(".so").resolve()
    subprocess.run(["cc", "-std=c99", "-O2", "-shared", "-fPIC", str(file), "-o", str(library)], check=True)
    run = ctypes.CDLL(library).digits_run
    images = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))  # the channels of a pixel side by side
    logits = np.zeros((len(images), 10), np.int8)
    for image, outputs in zip(images, logits, strict=True):
        run(image.ctypes.data_as(ctypes.c_void_p), outputs.ctypes.data_as(ctypes.c_void_p))
    return logits.argmax(1)


def main(folder: str | Path, network: str = "diracnet-28-0.5-digits") -> dict[str, float]:
    """Write all files to `folder`; gives the accuracy of each form on the held-out digits."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    data = diracnets.load_data("digits")
    pixels, labels = held_out(data)

    onnx = diracnets.export(network, "onnx", out / "digits.onnx", from_pixels=True, force=True)
    print(onnx)
    quantized = diracnets.quantize(network, data, images=128)
    diracnets.save(quantized.chain, out / "digits-int8.safetensors")
    print(f"\nint8: the same digit as in float32 for {quantized.agreement:.1%} of {quantized.images} images")
    c = diracnets.export(quantized.chain, "c", out / "digits.c", from_pixels=True, force=True)
    print(c)

    answers = {"ONNX Runtime, float32": in_onnx(onnx.path, pixels)}
    if shutil.which("cc"):
        answers["C, int8"] = in_c(c.path, pixels)
    else:
        print("no C compiler cc: the C file is written, but not run")
    found = {name: float((answer == labels).mean()) for name, answer in answers.items()}
    for name, accuracy in found.items():
        print(f"{name}: {accuracy:.2%} of {len(labels)} digits")
    return found


if __name__ == "__main__":
    main(*sys.argv[1:] or [Path("runs", "deploy")])
