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
    """What of a study is trained, how much, and where."""

    rows: tuple[str, ...] = ("*",)
    """Only rows whose names match one of these patterns, such as '*-28-1-*'; --plan lists the names."""
    plan: FlagCreatePairsOff[bool] = False
    """Print what there is and what would be trained, and do nothing."""
    add: Annotated[tuple[Path, ...], arg(metavar="FILE.jsonl")] = ()
    """Add the results of the same study from these files, of other machines (FILE.jsonl) or written before version 0.2
    (FILE.json), and train nothing; of the other options, only --out goes with it."""
    rates: Annotated[tuple[float, ...], arg(metavar="LR [LR ...]", help_behavior_hint="")] = ()
    """Train every row at each of these learning rates (the recipe's lr, or with Muon its muon_lr), and report the
    best; by default at the recipe's own."""
    select_on: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Hold this many training images out of every run and choose learning rates by them, so that the test images have
    no part in the choice; 0 holds none out, and chooses on the test images. By default 5,000 (of the digits 300) if
    there are several --rates, and otherwise none."""
    budget: Budget = field(default_factory=Budget)
    """How much is trained; the table says what was scaled down."""
    data_dir: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None
    """Where CIFAR is, or is downloaded to."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    jobs: int = 1
    """Training runs at the same time; they share the processors."""
    precision: Annotated[Literal["auto", "float32", "bfloat16", "float16"] | None, arg(help_behavior_hint="")] = None
    """Arithmetic of all runs; by default as the recipes say, most of which take what each run finds fast: give one so
    that all rows are alike."""
    compile: FlagCreatePairsOff[bool] = False
    """Compile all networks with torch.compile."""
    out: Annotated[Path, arg(metavar="FOLDER")] = Path("results")
    """Where the table, the figure and all results go."""
    work: Annotated[Path, arg(metavar="FOLDER")] = Path("runs/studies")
    """Where the run folders go."""

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
