"""Flags as other programs call them, for a hint where one is given that a command does not have."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from tyro.conf import Fixed

from diracnets.errors import UsageError

_ELSEWHERE = {
    "lr": "learning-rate base-lr blr init-lr lr0",
    "batch-size": "bs b batch batchsize per-device-train-batch-size train-batch-size mini-batch-size",
    "epochs": "num-epochs n-epochs max-epochs num-train-epochs total-epochs ep",
    "weight-decay": "wd l2 decay",
    "optimizer": "opt optim optimiser",
    "schedule": "sched scheduler lr-scheduler lr-schedule lr-policy",
    "milestones": "lr-steps lr-milestones decay-epochs",
    "gamma": "lr-gamma lr-decay decay-rate",
    "warmup": "warmup-epochs warmup-steps lr-warmup-epochs",
    "label-smoothing": "smoothing ls",
    "accumulate": "grad-accum accum-iter grad-accum-steps accumulation-steps gradient-accumulation-steps",
    "clip-grad": "grad-clip clip-grad-norm max-grad-norm gradient-clip-val",
    "precision": "amp fp16 bf16 half mixed-precision",
    "workers": "num-workers n-workers j nw dataloader-num-workers",
    "devices": "gpus n-gpus num-gpus ngpus nproc-per-node world-size num-processes",
    "device": "gpu gpus cuda gpu-id accelerator",
    "model": "arch a net network architecture model-name",
    "data": "dataset dataset-name",
    "data-dir": "data-path data-root data-folder dataset-dir dataset-path train-dir root",
    "image-size": "img-size imgsz input-size resolution crop-size",
    "from": "pretrained finetune weights checkpoint ckpt init-checkpoint",
    "run-dir": "output-dir output out out-dir save-dir log-dir logdir checkpoint-dir exp-dir o",
    "out": "output-dir output out-dir save-dir output-file o",
    "resume": "resume-from resume-from-checkpoint continue",
    "seed": "random-seed manual-seed",
    "top": "topk top-k k",
    "freeze": "freeze-backbone freeze-layers",
    "ema-decay": "model-ema model-ema-decay",
    "to": "format target",
}


def refuse_foreign(name: str, kind: Any, options: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a flag that the command calls otherwise.

    Args:
        name: of the command.
        kind: the dataclass of its options.
        options: that are given.

    Raises:
        UsageError: the message has the flag that is meant.
    """
    ours = set(_flags(kind))
    for option in options:
        dashes, word = option[:2], option.lstrip("-").partition("=")[0].replace("_", "-")
        if not dashes.startswith("-") or word in ours:
            continue
        for flag, elsewhere in _ELSEWHERE.items():
            if flag in ours and word in elsewhere.split():
                raise UsageError(f"{name} has no {option.partition('=')[0]}: did you mean --{flag}?")


def _flags(kind: Any) -> Iterator[str]:  # noqa: ANN401
    """Of a dataclass of options, those in it, and its subcommands."""
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            if Fixed in getattr(hints[field.name], "__metadata__", ()):  # which cannot be given
                continue
            names = [getattr(extra, "name", None) for extra in getattr(hints[field.name], "__metadata__", ())]
            yield next((each for each in names if each), field.name).replace("_", "-")
            yield from _flags(hints[field.name])
    for part in get_args(kind):
        yield from _flags(part)
