"""The options of every study that is a grid of training runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, arg

from diracnets.errors import UsageError
from diracnets.studies.grid import Budget
from diracnets.training.recipe import Recipe

SELECT_ON = {"cifar10": 5000, "cifar100": 5000, "digits": 300}  # training images held out to choose learning rates by


@dataclass(frozen=True, kw_only=True)
class Options:
    """Which rows of a study are trained, how long, and where."""

    rows: tuple[str, ...] = ("*",)
    """Train only rows whose names match one of these patterns, such as '*-28-1-*'; --plan lists the names."""
    plan: FlagCreatePairsOff[bool] = False
    """Print what is done and what would be trained, and train nothing."""
    add: Annotated[tuple[Path, ...], arg(metavar="FILE.jsonl", help_behavior_hint="")] = ()
    """Add the results of these files and train nothing: results of the same study from other machines (FILE.jsonl), or
    from before version 0.2 (FILE.json). Only --out can be combined with it."""
    rates: Annotated[tuple[float, ...], arg(metavar="LR [LR ...]", help_behavior_hint="")] = ()
    """Train every row at each of these learning rates (the recipe's lr, or with Muon its muon_lr), and report the
    best. By default only at the recipe's learning rate."""
    select_on: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Hold out this many training images in every run, and choose learning rates on them, so that the test images play
    no part in the choice. 0: choose on the test images. By default 5,000 (300 for the digits) if there are several
    --rates, otherwise 0."""
    budget: Budget = field(default_factory=Budget)
    """How much is trained. The table states what was scaled down."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """The folder of CIFAR, which is downloaded to it if missing."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""
    jobs: int = 1
    """Number of training runs at the same time; they share the processor cores."""
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"] | None, arg(help_behavior_hint="")] = None
    """Precision of all runs. By default that of the recipes, most of which let each run choose the fastest: set one to
    make all rows alike."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile all networks with torch.compile."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Folder for the table, the figure and the results."""
    work: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/studies")
    """Folder for the run folders."""

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError(f"jobs is {self.jobs}, but must be at least 1")
        if self.select_on is not None and self.select_on < 0:
            raise UsageError(f"select_on is {self.select_on}, but must be at least 0")

    def applied(self, recipe: Recipe) -> Recipe:
        """A row's recipe with the options that change recipes, but for the budget."""
        settings = recipe.settings()
        own = SELECT_ON[settings["data"]] if len(self.rates) > 1 else settings["select_on"]
        return recipe.replaced(
            precision=self.precision or settings["precision"],
            compile=self.compile or settings["compile"],
            select_on=own if self.select_on is None else self.select_on or None,
        )
