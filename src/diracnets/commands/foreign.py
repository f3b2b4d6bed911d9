"""Flags as other programs call them, for a hint where one is given that a command does not have."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, get_args, get_type_hints

from tyro.conf import Fixed, Positional

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
    "devices": "gpus device-ids n-gpus num-gpus ngpus nproc-per-node world-size num-processes",
    "device": "gpu gpus cuda gpu-id accelerator",
    "model": "arch a net network architecture model-name",
    "data": "dataset dataset-name",
    "data-dir": "data-path data-root data-folder dataset-dir dataset-path train-dir root calib calibration",
    "image-size": "img-size imgsz input-size resolution crop-size",
    "from": "pretrained finetune weights checkpoint ckpt init-checkpoint",
    "run-dir": "output-dir output out out-dir save-dir log-dir logdir checkpoint-dir exp-dir o name project experiment",
    "recipe": "config cfg c yaml conf",
    "patience": "early-stopping early-stop early-stopping-patience",
    "save-every": "save-freq save-interval save-period save-steps checkpoint-freq",
    "class-weights": "weighted balanced class-weight balance",
    "flip": "hflip horizontal-flip fliplr",
    "mixup": "cutmix mixup-alpha",
    "out": "output-dir output out-dir save-dir output-file o",
    "resume": "resume-from resume-from-checkpoint continue",
    "seed": "random-seed manual-seed",
    "top": "topk top-k k",
    "freeze": "freeze-backbone freeze-layers",
    "ema-decay": "model-ema model-ema-decay",
    "to": "format target f",
    "threshold": "conf conf-thres conf-threshold confidence min-confidence",
    "trained": "pretrained weights",
    "short": "s brief summary",
    "batches": "batch batch-size bs b",
    "rounds": "iters iterations repeat repeats runs",
    "images": "num-images n-images num-samples n-samples samples",
}
_SAID = {  # of commands with the flag in the key: what has no flag of its own, and what there is instead
    "run-dir": {
        "num-classes nc classes class-names": "the classes are those of the images: one folder each",
        "val-split val val-size val-ratio validation-split valid split val-dir valid-dir val-data test-dir": (
            "--data-dir may hold folders train and val, else a fifth of its images is held out"
        ),
        "extend": "a finished run is trained on by --from RUN, with a schedule of its own",
        "tensorboard tb wandb": "events for TensorBoard are written wherever it is installed, and metrics.jsonl anyway",
        "log-interval print-freq log-every log-freq": "each epoch has a line here and in metrics.jsonl",
        "steps max-steps num-steps iterations iters": "--epochs says how long it trains",
        "dropout drop drop-rate drop-path": "there is no dropout in these networks, but --label-smoothing and --mixup",
        "evaluate test eval-only test-only": "`diracnets eval RUN` evaluates a trained network",
        "augment aug color-jitter auto-augment aa randaugment": "--crop, --flip, --cutout and --mixup augment",
    },
    "device": {"cpu no-cuda use-cpu": "write --device cpu"},
    "csv": {
        "out output o save save-csv output-file": "it prints: add --csv or --json, and > FILE",
        "format": "there are --csv and --json",
    },
}
_WITHOUT_FLAG = "model weights checkpoint ckpt file path input source image images img name filter"


def refuse_foreign(name: str, kind: Any, options: Sequence[str]) -> None:  # noqa: ANN401
    """Refuse a flag that the command calls otherwise, has no flag for, or that is none in it.

    Args:
        name: of the command.
        kind: the dataclass of its options.
        options: that are given.

    Raises:
        UsageError: the message has what is meant.
    """
    positional = _positional(kind)
    ours = set(_flags(kind)) - set(positional)
    if options and options[0][:1] not in ("-", "") and "run-dir" in ours and not positional:
        folder = shlex.quote(options[0])
        raise UsageError(f"{name} takes flags alone: for a folder of images, write --data folder --data-dir {folder}")
    for option in options:
        if option == "--":
            return
        dashes, word = option[:2], option.lstrip("-").partition("=")[0].replace("_", "-")
        if not dashes.startswith("-") or word in ours:
            continue
        given = option.partition("=")[0]
        for flag, elsewhere in _ELSEWHERE.items():
            if flag in ours and word in elsewhere.split():
                raise UsageError(f"{name} has no {given}: did you mean --{flag}?")
        for flag, said in _SAID.items():
            sentence = next((text for words, text in said.items() if flag in ours and word in words.split()), None)
            if sentence:
                raise UsageError(f"{name} has no {given}: {sentence}")
        if positional and word in (*positional, *_WITHOUT_FLAG.split()):
            places = " ".join(map(str.upper, positional))
            raise UsageError(f"{name} has no {given}: write `diracnets {name} {places}`, without a flag")


def _positional(kind: Any) -> list[str]:  # noqa: ANN401
    if not (is_dataclass(kind) and isinstance(kind, type)):
        return []
    hints = get_type_hints(kind, include_extras=True)
    return [field.name for field in fields(kind) if Positional in getattr(hints[field.name], "__metadata__", ())]


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
