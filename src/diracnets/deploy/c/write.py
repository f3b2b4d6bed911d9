"""The C text of a network: a header, one file of tables and code, and a program that classifies images."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diracnets.artifacts.card import ModelCard
from diracnets.deploy.c.network import BLOCK, Array, CNetwork
from diracnets.deploy.c.plan import Place, Plan
from diracnets.deploy.c.step import Step, aligned
from diracnets.models.fixed_point import Quantization


@dataclass(frozen=True, eq=False)
class Source:
    """A network in C.

    Args:
        header: text of the .h file.
        code: of the .c file.
        main: of the program that classifies image files; "" where the network does not take pixels.
        weights: bytes of the .bin file, where the weights are apart; else none.
    """

    header: str
    code: str
    main: str
    weights: bytes


def source_of(
    network: CNetwork, card: ModelCard, plan: Plan, stem: str, about: str, from_pixels: bool, apart: bool
) -> Source:
    """Write a network in C.

    Args:
        network: to write.
        card: of it.
        plan: of its memory.
        stem: of the files' names, from which the functions have theirs.
        about: what is said of the network, on top of both files.
        from_pixels: whether it takes pixels, 0..255; else int8 or normalized floats.
        apart: whether the weights go into a file of their own.
    """
    weights = b"".join(array.astype(array.dtype.newbyteorder("<")).tobytes() for array in _numbers(network).values())
    key = zlib.crc32(weights)
    load = json.dumps(f"{stem}.bin")
    value, tap, total = ("int8_t", "int16_t", "int32_t") if network.integers else ("float",) * 3
    parts = {
        "VALUE": value,
        "TAP": tap,
        "SUM": total,
        "ABOUT": re.sub(r"\n(?=.)", "\n   ", about.replace("*/", "* /")),
        "INPUT": "uint8_t" if from_pixels else value,
        "OUTPUT": value,
        "SIZES": _defines(_sizes(network, card, plan, from_pixels, len(weights) + 4 if apart else 0)),
        "MEANING": _meaning(network, card, from_pixels),
        "DECLARE_LOAD": _part("load.h") if apart else "",
        "CALL_LOAD": _part("main_load.c").replace("WEIGHTS_FILE", load) if apart else "",
        "LIMITS": _defines(_limits(network, plan)),
        "LAYERS": ",\n".join(_layers(network, plan)),
        "CUTS": ",\n".join(f"    {{{part.first}, {part.last}, {part.source}}}" for part in plan.segments),
        "CLASSES": _classes(card, network),
        "WEIGHTS": _loaded(network, key) if apart else "\n".join(_constants(network)),
        "CONVERSION": _conversion(network, card, plan, from_pixels),
        "CODE": "\n".join(map(_part, ("int8.c" if network.integers else "float.c", "layers.c", "rows.c"))),
    }
    header, code, main = (_named(_filled(name, parts), stem) for name in ("net.h", "net.c", "main.c"))
    blob = key.to_bytes(4, "little") + weights if apart else b""
    return Source(header, code, main if from_pixels else "", blob)


def static_bytes(network: CNetwork, plan: Plan) -> dict[str, int]:
    """The static memory of a network in bytes, by what it is for."""
    taps = max(1, *(network.taps(step) for step in network.steps))
    return {
        "activations": aligned(plan.size),
        "window": aligned(taps * (2 if network.integers else 4)),
        "counters": 4 * len(network.steps),
    }


def identifier(stem: str) -> str:
    """A name that C takes, made of that of a file.

    >>> identifier("diracnet-28-1"), identifier("2nets")
    ('diracnet_28_1', 'n2nets')
    """
    name = re.sub(r"\W", "_", stem, flags=re.ASCII).lower().strip("_") or "net"
    return f"n{name}" if name[0].isdigit() else name


def _part(name: str) -> str:
    return (Path(__file__).parent / "parts" / name).read_text(encoding="utf-8")


def _filled(name: str, parts: dict[str, str]) -> str:
    return re.sub(
        r"@(\w+)@\n?",
        lambda found: parts[found[1]] + "\n" * found[0].endswith("\n") * bool(parts[found[1]]),
        _part(name),
    )


def _named(text: str, stem: str) -> str:
    name = identifier(stem)
    text = text.replace('"net.h"', json.dumps(f"{stem}.h"))
    return re.sub(r"\bNET_", f"{name.upper()}_", re.sub(r"\bnet_", f"{name}_", text))


def _defines(values: dict[str, object]) -> str:
    return "\n".join(f"#define NET_{name} {value}" for name, value in values.items())


def _sizes(network: CNetwork, card: ModelCard, plan: Plan, from_pixels: bool, weights: int) -> dict[str, object]:
    channels, height, width = card.input_size
    sizes: dict[str, object] = {"CHANNELS": channels, "HEIGHT": height, "WIDTH": width}
    after = network.steps[-1].after
    sizes["OUTPUTS"] = int(np.prod(after))
    if after[1:] != (1, 1):
        sizes["OUTPUT_CHANNELS"] = f"{after[0]} /* of each of {after[1]} x {after[2]} places, row by row */"
    sizes["RAM"] = f"{sum(static_bytes(network, plan).values())} /* bytes of static memory */"
    if weights:
        sizes["WEIGHTS_SIZE"] = f"{weights} /* bytes of the file of weights */"
    if network.integers:
        quantizations = {} if from_pixels else {"INPUT": network.input}
        for name, each in {**quantizations, "OUTPUT": network.output}.items():
            assert isinstance(each, Quantization)
            sizes |= {f"{name}_SCALE": f"{each.scale!r}f", f"{name}_ZERO_POINT": f"({each.zero_point})"}
    return sizes


def _meaning(network: CNetwork, card: ModelCard, from_pixels: bool) -> str:
    order = "row by row, the channels of a pixel side by side"
    mean, std = (", ".join(f"{value:.6g}" for value in values) for values in (card.mean, card.std))
    normalized = f"(pixel / 255 - mean) / std,\n   mean {mean}, std {std}"
    if from_pixels:
        text = f"An image is pixels of 0 to 255, {order}."
    elif network.integers:
        text = (
            f"An image is x / INPUT_SCALE + INPUT_ZERO_POINT, rounded, -128 to 127, with x = {normalized};\n   {order}."
        )
    else:
        text = f"An image is {normalized};\n   {order}."
    if network.integers:
        text += "\n   An output stands for (output - OUTPUT_ZERO_POINT) * OUTPUT_SCALE."
    return text


def _limits(network: CNetwork, plan: Plan) -> dict[str, object]:
    sizes = static_bytes(network, plan)
    return {
        "LAYERS": len(network.steps),
        "SEGMENTS": len(plan.segments),
        "TALLEST": max((step.size[0] for step in network.steps if not step.adds_up), default=1),
        "BLOCK": BLOCK,
        "MEMORY": sizes["activations"] // 4,
        "TAPS": sizes["window"] // (2 if network.integers else 4),
    }


def _layers(network: CNetwork, plan: Plan) -> Iterable[str]:
    weight = channel = 0
    places = [place for segment in plan.segments for place in segment.places]
    for step, place, layer in zip(network.steps, places, network.layers, strict=True):
        weighted = step.kind in ("conv", "linear")
        relu = int(weighted and layer.relu)  # type: ignore[union-attr]
        lowest, ins, outs = (0, 0, 0)
        if network.integers:
            ins, outs = layer.input.zero_point, layer.output.zero_point  # type: ignore[union-attr]
            lowest = layer.lowest if weighted else -128  # type: ignore[union-attr]
        taps = network.taps(step)
        yield f"    /* {_comment(step.name)} */ {_row(step, place, (weight, channel, taps, relu, lowest, ins, outs))}"
        if weighted:
            parts = step.before[1] if step.kind == "linear" else 1
            weight += step.after[0] * taps * parts
            channel += step.after[0]


def _row(step: Step, place: Place, rest: tuple[int, ...]) -> str:
    (channels, *before), (out_channels, *after) = step.before, step.after
    shape = (*before, channels, *after, out_channels)
    window = (*step.size, *step.stride, *step.padding, *step.dilation, step.groups)
    numbers = (int(step.adds_up), *shape, *window, step.kept_rows, place.rows, place.out, *rest)
    return f"{{{step.kind.upper()}, {', '.join(map(str, numbers))}}}"


def _numbers(network: CNetwork) -> dict[str, Array]:
    """In the order of the file of weights: those of four bytes first."""
    if network.integers:
        names = {"BIASES": network.biases, "MULTIPLIERS": network.multipliers}
        return {**names, "SHIFTS": network.shifts, "WEIGHTS": network.weights}
    return {"BIASES": network.biases, "WEIGHTS": network.weights}


def _constants(network: CNetwork) -> Iterable[str]:
    for name, values in _numbers(network).items():
        kind = f"{values.dtype.name}_t" if network.integers else "float"
        text = _floats(values) if kind == "float" else list(map(str, values.tolist()))
        body = _lines(text or ["0"])
        yield f"static const {kind} net_{name.lower()}[] = {{\n{body}\n}};\n#define NET_{name} net_{name.lower()}\n"


def _loaded(network: CNetwork, key: int) -> str:
    text, place = _part("load.c").replace("WEIGHTS_KEY", f"{key}u"), 4
    for name, values in _numbers(network).items():
        kind = f"{values.dtype.name}_t" if network.integers else "float"
        text += f"#define NET_{name} ((const {kind} *)(const void *)(net_loaded + {place}))\n"
        place += values.nbytes
    return text


def _floats(values: Array) -> list[str]:
    """The shortest texts that are read as the same float32 numbers."""
    return [f"{np.format_float_scientific(value, unique=True, trim='0')}f" for value in values]


def _lines(words: list[str], width: int = 116) -> str:
    lines, length = [[]], 0  # type: list[list[str]], int
    for word in words:
        if length + len(word) + 2 > width:
            lines.append([])
            length = 0
        lines[-1].append(word)
        length += len(word) + 2
    return ",\n".join("    " + ", ".join(line) for line in lines)


def _conversion(network: CNetwork, card: ModelCard, plan: Plan, from_pixels: bool) -> str:
    """The function that makes a row of the image one of the network's input."""
    if not from_pixels:
        return _part("as_it_is.c")
    place = str(plan.segments[0].source)
    mean, std = (np.array(values, np.float64)[:, None] for values in (card.mean, card.std))
    if network.integers:
        pixels = ((np.arange(256)[None] / 255 - mean) / std).astype(np.float32)
        assert isinstance(network.input, Quantization)
        table = network.input.integers(torch.from_numpy(pixels)).numpy().astype(int)
        rows = ",\n".join(f"    {{\n{_lines([str(value) for value in row], 100)}\n    }}" for row in table)
        return _part("pixels_int8.c").replace("TABLE", rows).replace("PLACE", place)
    scale, shift = (", ".join(_floats(values.ravel().astype(np.float32))) for values in (1 / (255 * std), -mean / std))
    return _part("pixels_float.c").replace("SCALES", scale).replace("OFFSETS", shift).replace("PLACE", place)


def _classes(card: ModelCard, network: CNetwork) -> str:
    after = network.steps[-1].after
    many = int(np.prod(after))
    names = card.classes if (len(card.classes), 1, 1) == after else [str(index) for index in range(many)]
    return _lines([_quoted(name) for name in names])


def _quoted(text: str) -> str:
    """A string of C: bytes that are not plain letters as octal numbers."""
    plain = {byte for byte in range(32, 127) if chr(byte) not in '"\\?'}
    return '"' + "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode()) + '"'


def _comment(text: str) -> str:
    return re.sub(r"[^\w.+-]", "_", text, flags=re.ASCII)
