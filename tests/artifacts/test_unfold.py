"""An unfolded chain computes the same, folds back to itself, and can be trained on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import diracnets
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.unfold import unfold
from diracnets.errors import UsageError
from diracnets.nn.dirac import DiracConv2d


def trained(name, size=16, **arguments):
    """A network with random weights everywhere and warmed-up statistics."""
    net = diracnets.create_model(name, image_size=size, **arguments)
    with torch.no_grad():
        for layer in net.modules():
            if isinstance(layer, DiracConv2d):
                layer.alpha.normal_(1, 0.3)
                layer.beta.normal_(0, 0.5)
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.3, 1.2)
                layer.bias.normal_(0, 0.2)
        net.train()
        for _ in range(20):
            net(torch.randn(16, *net.input_size))
    return net.eval()


CASES = [
    ("diracnet-10-0.25", {"num_classes": 5}),
    ("diracnet-16-0.3", {"in_channels": 1, "num_classes": 3}),
    ("plain-10-0.5", {}),
    ("diracnet-18", {"width": 0.0625, "size": 32, "num_classes": 4}),
    ("plain-18", {"width": 0.0625, "size": 32, "num_classes": 4}),
    ("diracnet-sprint-0.1", {"num_classes": 4}),
    ("plain-sprint-0.1", {"num_classes": 0}),
    ("vgg-16", {"width": 0.0625, "size": 32}),
    ("dirac-vgg-19", {"width": 0.0625, "size": 32}),
]


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[name for name, _ in CASES])
def test_computes_the_same_and_folds_back(name, arguments, with_images):
    torch.manual_seed(0)
    original = trained(name, **arguments)
    chain = diracnets.fold(original)
    x = torch.randn(80, *original.input_size)
    net = unfold(chain, x if with_images else None)
    assert not net.training
    assert (type(net), net.config) == (type(original), original.config)
    with torch.inference_mode():
        wanted, found, folded = chain(x), net(x), diracnets.fold(net)(x)
    tolerance = 1e-4 * wanted.abs().max()
    assert (found - wanted).abs().max() <= tolerance
    assert (folded - wanted).abs().max() <= tolerance


def test_training_mode_starts_from_about_the_same_function():
    torch.manual_seed(0)
    chain = diracnets.fold(trained("diracnet-16-0.5"))
    images, x = torch.randn(512, 3, 16, 16), torch.randn(128, 3, 16, 16)
    wanted = chain(x)
    spread = wanted.std(0).mean()
    near = (unfold(chain, images).train()(x) - wanted).abs().mean() / spread
    far = (unfold(chain).train()(x) - wanted).abs().mean() / spread
    assert near < 0.2 < far


def test_w_starts_at_the_norm_of_a_fresh_one_and_orthogonal_to_the_identity():
    torch.manual_seed(0)
    net = unfold(diracnets.fold(trained("diracnet-10-0.5")))
    for layer in net.modules():
        if isinstance(layer, DiracConv2d):
            norms = layer.weight.flatten(1).norm(dim=1)
            assert torch.allclose(norms, torch.full_like(norms, layer.weight[0].numel() ** 0.5), rtol=1e-4)
            shared = min(layer.in_channels, layer.out_channels)
            assert torch.equal(layer.weight[:, :, 1, 1].diagonal(), torch.zeros(shared))


def test_half_precision_chain_gives_a_float32_network_with_its_facts():
    torch.manual_seed(0)
    chain = diracnets.fold(trained("diracnet-10-0.25", num_classes=2)).half()
    card = ModelCard((3, 16, 16), (0.5,) * 3, (0.5,) * 3, ("a", "b"))
    attach_card(chain, card)
    net = unfold(chain)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.float32}
    assert net.card == card
    x = torch.randn(4, 3, 16, 16)
    assert torch.allclose(net(x), chain.float()(x), atol=1e-3)


def batches(seed, steps, size=64):
    """Noise with a faint texture that is the class: stripes across, stripes down, a chequerboard, nothing."""
    rows, columns = torch.meshgrid(torch.arange(8) % 2 * 2 - 1, torch.arange(8) % 2 * 2 - 1, indexing="ij")
    textures = torch.stack([rows, columns, rows * columns, 0 * rows]).float()
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        labels = torch.randint(4, (size,), generator=generator)
        yield torch.randn(size, 1, 8, 8, generator=generator) + 0.7 * textures[labels, None], labels


def fit(net, steps, rate, seed):
    optimizer = torch.optim.SGD(diracnets.parameter_groups(net, 5e-4), lr=rate, momentum=0.9)
    net.train()
    losses = []
    for x, labels in batches(seed, steps):
        loss = F.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    net.eval()
    return losses


@torch.inference_mode()
def accuracy(net):
    right = [(net(x).argmax(1) == labels).float().mean() for x, labels in batches(99, 8)]
    return torch.stack(right).mean().item()


@pytest.fixture(scope="module")
def learnt():
    torch.manual_seed(0)
    net = diracnets.create_model("diracnet-10-0.5", num_classes=4, in_channels=1, image_size=8)
    fit(net, 80, 0.1, seed=1)
    fit(net, 40, 0.01, seed=5)
    assert accuracy(net) > 0.95
    return net


@pytest.mark.parametrize("rate", [0.01, 0.1])
def test_training_goes_on_where_it_was(learnt, rate):
    again = unfold(diracnets.fold(learnt), torch.cat([x for x, _ in batches(2, 4)]))
    assert accuracy(again) == pytest.approx(accuracy(learnt), abs=0.005)
    losses = fit(again, 50, rate, seed=3)
    assert max(losses) < 0.4  # without the images' statistics it begins at 0.7 to 1.2
    assert rate == 0.1 or accuracy(again) > accuracy(learnt) - 0.02  # at 0.1 it goes up and down, as the first time


def chain_with(change):
    chain = diracnets.fold(trained("diracnet-10-0.25"))
    layers = list(chain)
    change(layers)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    "change",
    [
        lambda layers: layers.pop(3),
        lambda layers: layers.pop(),
        lambda layers: layers.append(nn.Linear(10, 10)),
        lambda layers: layers.insert(0, nn.Identity()),
        lambda layers: layers.__setitem__(1, nn.LeakyReLU()),
        lambda layers: layers.__setitem__(2, nn.Conv2d(4, 4, 3, padding=2, dilation=2)),
        lambda layers: layers.__setitem__(2, nn.Conv2d(4, 4, 5, padding=2)),
        lambda layers: layers.__delitem__(slice(None)),
        lambda layers: layers.__delitem__(slice(1, None)),
    ],
)
def test_other_chains_are_refused(change):
    with pytest.raises(UsageError, match="cannot be turned back"):
        unfold(chain_with(change))


def test_what_is_no_chain_or_no_images_is_refused():
    net = trained("diracnet-10-0.25")
    with pytest.raises(UsageError, match="not a chain"):
        unfold(net)
    with pytest.raises(UsageError, match=r"images are \[2, 1, 8, 8\]"):
        unfold(diracnets.fold(net), torch.randn(2, 1, 8, 8))
