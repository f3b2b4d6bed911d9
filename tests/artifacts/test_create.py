"""`create_model(..., pretrained=...)`: trained weights in a network that is as any other."""

import dataclasses
import json

import pytest
import torch

import diracnets
from diracnets import Init
from diracnets.artifacts import pretrained
from diracnets.artifacts.card import ModelCard, TrainedOn
from diracnets.artifacts.pretrained import find_weights
from diracnets.download import hash_of
from diracnets.errors import UsageError

NAME, DIGITS = "diracnet-28-0.5", "diracnet-28-0.5-digits"


@pytest.mark.parametrize("which", [{"pretrained": True}, {"pretrained": DIGITS, "num_classes": 10, "in_channels": 1}])
def test_trained_weights_are_there_and_can_be_trained_on(which):
    net = diracnets.create_model(NAME, **which)
    assert net.training
    images, labels, _ = next(diracnets.load_data("digits").val.batches(100))
    assert (net.eval()(images).argmax(1) == labels).float().mean() > 0.95
    assert torch.equal(net(images), diracnets.load(DIGITS, folded=False)(images))
    net.train()(images).square().mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    twin = diracnets.create_model(**net.config)
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.eval()(images), net.eval()(images))


def test_other_sizes_dtypes_and_no_classifier():
    net = diracnets.create_model(NAME, pretrained=True, image_size=(16, 12), dtype=torch.float64)
    assert net.input_size == net.card.input_size == (1, 16, 12)
    assert net(torch.randn(2, 1, 16, 12, dtype=torch.float64)).shape == (2, 10)
    features = diracnets.create_model(NAME, pretrained=True, num_classes=0)
    assert features(torch.randn(2, 1, 8, 8)).shape == (2, features.num_features)
    assert features.card.classes == ()


def test_folded_weights_become_a_network(tmp_path, monkeypatch):
    net = diracnets.create_model("diracnet-10-0.25", num_classes=3).eval()
    chain = diracnets.fold(net)
    card = ModelCard((3, 32, 32), (0.5,) * 3, (0.2,) * 3, architecture=net.config, data=TrainedOn("digits"))
    diracnets.save(chain, tmp_path / "x.safetensors", card=card)
    declared = dataclasses.replace(
        find_weights(DIGITS),
        name="x",
        card=card,
        folded=True,
        sha256=hash_of(tmp_path / "x.safetensors", "sha256"),
    )
    (tmp_path / "x.json").write_text(json.dumps(declared.to_data()))
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    x = torch.randn(2, 3, 32, 32)
    made = diracnets.create_model("diracnet-10-0.25", pretrained=True).eval()
    torch.testing.assert_close(made(x), chain(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"name": "diracnet-10-1", "pretrained": True}, "no weights come with diracnet-10-1"),
        ({"name": NAME, "pretrained": "mine"}, f"no weights of {NAME} are called 'mine'"),
        ({"name": NAME, "pretrained": True, "width": 2.0}, "have width 1.0, not 2.0"),
        ({"name": NAME, "pretrained": True, "image_size": 4}, "too small"),
        (
            {"name": NAME, "pretrained": True, "init": "kaiming"},
            "init is 'kaiming', but trained weights are not initialized",
        ),
        ({"name": NAME, "pretrained": True, "init": Init(bias=0.0)}, "leave init out"),
        ({"name": "diracnet-29-1", "pretrained": True}, "nearest is diracnet-28-1"),
        ({"name": NAME, "pretrained": True, "num_classes": "4"}, "num_classes is '4'"),
        ({"name": NAME, "in_channels": 1.0}, r"in_channels is 1\.0; it must be a whole number"),
        ({"name": NAME, "in_chans": 1}, "no argument in_chans: it is called in_channels"),
        ({"name": NAME, "global_pool": "avg"}, "num_classes=0 gives pooled features"),
        ({"name": NAME, "num_class": 4}, "did you mean num_classes"),
        (
            {"name": DIGITS, "pretrained": True},
            f"the network is {NAME}, and its weights are loaded by pretrained='{DIGITS}'",
        ),
        ({"name": f"{NAME}.digits"}, f"the network is {NAME}"),
    ],
)
def test_what_does_not_fit_the_weights_is_refused(arguments, said):
    with pytest.raises(UsageError, match=said):
        diracnets.create_model(**arguments)


@pytest.mark.filterwarnings("ignore:.*parts of init now:DeprecationWarning")
def test_an_initialization_of_trained_weights_is_refused_by_the_names_that_were_given():
    with pytest.raises(UsageError, match=r"alpha is 0\.5, beta is 0\.1, but .* leave alpha and beta out"):
        diracnets.create_model(NAME, pretrained=True, alpha=0.5, beta=0.1)


def test_other_classes_and_channels_are_renewed_adapted_and_said(caplog):
    grey = torch.rand(2, 1, 8, 8)
    whole = diracnets.create_model(NAME, pretrained=True).eval()
    net = diracnets.create_model(NAME, pretrained=True, num_classes=4, in_channels=3).eval()
    assert caplog.messages == [
        f"{DIGITS}: the first convolution is adapted from 1 to 3 channels; the classifier is a new one, for 4 classes"
    ]
    assert net.card.provenance["renewed"] == caplog.messages[0].removeprefix(f"{DIGITS}: ").split("; ")
    assert (net.card.input_size, net.num_classes, net.card.classes) == ((3, 8, 8), 4, ())
    assert net.card.mean == whole.card.mean * 3
    assert "accuracy" not in net.card.provenance
    torch.testing.assert_close(net.forward_features(grey.repeat(1, 3, 1, 1)), whole.forward_features(grey))

    colour = diracnets.create_model("diracnet-28-1", pretrained="diracnet-28-1-cifar10").eval()
    summed = diracnets.create_model("diracnet-28-1", pretrained="diracnet-28-1-cifar10", in_channels=1).eval()
    image = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(summed(image), colour(image.repeat(1, 3, 1, 1)), rtol=1e-3, atol=1e-3)
    assert summed.card.classes == colour.card.classes
    assert summed.card.mean == pytest.approx([sum(colour.card.mean) / 3])
    twin = diracnets.create_model(**summed.config)
    twin.load_state_dict(summed.state_dict())
