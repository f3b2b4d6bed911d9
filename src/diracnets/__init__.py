"""Very deep plain convolutional networks: trained with the Dirac parameterization, folded to a bare chain, deployed.

Importing this package costs nothing: torch is imported with the first name that needs it.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from diracnets._version import __version__ as __version__

_HOME = {
    "DiracConv1d": "nn.dirac",
    "DiracConv2d": "nn.dirac",
    "DiracConv3d": "nn.dirac",
    "dirac_weight": "nn.effective_weight",
    "diracify": "nn.diracify",
    "undiracify": "nn.diracify",
    "parameter_groups": "nn.dirac",
    "fold": "folding.fold",
    "FoldReport": "folding.report",
    "unbranch": "folding.unbranch",
    "UnbranchReport": "folding.unbranch",
    "unfold": "artifacts.unfold",
    "Init": "models.init",
    "create_model": "artifacts.create",
    "list_models": "models.build",
    "list_weights": "artifacts.pretrained",
    "DiracNet": "models.diracnet",
    "Network": "models.network",
    "load": "artifacts.load",
    "save": "artifacts.model_file",
    "verify": "artifacts.model_file",
    "quantize": "deploy.quantize",
    "Quantized": "deploy.quantize",
    "ModelCard": "artifacts.card",
    "describe": "evaluation.info",
    "Augmentation": "data.augmentation",
    "load_data": "data.load",
    "Recipe": "training.recipe",
    "train": "training.loop",
    "distill": "training.distill",
    "evaluate": "evaluation.metrics",
    "Evaluation": "evaluation.metrics",
    "predict": "evaluation.predict",
    "Prediction": "evaluation.predict",
    "export": "deploy.export",
    "Exported": "deploy.export",
    "parity": "deploy.parity",
    "bench": "deploy.parity",
    "DiracNetsError": "errors",
}

__all__ = [*_HOME, "__version__"]

if TYPE_CHECKING:
    from diracnets.artifacts.card import ModelCard as ModelCard
    from diracnets.artifacts.create import create_model as create_model
    from diracnets.artifacts.load import load as load
    from diracnets.artifacts.model_file import save as save
    from diracnets.artifacts.model_file import verify as verify
    from diracnets.artifacts.pretrained import list_weights as list_weights
    from diracnets.artifacts.unfold import unfold as unfold
    from diracnets.data.augmentation import Augmentation as Augmentation
    from diracnets.data.load import load_data as load_data
    from diracnets.deploy.export import Exported as Exported
    from diracnets.deploy.export import export as export
    from diracnets.deploy.parity import bench as bench
    from diracnets.deploy.parity import parity as parity
    from diracnets.deploy.quantize import Quantized as Quantized
    from diracnets.deploy.quantize import quantize as quantize
    from diracnets.errors import DiracNetsError as DiracNetsError
    from diracnets.evaluation.info import describe as describe
    from diracnets.evaluation.metrics import Evaluation as Evaluation
    from diracnets.evaluation.metrics import evaluate as evaluate
    from diracnets.evaluation.predict import Prediction as Prediction
    from diracnets.evaluation.predict import predict as predict
    from diracnets.folding.fold import fold as fold
    from diracnets.folding.report import FoldReport as FoldReport
    from diracnets.folding.unbranch import UnbranchReport as UnbranchReport
    from diracnets.folding.unbranch import unbranch as unbranch
    from diracnets.models.build import list_models as list_models
    from diracnets.models.diracnet import DiracNet as DiracNet
    from diracnets.models.init import Init as Init
    from diracnets.models.network import Network as Network
    from diracnets.nn.dirac import DiracConv1d as DiracConv1d
    from diracnets.nn.dirac import DiracConv2d as DiracConv2d
    from diracnets.nn.dirac import DiracConv3d as DiracConv3d
    from diracnets.nn.dirac import parameter_groups as parameter_groups
    from diracnets.nn.diracify import diracify as diracify
    from diracnets.nn.diracify import undiracify as undiracify
    from diracnets.nn.effective_weight import dirac_weight as dirac_weight
    from diracnets.training.distill import distill as distill
    from diracnets.training.loop import train as train
    from diracnets.training.recipe import Recipe as Recipe


_RENAMED = {"undo": "undiracify"}  # public names of before, and what they are called now


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _RENAMED:
        warnings.warn(f"diracnets.{name} is now diracnets.{_RENAMED[name]}", DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name not in _HOME:
        raise AttributeError(f"module 'diracnets' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"diracnets.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
