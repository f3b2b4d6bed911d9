"""A teacher: a trained network whose answers a run learns from, besides the labels (knowledge distillation)."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diracnets.artifacts.card import ModelCard, card_of
from diracnets.artifacts.load import is_weights, load_as_stored
from diracnets.artifacts.network_file import network_file
from diracnets.artifacts.program import load_program
from diracnets.artifacts.run_record import RunRecord
from diracnets.data.images import ImageData
from diracnets.errors import UsageError, first_line, some_of
from diracnets.models.network import Network
from diracnets.training.logits import check_answers, multiply_adds
from diracnets.training.settings import OptimizationSettings

INHERITED = " filters of "  # in the record of a run that began with its teacher's
TEACHER_SETTINGS = ("teacher_weight", "temperature")  # of a recipe: they mean nothing without a teacher


class Teacher(nn.Module):
    """A trained network that answers to the images of a run.

    Args:
        net: any module that takes normalized images [batch, channels, height, width] and gives logits
            [batch, classes]. It is put in evaluation mode, and never trained.
        data: the images of the run.
        name: what to call it to a user.
        where: the name or absolute path that it can be loaded from again, if there is one.

    A network that has a model card says what it was trained on: images get its normalization and its size, and its
    classes are brought into the order of the run's; it may know more of them. Of any other module it is assumed that it
    takes the run's images as they are and has the run's classes in their order. Images get its dtype.

    Raises:
        UsageError: it has other classes or channels than the run's images, does not take them, or does not give one
            finite number for each class, always the same ones for an image, as a softmax or training mode prevent.

    >>> from diracnets import load_data
    >>> data = load_data("digits")
    >>> teacher = Teacher(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), data, "a linear layer")
    >>> teacher(torch.zeros(3, 1, 8, 8)).shape
    torch.Size([3, 10])
    """

    scale: Tensor | None
    shift: Tensor | None
    order: Tensor | None

    def __init__(self, net: nn.Module, data: ImageData, name: str, where: str | None = None) -> None:
        super().__init__()
        self.training = False
        self.name, self.where = name, where
        card = card_of(net)
        self.card = card
        self.net = net
        with suppress(NotImplementedError):  # of an exported program, whose mode was decided when it was exported
            net.eval()
        self._size = None if card is None or card.input_size == data.input_size else card.input_size[1:]
        scale, shift = _renormalization(card, data)
        order = None if card is None else _order(card, data, name)
        tensors = [each for each in (*net.parameters(), *net.buffers()) if each.is_floating_point()]
        dtypes = {each.dtype for each in tensors}
        self._dtype = dtypes.pop() if len(dtypes) == 1 else torch.float32
        place = tensors[0].device if tensors else torch.device("cpu")
        for key, value in (("scale", scale), ("shift", shift), ("order", order)):
            self.register_buffer(key, None if value is None else value.to(place), persistent=False)
        known = len(data.classes) if card is None or not card.classes else len(card.classes)
        check_answers(self._answers, data, known, f"the teacher {name}", place, self._dtype)

    def train(self, mode: bool = True) -> Teacher:
        """A teacher stays in evaluation mode."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The teacher's logits.

        Args:
            images: [batch, channels, height, width], normalized as the run's are.

        Returns:
            [batch, classes], in the order of the run's classes.
        """
        logits = self._answers(images)
        return logits if self.order is None else logits.index_select(1, self.order)

    @torch.no_grad()
    def _answers(self, images: Tensor) -> Tensor:
        """What the module itself gives for images of the run."""
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        if self._size is not None:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        answers = self.net(images if images.dtype == self._dtype else images.to(self._dtype))
        half = isinstance(answers, Tensor) and answers.is_floating_point() and answers.dtype != images.dtype
        return answers.to(images.dtype) if half else answers  # type: ignore[no-any-return]

    def summary(self, net: nn.Module, data: ImageData) -> list[str]:
        """What to say of it before a run begins, and what it costs.

        Args:
            net: the network that learns from it.
            data: the images of the run.
        """
        count = sum(parameter.numel() for parameter in self.net.parameters())
        lines = [f"teacher: {self.name}{f', {count:,} parameters' if count else ''}"]
        if self.card is None:
            lines.append(
                "  it has no model card: its classes, their order and its normalization are taken to be those of the "
                f"images (mean {_numbers(data.mean)}, std {_numbers(data.std)})"
            )
        elif self.order is not None and len(self.order) < len(self.card.classes):
            lines.append(
                f"  of its {len(self.card.classes):,} classes it is asked for the {len(self.order)} of the run"
            )
        if self._size is not None:
            lines.append(f"  images are scaled to {self._size[0]}x{self._size[1]} for it")
        asked, own = multiply_adds(self, data.input_size), multiply_adds(net, data.input_size)
        more = f": a step computes {1 + asked / (3 * own):.1f} times as much" if asked and own else ""
        return [*lines, f"  it answers every image of every step{more}, and evaluations cost nothing more"]

    def fingerprint(self) -> str:
        """A hash of its weights: two teachers of one fingerprint give the same answers, if they are of one kind."""
        digest = hashlib.blake2b(digest_size=16)
        for name, tensor in self.net.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} ".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def pass_on(self, net: Network) -> int:
        """Let a fresh network begin with this teacher's weights where the shapes allow.

        The stem's convolution, the filters of the blocks and the classifier are taken, those of convolutions one by one
        in their order: the teacher's next filters of the same shape. Filters keep the norms that they were drawn with,
        which decide how far a step turns them.

        Args:
            net: a fresh network; it is changed.

        Returns:
            How many of the network's convolutions and linear layers have weights of the teacher: none of a program's.

        >>> from diracnets import load_data
        >>> from diracnets.models.build import build_model
        >>> sizes = {"num_classes": 10, "in_channels": 1, "image_size": (8, 8)}
        >>> teacher = Teacher(build_model("wrn-10-0.25", **sizes), load_data("digits"), "wrn-10-0.25")
        >>> teacher.pass_on(build_model("diracnet-10-0.25", **sizes))
        8
        """
        count = 0
        theirs = [module.weight for module in self.net.modules() if isinstance(module, nn.Conv2d)]
        for module in net.modules():
            if not isinstance(module, nn.Conv2d):
                continue
            place = next((at for at, weight in enumerate(theirs) if weight.shape == module.weight.shape), None)
            if place is None:
                continue
            filters = theirs[place].detach().to(module.weight).flatten(1)
            norms = module.weight.flatten(1).norm(dim=1, keepdim=True)
            scaled = filters / filters.norm(dim=1, keepdim=True).clamp_min(1e-12) * norms
            module.weight.copy_(scaled.view_as(module.weight))
            theirs = theirs[place + 1 :]
            count += 1
        last = [module for module in self.net.modules() if isinstance(module, nn.Linear)]
        order = torch.arange(net.num_classes) if self.order is None else self.order.cpu()
        if (
            last
            and isinstance(net.fc, nn.Linear)
            and last[-1].in_features == net.fc.in_features
            and last[-1].out_features > int(order.max())
        ):
            net.fc.weight.copy_(last[-1].weight[order])
            if last[-1].bias is not None:
                net.fc.bias.copy_(last[-1].bias[order])
            count += 1
        return count


def load_teacher(teacher: nn.Module | str | Path, data: ImageData, *, trusted: bool = False) -> Teacher:
    """The teacher of a run.

    Args:
        teacher: any module, which is copied; the name of trained weights; a run folder, checkpoint or model file; a
            TorchScript file; or an exported program (.pt2) whose batch is dynamic.
        data: the images of the run.
        trusted: a TorchScript file or exported program may run code of its author, see `load_program`.

    Raises:
        FileError: there is no such file, or it holds no network.
        UsageError: see `Teacher` and `load_program`.
    """
    if isinstance(teacher, nn.Module):
        try:
            copied = copy.deepcopy(teacher)
        except Exception as error:  # whatever a part of it raises
            raise UsageError(f"the teacher cannot be copied: {first_line(error)}") from error
        return Teacher(copied, data, teacher_name(teacher))
    if not isinstance(teacher, str | Path):
        raise UsageError(
            f"a teacher is a module, or the name or path of one, not a {type(teacher).__name__}"
            + ("; load a state dict into its module" if isinstance(teacher, dict) else "")
        )
    path = network_file(teacher)
    if is_weights(path):
        return Teacher(load_as_stored(path), data, str(path), str(path))
    program = load_program(path, trusted=trusted)
    net = load_as_stored(path) if program is None else program
    return Teacher(net, data, str(teacher), str(path.absolute()))


def check_teacher(
    teacher: Teacher | None, optimization: OptimizationSettings, record: RunRecord | None, *, inherit: bool
) -> None:
    """Refuse settings that mean nothing without a teacher, and to resume a run with another one than before.

    Args:
        teacher: of the run, if it has one.
        optimization: of its recipe.
        record: of the run that is resumed, if it is.
        inherit: whether to begin with the teacher's filters.

    Raises:
        UsageError: the message names what does not fit.
    """
    if record is not None and record.teacher_fingerprint is not None:
        if teacher is None:
            raise UsageError("the run learns from a module of its own that no file holds: give that teacher again")
        if teacher.fingerprint() != record.teacher_fingerprint:
            raise UsageError(f"the run began with another teacher than {teacher.name}, or its weights have changed")
    elif record is not None and teacher is not None:
        raise UsageError(f"the run began without a teacher: resume it without {teacher.name}")
    if teacher is None:
        asked = [name for name in TEACHER_SETTINGS if getattr(optimization, name) != _default(name)]
        if asked or inherit:
            raise UsageError(f"{asked[0] if asked else 'inherit'} means something only with a teacher: give one")


def _default(name: str) -> object:
    return getattr(OptimizationSettings, name)


def teacher_name(teacher: nn.Module | str | Path) -> str:
    """What a run's files call its teacher.

    >>> teacher_name(nn.Identity()), teacher_name("runs/wrn")
    ('Identity', 'runs/wrn')
    """
    if not isinstance(teacher, nn.Module):
        return str(teacher)
    card = card_of(teacher)
    known = card is not None and card.architecture is not None
    return str(card.architecture["name"]) if known else type(teacher).__name__  # type: ignore[union-attr, index]


def distillation(logits: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """How far the answers of a student are from those of its teacher: the mean over the batch.

    The Kullback-Leibler divergence of the softened probabilities, times the squared temperature, so that its gradient
    keeps its size.

    Args:
        logits: the student's, [batch, classes].
        targets: the teacher's, [batch, classes].
        temperature: what both are divided by before the softmax.

    Source: Hinton, Vinyals & Dean 2015, "Distilling the Knowledge in a Neural Network".

    >>> logits = torch.tensor([[1.0, 2.0]])
    >>> float(distillation(logits, logits + 1, temperature=4.0)) < 1e-6
    True
    """
    student = F.log_softmax(logits.float() / temperature, dim=1)
    teacher = F.log_softmax(targets.float() / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True) * temperature**2


def _order(card: ModelCard, data: ImageData, name: str) -> Tensor | None:
    """Where the run's classes stand among the teacher's, None where all stand in their places."""
    if card.input_size[0] != data.input_size[0] or len(card.input_size) != 3:
        raise UsageError(
            f"the teacher {name} takes images of {card.input_size[0]} channels, but those of {data.name} have "
            f"{data.input_size[0]}"
        )
    if not card.classes or card.classes == data.classes:
        return None
    if unknown := [each for each in data.classes if each not in card.classes]:
        raise UsageError(
            f"the teacher {name} knows other classes ({some_of(card.classes)}) than {data.name} has, and not "
            f"{some_of(unknown)}: train it on these images first"
        )
    return torch.tensor([card.classes.index(each) for each in data.classes])


def _renormalization(card: ModelCard | None, data: ImageData) -> tuple[Tensor | None, Tensor | None]:
    """What brings images from the run's normalization to the teacher's: a scale and a shift, [1, channels, 1, 1]."""
    if card is None or (tuple(card.mean), tuple(card.std)) == (tuple(data.mean), tuple(data.std)):
        return None, None
    mean, std, own_mean, own_std = (torch.tensor(each).double() for each in (data.mean, data.std, card.mean, card.std))
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.4g}" for value in values)
