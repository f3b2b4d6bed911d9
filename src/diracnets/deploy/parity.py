"""`parity`: one network on every backend. `bench`: several networks on each backend. Both as rows of one table."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from diracnets.data.images import ImageData, Images
from diracnets.deploy import backend as backends_module
from diracnets.deploy.integer import rounded_chain
from diracnets.deploy.measure import BATCHES, ROUNDS, Candidate, Exact, Say, check, exactly, side_by_side
from diracnets.deploy.onnx_int8 import QUANTIZED, int8_writer
from diracnets.deploy.process import COMPILED, EAGER
from diracnets.deploy.quantize import quantize
from diracnets.deploy.row import Row
from diracnets.deploy.subject import Given, Subject, subject_of
from diracnets.errors import DiracNetsError, MissingExtraError, UsageError, did_you_mean, first_line
from diracnets.models.integer import IntegerChain
from diracnets.runtime.environment import circumstances
from diracnets.runtime.processor import has_bfloat16

PRECISIONS = ("float32", "bfloat16", "int8")
_CALIBRATION = 256  # training images that an int8 chain is made by
_BENCH_IMAGES = 8  # on which bench compares answers


@dataclass(frozen=True)
class Table:
    """What was measured.

    Attributes:
        rows: networks, backends and precisions.
        facts: the rest: what was compared on, how often it was timed, with what.
    """

    rows: tuple[Row, ...]
    facts: Mapping[str, Any]

    def to_data(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**self.facts, "rows": [asdict(row) for row in self.rows]}


def known_backends() -> list[str]:
    """The backends that there are, installed or not; eager and compiled torch come first.

    >>> known_backends()[:3]
    ['torch', 'torch.compile', 'onnx']
    """
    return [EAGER, COMPILED, *backends_module.names()]


def parity(
    model: Given,
    data: ImageData,
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = PRECISIONS,
    images: int = 1000,
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    name: str | None = None,
    say: Say = lambda line: None,
) -> Table:
    """One network on every backend and in every precision: does it answer the same, how fast, in how much memory?

    Args:
        model: a file, the name of trained weights, or a module with a card.
        data: its held-out images are classified. A float chain is turned into int8 by `quantize` on training images.
        backends: some of `known_backends()`; by default all.
        precisions: some of "float32", "bfloat16" and "int8".
        images: how many held-out images, the first ones; fewer where there are no more.
        batches: numbers of images at a time, to time.
        rounds: how often each is timed.
        name: what to call the network; by default what was given.
        say: takes a line about what is being done.

    Returns:
        A row for each backend and precision, also for those that cannot be measured here, with the reason.

    Raises:
        UsageError: an unknown backend or precision, a network for other images, numbers that make no sense.
        FileError: the model cannot be read.

    >>> from diracnets import load_data
    >>> table = parity("diracnet-28-0.5-digits", load_data("digits"), images=100)  # doctest: +SKIP
    >>> [(row.backend, row.agreement) for row in table.rows if not row.reason]  # doctest: +SKIP
    [('torch', 1.0), ('torch.compile', 1.0), ('onnx', 1.0), ('openvino', 1.0)]
    """
    chosen = _chosen(backends, precisions)
    check(batches, rounds)
    if images < 1:
        raise UsageError(f"images is {images}; at least 1 is needed")
    subject = subject_of(model, name)
    if subject.note:
        say(subject.note)
    if subject.card.input_size != data.input_size:
        sizes = ["x".join(map(str, size)) for size in (subject.card.input_size, data.input_size)]
        raise UsageError(f"{subject.name} takes images of {sizes[0]}, those of {data.name} are {sizes[1]}")
    pictures, labels = _first(data.val, images)
    say(f"{subject.name} in {'its integers' if subject.is_integer else 'float64'} on {len(pictures):,} images")
    exact = exactly(subject.model, pictures, labels)
    integers: Subject | str = subject
    if "int8" in precisions and not subject.is_integer:
        calibration = torch.from_numpy(_first(data.train, _CALIBRATION)[0])
        say(f"quantizing it by {len(calibration)} training images, as diracnets quantize does")
        integers = _in_int8(subject, lambda: quantize(subject.model, calibration, card=subject.card).chain)
    candidates = [_candidate(subject, integers, *each, exact) for each in chosen]
    rows = side_by_side(candidates, batches=batches, rounds=rounds, say=say)
    facts = {
        "network": subject.name,
        "data": data.name,
        "images": len(pictures),
        "exact_in": "int8" if subject.is_integer else "float64",
        "exact_top1": float((exact.logits.argmax(1) == labels).mean()),
        "largest_output": float(np.abs(exact.logits).max()),
        **_how(rounds),
    }
    return Table(tuple(rows), facts)


def bench(
    networks: Mapping[str, Given] | Sequence[Given],
    *,
    backends: Sequence[str] | None = None,
    precisions: Sequence[str] = ("float32", "int8"),
    batches: Sequence[int] = BATCHES,
    rounds: int = ROUNDS,
    input_size: tuple[int, ...] | None = None,
    say: Say = lambda line: None,
) -> Table:
    """Several networks side by side, on each backend and in each precision: how fast, in how much memory?

    Images are random, and so are the weights of networks that are given by name alone. Every network is measured in its
    best form: folded, the branches of a RepVGG merged. ONNX and OpenVINO run what ONNX Runtime's own quantizer makes of
    each network in int8, whatever it is; other backends take int8 chains only.

    Args:
        networks: files, names of trained weights or of networks, or modules of anyone, which may have names of yours.
        backends, precisions, batches, rounds, say: see `parity`.
        input_size: (channels, height, width) of the images of modules that do not say it.

    Returns:
        A row for each backend, precision and network; ratios are to the first network, on the same backend and in the
        same precision.

    Raises:
        UsageError: as `parity`.
        FileError: a model cannot be read.

    >>> table = bench(["diracnet-18", "resnet-18"], backends=["onnx"], precisions=["float32"])  # doctest: +SKIP
    >>> [row.network for row in table.rows]  # doctest: +SKIP
    ['diracnet-18', 'resnet-18']
    """
    chosen = _chosen(backends, precisions)
    check(batches, rounds)
    named = networks if isinstance(networks, Mapping) else {_name(each): each for each in networks}
    if not named:
        raise UsageError("no network is given")
    subjects = [subject_of(given, name, input_size) for name, given in named.items()]
    for subject in subjects:
        if subject.note:
            say(subject.note)
    exact: dict[str, Exact] = {}
    integers: dict[str, Subject | str] = {}
    for subject in subjects:
        pictures = np.random.default_rng(0).standard_normal((_BENCH_IMAGES, *subject.card.input_size), np.float32)
        exact[subject.name] = exactly(subject.model, pictures)
        integers[subject.name] = subject
        if "int8" in precisions and not subject.is_integer:
            some = torch.from_numpy(pictures)
            integers[subject.name] = _in_int8(subject, partial(rounded_chain, subject.model, subject.card, some))
    rows: list[Row] = []
    for backend, precision in chosen:
        group = []
        for subject in subjects:
            candidate = _candidate(subject, integers[subject.name], backend, precision, exact[subject.name])
            if precision == "int8" and backend in QUANTIZED and not subject.is_integer:
                reason = _unusable(backend)
                writer = int8_writer(subject.model, subject.card, exact[subject.name].images, backend)
                candidate = replace(candidate, model=writer, reason=reason)
            group.append(candidate)
        rows += side_by_side(group, batches=batches, rounds=rounds, say=say)
    return Table(tuple(rows), {"networks": {each.name: each.multiply_adds for each in subjects}, **_how(rounds)})


def _chosen(backends: Sequence[str] | None, precisions: Sequence[str]) -> list[tuple[str, str]]:
    known = known_backends()
    for what, given, all_ in (("backend", backends or known, known), ("precision", precisions, PRECISIONS)):
        for each in given:
            if each not in all_:
                hint = did_you_mean(each, all_, f"choose of {', '.join(all_)}")
                raise UsageError(f"there is no {what} {each!r}: {hint}")
    if not precisions:
        raise UsageError(f"no precision is given: choose of {', '.join(PRECISIONS)}")
    return [
        (backend, precision) for backend in dict.fromkeys(backends or known) for precision in dict.fromkeys(precisions)
    ]


def _candidate(subject: Subject, integers: Subject | str, backend: str, precision: str, exact: Exact) -> Candidate:
    """What is measured of a network on a backend in a precision, or why it cannot be."""
    model, reason = subject.model, _unusable(backend)
    if precision == "int8":
        if isinstance(integers, Subject):
            model = integers.model
        else:
            reason = reason or integers
        if backend == COMPILED:
            reason = reason or "what torch computes of an int8 chain is a simulation, not meant to be fast"
    elif subject.is_integer:
        reason = reason or "the file holds an int8 chain"
    elif precision == "bfloat16":
        if backend not in (EAGER, COMPILED):
            reason = reason or f"{backend} is not written in bfloat16"
        if not has_bfloat16():
            reason = "this processor has no instructions for bfloat16"
        model = copy.deepcopy(model).bfloat16()
    if backend not in (EAGER, COMPILED) and precision not in ("bfloat16", *backends_module.find(backend).tolerance):
        reason = reason or f"{backend} is not written in {precision}"
    return Candidate(
        subject.name, backend, precision, model, subject.card, exact, reason, multiply_adds=subject.multiply_adds
    )


def _unusable(backend: str) -> str:
    """Why a backend cannot be used here; "" where it can."""
    if backend in (EAGER, COMPILED):
        return ""
    try:
        backends_module.usable(backend)
    except MissingExtraError as error:
        return str(error)
    return backends_module.find(backend).unrunnable


def _in_int8(subject: Subject, make: Callable[[], IntegerChain]) -> Subject | str:
    """The network as the int8 chain that `make` gives, or why there is none."""
    try:
        return replace(subject, model=make())
    except DiracNetsError as error:
        return f"it has no int8 form: {first_line(error)}"


def _first(
    images: Images, count: int
) -> tuple[np.ndarray[Any, np.dtype[np.float32]], np.ndarray[Any, np.dtype[np.int64]]]:
    """The first images of a set, and their labels."""
    chosen = images.select(range(min(count, len(images))))
    batches = [batch.cpu().numpy() for batch, _, _ in chosen.batches(256)]
    return np.concatenate(batches), chosen.labels.numpy()


def _name(given: Given) -> str:
    if isinstance(given, Subject):
        return given.name
    return type(given).__name__ if isinstance(given, torch.nn.Module) else str(given)


def _how(rounds: int) -> dict[str, Any]:
    return {"rounds": rounds, "circumstances": circumstances()}
