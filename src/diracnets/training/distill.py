"""From a trained network with branches to a chain: train under it, fold, and compare the three."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from torch import nn

from diracnets.artifacts.card import card_of
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.data.items import MapStyle
from diracnets.data.load import load_data
from diracnets.errors import UsageError, some_of
from diracnets.evaluation.metrics import evaluate
from diracnets.files import written_whole
from diracnets.models.build import on_meta
from diracnets.runtime.device import choose_device
from diracnets.training.finish import Trained
from diracnets.training.folder import RunFolder
from diracnets.training.loop import train
from diracnets.training.recipe import Recipe
from diracnets.training.safeguards import Safeguards
from diracnets.training.settings import OptimizationSettings
from diracnets.training.teacher import INHERITED, TEACHER_SETTINGS, Teacher, load_teacher

WITH, WITHOUT = "with-teacher", "without-teacher"  # the run folders
RESULT = "distill.json"
_GUESSING = 1.5  # up to how many times the accuracy of guessing a teacher is taken for untrained


@dataclass(frozen=True)
class Student:
    """A line of the comparison.

    Args:
        what: the teacher, the chain with teacher, or the chain without.
        parameters: numbers in the network, of a chain after folding.
        accuracy: fraction of the validation images that it gets right.
        test_accuracy: of the test images, where the validation images were held out of the training images.
        fold_difference: the largest difference between the network and its chain in float64, relative to the largest
            output.
        model_file: the chain.
    """

    what: str
    parameters: int
    accuracy: float
    test_accuracy: float | None = None
    fold_difference: float | None = None
    model_file: Path | None = None


def distill(
    recipe: Recipe,
    teacher: nn.Module | str | Path,
    *,
    run: str | Path,
    data: ImageData | str | MapStyle | tuple[MapStyle, MapStyle] | None = None,
    data_dir: str | Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    trust_teacher: bool = False,
    inherit: bool = False,
    start: nn.Module | str | Path | None = None,
    safeguards: Safeguards | None = None,
    compare: bool = True,
    resume: bool = False,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[Student]:
    """Train the recipe's chain under a teacher, fold it, and put teacher, chain and chain without teacher in a row.

    Args:
        recipe: how to train; its network must be a chain.
        teacher: what `train` takes as a teacher.
        run: a folder; it gets recipe.toml, the two training runs as `with-teacher` and `without-teacher`, and in the
            end distill.json, the lines.
        data: what `load_data` makes or takes; by default what the recipe names.
        data_dir: where the recipe's images are.
        device, workers, trust_teacher, quiet: see `train`.
        inherit: begin with the teacher's filters where the shapes allow.
        start, safeguards: of both training runs, see `train`.
        compare: train the chain without the teacher too, by the same recipe, which takes about as long again.
        resume: go on with the training runs that the folder holds; those that are finished are not repeated.
        say: told what begins.

    Returns:
        The teacher's line, the chain's, and that of the chain without teacher.

    Raises:
        UsageError: the recipe's network has branches; a teacher that does not suit the images; and what `train` raises.
    """
    place = choose_device(device)
    begun = [resume and RunFolder(Path(run) / name).checkpoints.exist() for name in (WITH, WITHOUT)]
    if begun[0]:
        record = RunRecord.read(Path(run) / WITH)
        data_dir = record.data_dir if data_dir is None else data_dir
        started = None if record.start is None or INHERITED in record.start else record.start
        if compare and not begun[1] and start is None and started is not None:
            raise UsageError(f"the chain with teacher began from {started}: give it again (--from) for the one without")
    if not isinstance(data, ImageData):
        data = load_data(
            recipe.data.name if data is None else data,
            data_dir=data_dir,
            image_size=recipe.data.image_size,
            device=place,
            workers=workers,
            skip_unreadable=recipe.data.skip_unreadable,
        )
    if not on_meta({"name": recipe.model.name, "width": recipe.model.width}).is_chain:
        raise UsageError(f"{recipe.model.name} has branches: distill makes a chain, such as diracnet-28-1")
    guide = load_teacher(teacher, data, trusted=trust_teacher).to(place)
    names = [WITH, WITHOUT] if compare else [WITH]
    if not resume:
        for name in names:
            RunFolder(Path(run) / name).check_unused()
    first = _answers_of(guide, recipe, data)
    say(f"{first.what}: {first.accuracy:.2%} of the images to validate on")
    if first.accuracy <= _GUESSING / len(data.classes):
        say(
            f"  that is hardly more than guessing ({1 / len(data.classes):.0%}): is it trained, are its classes in the "
            f"order {some_of(data.classes)}, and are its images normalized as here?"
        )
    say(f"{recipe.model.name} is trained {'twice, with it and without' if compare else 'with it'}")
    if not resume:
        recipe.save(Path(run) / "recipe.toml")

    def trained(name: str, settings: Recipe, teacher: nn.Module | str | Path | None, inherit: bool) -> Trained:
        folder = Path(run) / name
        begun = resume and RunFolder(folder).checkpoints.exist()
        say(f"{name.replace('-', ' ')}: {folder}")
        return train(
            settings,
            run=folder,
            data=data,
            data_dir=data_dir,
            device=device,
            workers=workers,
            resume=begun,
            teacher=teacher,
            trust_teacher=trust_teacher,
            inherit=inherit and not begun,
            start=None if begun else start,
            safeguards=safeguards,
            quiet=quiet,
        )

    students = [_student("chain with teacher", trained(WITH, recipe, teacher, inherit))]
    if compare:
        usual = {name: getattr(OptimizationSettings, name) for name in TEACHER_SETTINGS}
        alone = trained(WITHOUT, recipe.replaced(**usual), None, False)
        students.append(_student("chain without teacher", alone))
    lines = [first, *students]
    with written_whole(Path(run) / RESULT) as part:
        rows = [{**asdict(line), "model_file": line.model_file and str(line.model_file)} for line in lines]
        part.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    return lines


def _student(what: str, trained: Trained) -> Student:
    chain, last = trained.chain, trained.history[-1]
    if chain is None or trained.model_file is None:
        raise AssertionError(f"the network of {trained.run} is no chain")
    card = card_of(chain)
    return Student(
        what,
        parameters=sum(parameter.numel() for parameter in chain.parameters()),
        accuracy=trained.accuracy,
        test_accuracy=last.get("test_accuracy"),
        fold_difference=None if card is None else card.fold.get("max_rel_float64"),
        model_file=trained.model_file,
    )


def _answers_of(teacher: Teacher, recipe: Recipe, data: ImageData) -> Student:
    selecting = data if recipe.data.select_on is None else data.selecting_on(recipe.data.select_on)
    return Student(
        f"teacher ({teacher.name})",
        parameters=sum(parameter.numel() for parameter in teacher.parameters()),
        accuracy=evaluate(teacher, selecting.val).top1,
        test_accuracy=None if selecting.test is None else evaluate(teacher, selecting.test).top1,
    )
