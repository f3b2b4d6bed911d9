"""`diracnets demo`: train, fold and classify, on real images that need no download."""

from __future__ import annotations

import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diracnets.commands.art import blocks, side_by_side
from diracnets.commands.output import say, stdout
from diracnets.errors import FileError, TrainingError, UsageError
from diracnets.files import written_whole
from diracnets.training.recipe import Recipe

if TYPE_CHECKING:
    from diracnets.data.images import ImageData

GOAL = 0.975  # of the held-out fifth of the digits; seeds have 98.3 to 98.9% in float32, and 98.6 to 99.2 in bfloat16
_MARK = ".made-by-diracnets-demo"
_SHOWN = 8
_ACROSS = 4


@dataclass(frozen=True)
class Demo:
    """Train a deep plain network on 1,797 handwritten digits, fold it, check the fold, and classify images.

    Everything goes to one folder. Running the demo again replaces what it wrote there before."""

    out: Path = Path("demo")
    """The folder to write to: new, empty, or of an earlier demo."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""

    def execute(self) -> None:
        """Run the demo, and print what to try next."""
        import torch

        from diracnets.runtime.device import keep_memory

        keep_memory()
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as fast as two for images of 8x8, and many times faster where others compute too
        try:
            demonstrate(Recipe.load("demo"), self.out, self.device)
        finally:
            torch.set_num_threads(threads)


def demonstrate(recipe: Recipe, out: Path, device: str, goal: float = GOAL) -> None:
    """Run the demo with any recipe.

    Args:
        recipe: for the digits.
        out: the folder to write to.
        device: as in `train`.
        goal: the accuracy to reach on the held-out digits, 0 to 1.

    Raises:
        UsageError: `out` holds other files.
        FileError: it cannot be written.
        TrainingError: the accuracy is below `goal`.
    """
    _prepare(out)
    from diracnets.data.load import load_data
    from diracnets.evaluation.metrics import evaluate
    from diracnets.runtime.device import choose_device
    from diracnets.training.loop import train

    console = stdout()
    console.print(f"1. Train {recipe.model.name}, a plain chain of convolutions, on handwritten digits", style="bold")
    data = load_data("digits", device=choose_device(device))
    trained = train(recipe, run=out / "run", data=data, device=device)
    if trained.chain is None or trained.model_file is None:
        raise UsageError(f"the demo folds its network, but {recipe.model.name} has branches; choose a chain")

    console.print("\n2. Evaluate the network and its folded chain on the held-out digits", style="bold")
    network, chain = evaluate(trained.net, data.val), evaluate(trained.chain, data.val)
    same = int((network.predictions == chain.predictions).sum())
    console.print(f"network     {network.top1:.2%} of {network.count}, loss {network.loss:.4f}")
    console.print(f"chain       {chain.top1:.2%} of {chain.count}, loss {chain.loss:.4f}")
    console.print(f"agreement   {same} of {chain.count} predictions are the same")

    console.print("\n3. How exact the fold is", style="bold")
    say(str(trained.chain.fold_report))

    console.print("\n4. Classify images that it has not seen, from the model file alone", style="bold")
    console.print(_classify(trained.model_file, data, out / "digits"))

    console.print("Files written", style="bold")
    console.print(f"model file  {trained.model_file}, {trained.model_file.stat().st_size:,} bytes")
    console.print(f"curve       {trained.run / 'curve.png'}")
    console.print(f"images      {out / 'digits'}")
    if chain.top1 < goal:
        raise TrainingError(
            f"the demo got {chain.top1:.2%} of the held-out digits right, less than its goal of {goal:.1%}"
        )

    console.print("\nWhat to try next", style="bold")
    for arguments in _next(trained.run, trained.model_file, out):
        console.print(f"  {_program()} {shlex.join(arguments)}", soft_wrap=True)


def _prepare(out: Path) -> None:
    """Clear `out` for a new demo, but only what a demo wrote."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; choose a folder with --out")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARK).exists():
        raise UsageError(f"{out} holds files that no demo wrote; choose another folder with --out")
    with written_whole(out / _MARK) as part:
        part.write_text("`diracnets demo` replaces run/ and digits/ in this folder.\n", encoding="utf-8")
    try:
        for old in (out / "run", out / "digits"):
            if old.exists():
                shutil.rmtree(old)
    except OSError as error:
        raise FileError(f"cannot replace {error.filename}: {error.strerror}") from error


def _classify(model_file: Path, data: ImageData, folder: Path) -> str:
    """Write a few held-out digits as images, and show how the model file classifies them."""
    from diracnets.evaluation.predict import predict

    truths = [data.classes[int(data.val.labels[index])] for index in range(_SHOWN)]
    paths = [folder / f"{data.val.name(index).replace(' ', '-')}.png" for index in range(_SHOWN)]
    for index, path in enumerate(paths):
        with written_whole(path) as part:
            data.val.image(index).save(part, format="PNG")
    predictions = predict(model_file, paths, top=1)
    ascii_only = not (sys.stdout.encoding or "ascii").lower().startswith("utf")
    shown = []
    for index, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
        verdict = "" if prediction.label == truth else f", is {truth}"
        caption = f"{prediction.label} ({prediction.probability:.0%}){verdict}"
        shown.append((blocks(data.val.image(index), ascii_only=ascii_only), caption))
    rows = [side_by_side(shown[first : first + _ACROSS]) for first in range(0, _SHOWN, _ACROSS)]
    return "\n\n".join(rows) + "\n"


def _next(run: Path, model_file: Path, out: Path) -> list[list[str]]:
    model = str(model_file)
    return [
        ["predict", model, str(out / "digits")],
        ["info", model],
        ["eval", model],
        ["fold", str(run / "best.pt"), "--out", str(out / "best.safetensors")],
        ["train", "--data", "digits", "--model", "diracnet-52-0.5"],
    ]


def _program() -> str:
    """The command that runs this installation."""
    beside_python = Path(sys.executable).parent / "diracnets"
    found = shutil.which("diracnets")
    if found and Path(found) == beside_python:
        return "diracnets"
    if beside_python.exists():
        here = Path.cwd()
        path = beside_python.relative_to(here) if beside_python.is_relative_to(here) else beside_python
        return shlex.quote(str(path))
    return f"{shlex.quote(sys.executable)} -m diracnets"
