"""A teacher: a trained network whose answers a run learns from, besides the labels (knowledge distillation)."""

from __future__ import annotations

import copy
import hashlib
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
from diracnets.training.settings import OptimizationSettings

TEACHER_SETTINGS = ("teacher_weight", "temperature")  # of a recipe: they mean nothing without a teacher
_PROBES = 2  # images that a teacher answers once, before a run that may take days


class Teacher(nn.Module):
    """A trained network that answers to the images of a run.

    Args:
        net: any module that takes normalized images [batch, channels, height, width] and gives logits
            [batch, classes]. It is put in evaluation mode, and never trained.
        data: the images of the run.
        name: what to call it to a user.
        where: the name or absolute path that it can be loaded from again, if there is one.

    A network that has a model card says what it was trained on: images get its normalization and its size, and its
    classes are brought into the order of the run's. Of any other module it is assumed that it takes the run's images as
    they are and has the run's classes in their order.

    Raises:
        UsageError: it has other classes or channels than the run's images, does not take them, or does not give one
            finite number for each class.

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
        for key, value in (("scale", scale), ("shift", shift), ("order", order)):
            self.register_buffer(key, value, persistent=False)
        self._check(data)

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
        if self.scale is not None and self.shift is not None:
            images = images * self.scale + self.shift
        if self._size is not None:
            images = F.interpolate(images, self._size, mode="bilinear", antialias=True)
        logits: Tensor = self.net(images)
        return logits if self.order is None else logits.index_select(1, self.order)

    def summary(self) -> list[str]:
        """What to say of it before a run begins."""
        count = sum(parameter.numel() for parameter in self.net.parameters())
        lines = [f"teacher: {self.name}{f', {count:,} parameters' if count else ''}"]
        if self.card is None:
            lines.append("  it has no model card: its classes and normalization are taken to be those of the images")
        if self._size is not None:
            lines.append(f"  images are scaled to {self._size[0]}x{self._size[1]} for it")
        return lines

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
        if last and isinstance(net.fc, nn.Linear) and last[-1].weight.shape == net.fc.weight.shape:
            order = torch.arange(net.num_classes) if self.order is None else self.order.cpu()
            net.fc.weight.copy_(last[-1].weight[order])
            if last[-1].bias is not None:
                net.fc.bias.copy_(last[-1].bias[order])
            count += 1
        return count

    def _check(self, data: ImageData) -> None:
        channels, height, width = data.input_size
        probe = torch.zeros(_PROBES, channels, height, width)
        try:
            logits = self(probe)
        except Exception as error:  # whatever a module of the user's raises
            raise UsageError(
                f"the teacher {self.name} does not take a batch of {_PROBES} images of "
                f"{channels}x{height}x{width}: {first_line(error)} (an exported program needs a dynamic batch)"
            ) from error
        classes = len(data.classes)
        if not isinstance(logits, Tensor) or logits.shape != (_PROBES, classes):
            found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UsageError(
                f"the teacher {self.name} gives {found} for {_PROBES} images, but {data.name} has {classes} classes: "
                f"it must give [{_PROBES}, {classes}] logits"
            )
        if not logits.isfinite().all():
            raise UsageError(f"the teacher {self.name} gives infinities or NaN")


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
    if sorted(card.classes) != sorted(data.classes):
        raise UsageError(
            f"the teacher {name} knows other classes ({some_of(card.classes)}) than {data.name} has "
            f"({some_of(data.classes)}): train it on these images first"
        )
    return torch.tensor([card.classes.index(each) for each in data.classes])


def _renormalization(card: ModelCard | None, data: ImageData) -> tuple[Tensor | None, Tensor | None]:
    """What brings images from the run's normalization to the teacher's: a scale and a shift, [1, channels, 1, 1]."""
    if card is None or (tuple(card.mean), tuple(card.std)) == (tuple(data.mean), tuple(data.std)):
        return None, None
    mean, std, own_mean, own_std = (torch.tensor(each).double() for each in (data.mean, data.std, card.mean, card.std))
    scale, shift = std / own_std, (mean - own_mean) / own_std
    return scale.float().view(1, -1, 1, 1), shift.float().view(1, -1, 1, 1)
