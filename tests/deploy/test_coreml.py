"""`pip install "diracnets[coreml]"` makes these run. The files themselves run on Apple's systems alone."""

import pytest
import torch
from torch import nn

from diracnets.artifacts.card import ModelCard
from diracnets.commands.export import Export
from diracnets.deploy import coreml
from diracnets.deploy.backend import card_in
from diracnets.deploy.export import export
from diracnets.errors import UsageError

needs_coreml = pytest.mark.skipif(bool(coreml.BACKEND.missing()), reason="coremltools is not installed")
CARD = ModelCard((3, 16, 12), mean=(0.2, 0.5, 0.7), std=(0.1, 0.3, 0.5), classes=("a", "b", "c", "d"))


def chain():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(8, 4)).eval().requires_grad_(False)


@needs_coreml
@pytest.mark.slow
@pytest.mark.parametrize("from_pixels", [False, True])
def test_a_chain_is_converted_and_says_that_it_was_not_compared(tmp_path, from_pixels):
    import coremltools

    path = tmp_path / "net.mlpackage"
    for force in (False, True):  # a package is a folder, which is replaced as a whole
        made = export(chain(), "coreml", path, from_pixels=from_pixels, card=CARD, force=force)
    assert [file.name for file in tmp_path.iterdir()] == ["net.mlpackage"]
    assert "compared    no: only Apple's systems run Core ML" in str(made)
    assert made.files[path] > 4 * sum(weight.numel() for weight in chain().parameters())
    assert card_in(coreml.BACKEND, path) == CARD
    specification = coremltools.utils.load_spec(str(path))
    (source,), (result,) = specification.description.input, specification.description.output
    assert source.type.WhichOneof("Type") == ("imageType" if from_pixels else "multiArrayType")
    assert result.name == "logits"
    (block,) = specification.mlProgram.functions["main"].block_specializations.values()
    operations = [each.type for each in block.operations]
    assert [each for each in operations if each != "const"][-6:] == [
        "conv", "relu", "max_pool", "reduce_mean", "reshape", "linear"
    ]  # fmt: skip


@needs_coreml
def test_pixels_of_several_images_are_refused(tmp_path):
    with pytest.raises(UsageError, match="one gray or RGB image at a time"):
        export(chain(), "coreml", tmp_path / "net.mlpackage", from_pixels=True, batch=2, card=CARD)
    assert list(tmp_path.iterdir()) == []


def test_a_package_cannot_be_run_and_the_list_says_so(tmp_path, capsys):
    with pytest.raises(UsageError, match=r"net.mlpackage cannot be run: only Apple's systems run Core ML"):
        coreml.BACKEND.load(tmp_path / "net.mlpackage", CARD)
    Export(list=True).execute()
    assert "but not run" in " ".join(capsys.readouterr().out.split())
