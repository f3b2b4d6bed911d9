"""`diracnets study`: a question of the paper, answered by one command."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from diracnets.studies.options import Options

Say = Callable[[str], None]
Data = Literal["cifar10", "cifar100", "digits"]
DataDir = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Out = Annotated[Path, arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class Cifar(Options):
    """How large is the error of plain chains on CIFAR-10 and CIFAR-100, next to residual networks and the published?

    The rows of the paper's table by its recipe, and networks of 28 layers and width 1 also by a short one, with which
    the plain network is also trained from its usual initialization, and from the very filters of the Dirac one.
    One learning rate need not suit all: --rates gives each row the best of several."""

    recipe: Annotated[tuple[str, ...], arg(metavar="NAME|FILE.toml")] = ()
    """Train every row by these recipes instead, such as best-cifar."""

    def run(self, say: Say) -> None:
        """Answer the question as far as the budget goes."""
        from diracnets.studies.cifar import cifar_study
        from diracnets.studies.conduct import conduct

        conduct(cifar_study(self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class Depth(Options):
    """How does accuracy change from 16 to 1000 layers, for plain, Dirac, residual and RepVGG networks?

    All networks have the same width, data and recipe, and their gradients are clipped alike. The plain network has four
    initializations: the paper's, the usual one, one with the deep initialization's bias of 1, and this with the very
    filters of the Dirac network, so that it has every advantage but the parameterization; with --rates it also has the
    learning rate that suits it best, as all others have."""

    depths: tuple[int, ...] = (16, 28, 52, 100, 196, 400, 1000)
    """Numbers of layers, each 6n + 4."""
    width: float = 0.5
    """Of all networks; 1 has 16, 32 and 64 channels."""
    data: Data = "cifar10"
    """What to train on."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = None
    """The recipe of all rows; by default deep-cifar, and demo for the digits."""

    def run(self, say: Say) -> None:
        """Answer the question as far as the budget goes."""
        from diracnets.studies.conduct import conduct
        from diracnets.studies.depth import depth_study

        conduct(depth_study(self.depths, self.width, self.data, self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class Init(Options):
    """Which initializations work? Accuracy and divergence against the scale of the filters, alpha and beta.

    What the paper says of its parameterization, that it mostly eliminates the need of careful initialization, for plain
    and residual networks with it and without it: those without are initialized to the filters that the scales and W
    would make. No gradient is clipped, which would hide a run that diverges."""

    depth: int = 28
    """Layers of all networks, 6n + 4."""
    width: float = 0.5
    """Of all networks; 1 has 16, 32 and 64 channels."""
    data: Data = "cifar10"
    """What to train on."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = None
    """The recipe of all rows; by default deep-cifar, and demo for the digits."""

    def run(self, say: Say) -> None:
        """Answer the question as far as the budget goes."""
        from diracnets.studies.conduct import conduct
        from diracnets.studies.init import init_study

        conduct(init_study(self.depth, self.width, self.data, self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """What of the signal reaches the last layer before any training, with the paper's and the deep initialization?"""

    depths: tuple[int, ...] = (28, 52, 100, 196, 400, 1000)
    """Numbers of layers, each 6n + 4."""
    width: float = 1.0
    """Of all networks; 1 has 16, 32 and 64 channels."""
    families: tuple[Literal["diracnet", "plain"], ...] = ("diracnet", "plain")
    """Which networks."""
    inits: Annotated[tuple[Literal["paper", "deep"], ...], arg(aliases=["--starts"])] = ("paper", "deep")
    """Which initializations of each."""
    data: Data = "cifar10"
    """Whose training images are sent through."""
    data_dir: DataDir = None
    """Where CIFAR is, or is downloaded to."""
    images: int = 64
    """How many."""
    seed: int = 0
    """Of the networks' random weights."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    out: Out = Path("results")
    """Where the table, the figure and all numbers go."""

    def run(self, say: Say) -> None:
        """Measure each network, and write signal.json, signal.md and signal.png."""
        from diracnets.studies.signal import measure_signal

        measure_signal(
            self.depths,
            self.width,
            self.families,
            self.inits,
            data=self.data,
            data_dir=self.data_dir,
            images=self.images,
            seed=self.seed,
            device=self.device,
            out=self.out,
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class Lens:
    """What has each layer of one network become: identity, signal, gradient, and alpha and beta by epoch?"""

    net: Positional[str]
    """A run's folder, a model file or checkpoint, the name of trained weights, or that of a network, fresh."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100 or folder; by default what the network was trained on, cifar10 for a fresh one."""
    data_dir: DataDir = None
    """Where the images are."""
    images: int = 64
    """Training images to send through, unchanged."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    out: Out = Path("results")
    """Where lens.json, lens.md and lens.png go."""

    def run(self, say: Say) -> None:
        """Measure, and write lens.json, lens.md and lens.png."""
        from diracnets.analysis.lens import look_into

        look_into(
            self.net,
            data=self.data,
            data_dir=self.data_dir,
            images=self.images,
            device=self.device,
            out=self.out,
            say=say,
        )


@dataclass(frozen=True, kw_only=True)
class Prune:
    """How many layers of a trained chain are needed, when those that became almost the identity are taken out?"""

    net: Positional[str]
    """A model file, a checkpoint or a run's folder (which is folded first), or the name of trained weights."""
    most: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Take out at most so many; by default all that can be."""
    write: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the shortest chain that loses no more than --lose into this model file."""
    lose: float = 0.01
    """How much accuracy on the training images of --choose that chain may lose, 0 to 1."""
    choose: int = 1000
    """Training images, evenly of all classes, by whose labels it is chosen how many layers can go."""
    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100 or folder; by default what the network was trained on."""
    data_dir: DataDir = None
    """Where the images are."""
    images: int = 512
    """Training images on which the layers are measured; their labels are not used."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best that there is."""
    out: Out = Path("results")
    """Where prune.json, prune.md and prune.png go."""

    def run(self, say: Say) -> None:
        """Take out layers, evaluate each chain, choose one, and write prune.json, prune.md and prune.png."""
        from diracnets.analysis.prune import prune

        prune(
            self.net,
            most=self.most,
            lose=self.lose,
            choose=self.choose,
            write=self.write,
            data=self.data,
            data_dir=self.data_dir,
            images=self.images,
            device=self.device,
            out=self.out,
            say=say,
        )


@dataclass(frozen=True)
class Study:
    """Answer a question of the paper: a table, a figure and all numbers, in results/.

    A study that was stopped goes on where it was when the same command is given again."""

    study: Annotated[
        Annotated[Cifar, subcommand("cifar")]
        | Annotated[Depth, subcommand("depth")]
        | Annotated[Init, subcommand("init")]
        | Annotated[Signal, subcommand("signal")]
        | Annotated[Lens, subcommand("lens")]
        | Annotated[Prune, subcommand("prune")],
        arg(name=""),
    ]

    def execute(self) -> None:
        """Answer it, and say where the answer is."""
        self.study.run(lambda text: print(text, flush=True))
