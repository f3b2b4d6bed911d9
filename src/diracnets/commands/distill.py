"""`diracnets distill`: a chain that learns from a trained network, folded and compared with it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro
from tyro.conf import Fixed, FlagCreatePairsOff, SuppressFixed, arg

from diracnets.commands.output import note, stdout, table
from diracnets.commands.train import Train


@dataclass(frozen=True, kw_only=True)
class Distill(Train):
    """Train a chain under a trained network, such as a residual one, fold it, and compare.

    The chain is trained twice by the same recipe, with the teacher and without it; teacher and chains are printed side
    by side, and written to distill.json. All options but --teacher and --compare are those of `diracnets train`, which
    also trains on several devices (--devices, --teacher). The teacher is evaluated first."""

    teacher: Annotated[str, arg(metavar="NAME|FILE")] = tyro.MISSING
    """The network to learn from: the name of a trained network, a run folder, checkpoint, model file, TorchScript file
    or exported program (.pt2) for the same classes."""
    compare: bool = True
    """Train the chain without the teacher too, which takes about as long again."""
    devices: Annotated[None, Fixed, SuppressFixed] = None
    restarts: Annotated[None, Fixed, SuppressFixed] = None
    shard: Annotated[bool, Fixed, SuppressFixed] = False
    inherit: FlagCreatePairsOff[bool] = False
    """Begin with the teacher's filters where the shapes allow."""
    inner = "with-teacher"
    examples = (
        "--teacher runs/wrn --model diracnet-28-1 --data cifar10",
        "--teacher runs/wrn --run-dir runs/distilled --resume",
    )

    def execute(self) -> None:
        """Train, fold, and print the comparison."""
        from diracnets.runtime.device import choose_device, keep_memory
        from diracnets.training.distill import distill
        from diracnets.training.folder import new_folder
        from diracnets.training.interruption import Interrupted

        recipe = self.kept_settings()
        if why := self.picked(recipe):
            note(why)
        if choose_device(self.device).type == "cpu":
            keep_memory()
        try:
            students = distill(
                recipe,
                self.teacher,
                run=self.run or new_folder(recipe),
                data_dir=self.data_dir,
                device=self.device,
                workers=self.workers,
                trust_teacher=self.trust_teacher,
                inherit=self.inherit,
                start=self.start,
                safeguards=self.safeguards,
                compare=self.compare,
                resume=self.resume,
                quiet=self.quiet,
                say=(lambda text: None) if self.quiet else note,
            )
        except Interrupted as error:
            raise Interrupted(
                f"{error} (or, for all of distill, the same command with --resume)", error.signal
            ) from error
        if self.quiet:
            return
        tested = any(each.test_accuracy is not None for each in students)
        columns = ["network", "accuracy", *(["on test images"] if tested else []), "parameters", "fold", "model file"]
        stdout().print(
            table(
                columns,
                [
                    [
                        each.what,
                        f"{each.accuracy:.2%}",
                        *([f"{each.test_accuracy:.2%}"] if each.test_accuracy is not None else []),
                        each.parameters,
                        "" if each.fold_difference is None else f"{each.fold_difference:.0e}",
                        str(each.model_file or ""),
                    ]
                    for each in students
                ],
            )
        )
