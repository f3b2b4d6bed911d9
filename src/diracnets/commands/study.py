"""`diracnets study`: reproduces an experiment of the paper, or looks into a trained network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg, subcommand

from diracnets.places import check_folder
from diracnets.studies.options import Options

Say = Callable[[str], None]
Data = Literal["cifar10", "cifar100", "digits"]
DataDir = Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")]
Out = Annotated[Path, arg(metavar="FOLDER")]


@dataclass(frozen=True, kw_only=True)
class Cifar(Options):
    """Test error on CIFAR-10 and CIFAR-100 of plain, Dirac and residual networks, next to the published numbers.

    It trains the rows of the paper's table by the paper's recipe. Networks of 28 layers and width 1 are also trained by
    a shorter recipe; with that one, the plain network has two more rows, for Kaiming initialization and for the same
    effective filters as the DiracNet. Use --rates to give each row the best of several learning rates."""

    recipe: Annotated[tuple[str, ...], arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = ()
    """Train every row by these recipes instead, for example best-cifar."""

    def run(self, say: Say) -> None:
        """Run the study within the budget."""
        from diracnets.studies.cifar import cifar_study
        from diracnets.studies.conduct import conduct

        conduct(cifar_study(self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class _Grid(Options):
    """What studies of networks of one width have in common."""

    width: float = 0.5
    """Width of all networks; 1 means 16, 32 and 64 channels."""
    data: Data = "cifar10"
    """Data to train on."""
    recipe: Annotated[str | None, arg(metavar="NAME|FILE.toml", help_behavior_hint="")] = None
    """The recipe of all rows; by default deep-cifar, or demo for the digits."""


@dataclass(frozen=True, kw_only=True)
class Depth(_Grid):
    """Accuracy from 16 to 1000 layers, for plain, Dirac, residual and RepVGG networks.

    All networks have the same width, data, recipe and gradient clipping. The plain network has four initializations:
    the paper's, Kaiming, Kaiming with the deep initialization's bias of 1, and the same effective filters as the
    DiracNet. The last one differs from the DiracNet in the parameterization only. Use --rates to give each row the best
    of several learning rates."""

    depths: tuple[int, ...] = (16, 28, 52, 100, 196, 400, 1000)
    """Numbers of layers, each of the form 6n + 4."""

    def run(self, say: Say) -> None:
        """Run the study within the budget."""
        from diracnets.studies.conduct import conduct
        from diracnets.studies.depth import depth_study

        conduct(depth_study(self.depths, self.width, self.data, self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class Init(_Grid):
    """Accuracy and divergence for different scales of the filters, alpha and beta at initialization.

    It tests the paper's claim that the parameterization mostly eliminates the need for careful initialization, on plain
    and residual networks. Networks without the parameterization are initialized to the same effective filters.
    Gradients are not clipped, because that would hide runs that diverge."""

    depth: int = 28
    """Number of layers of all networks, of the form 6n + 4."""

    def run(self, say: Say) -> None:
        """Run the study within the budget."""
        from diracnets.studies.conduct import conduct
        from diracnets.studies.init import init_study

        conduct(init_study(self.depth, self.width, self.data, self.recipe), self, say)


@dataclass(frozen=True, kw_only=True)
class Signal:
    """How much signal reaches the last layer of an untrained network, for the paper's and the deep initialization."""

    depths: tuple[int, ...] = (28, 52, 100, 196, 400, 1000)
    """Numbers of layers, each of the form 6n + 4."""
    width: float = 1.0
    """Width of all networks; 1 means 16, 32 and 64 channels."""
    families: tuple[Literal["diracnet", "plain"], ...] = ("diracnet", "plain")
    """Families of networks."""
    inits: Annotated[tuple[Literal["paper", "deep"], ...], arg(aliases=["--starts"])] = ("paper", "deep")
    """Initializations of each family."""
    data: Data = "cifar10"
    """Data set whose training images are used."""
    data_dir: DataDir = None
    """The folder of CIFAR, which is downloaded to it if missing."""
    images: int = 64
    """Number of images."""
    seed: int = 0
    """Random seed of the weights."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""
    out: Out = Path("results")
    """Folder for the table, the figure and the raw numbers."""

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
class _OneNetwork:
    """What looks into one network have in common."""

    data: Annotated[str | None, arg(metavar="NAME", help_behavior_hint="")] = None
    """digits, cifar10, cifar100, folder, shards or parquet; by default what the network was trained on, or cifar10."""
    data_dir: DataDir = None
    """The folder of the images, or where the shards are."""
    device: str = "auto"
    """cpu, cuda, mps, or auto for the best available."""


@dataclass(frozen=True, kw_only=True)
class Lens(_OneNetwork):
    """Look into one network, layer by layer: identity, signal and gradient, and alpha and beta by epoch."""

    net: Positional[str]
    """A run folder, a model file, a checkpoint, or the name of a trained or an untrained network."""
    images: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Number of training images to use, without augmentation; by default 64, or all if there are fewer."""
    out: Out = Path("results")
    """Folder for lens.json, lens.md and lens.png."""

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
class Prune(_OneNetwork):
    """Remove the layers of a trained chain that are closest to the identity, and measure the accuracy."""

    net: Positional[str]
    """A model file, a checkpoint or run folder (which is folded first), or the name of a trained network."""
    most: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Remove at most this many layers; by default all that can be removed."""
    write: Annotated[Path | None, arg(metavar="FILE", help_behavior_hint="")] = None
    """Write the shortest chain that loses at most --lose to this model file."""
    lose: float = 0.01
    """How much accuracy that chain may lose on the training images of --choose, 0 to 1."""
    choose: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Number of training images, the same for each class, on which that chain is chosen; by default 1000, or all."""
    images: Annotated[int | None, arg(metavar="INT", help_behavior_hint="")] = None
    """Number of training images on which the layers are measured, without their labels; by default 512, or all."""
    out: Out = Path("results")
    """Folder for prune.json, prune.md and prune.png."""

    def run(self, say: Say) -> None:
        """Remove layers, evaluate each chain, choose one, and write prune.json, prune.md and prune.png."""
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
    """Reproduce an experiment of the paper, or look into one network: writes a table, a figure and the raw numbers.

    To continue a study that was stopped, give the same command again."""

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
        """Run it, and print where the results are."""
        check_folder(self.study.out)
        self.study.run(lambda text: print(text, flush=True))
