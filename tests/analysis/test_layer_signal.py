from dataclasses import asdict

import pytest
import torch
from torch import nn

from diracnets import create_model, fold
from diracnets.analysis.layer_signal import likeness, products, signal
from diracnets.errors import TrainingError, UsageError


@pytest.fixture
def images():
    return torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def labels():
    return torch.arange(16) % 10


def net_of(name, **options):
    torch.manual_seed(0)
    return create_model(name, image_size=8, **options)


def set_chain(net, *, alpha, beta, bias):
    """Scales and shifts of all blocks; the batch norms multiply by 1."""
    with torch.no_grad():
        for group in net.groups:
            for block in group:
                block.conv.alpha.fill_(alpha)
                block.conv.beta.fill_(beta)
                block.bn.weight.fill_(1.0)
                block.bn.bias.fill_(bias)
        net.stem.bn.weight.fill_(1.0)
        net.stem.bn.bias.fill_(bias)


def test_a_layer_that_is_the_identity_keeps_what_its_relu_keeps(images):
    net = net_of("diracnet-16-1").train()
    set_chain(net, alpha=1.0, beta=0.0, bias=0.0)
    layers = signal(net, images)
    for layer in layers:
        assert layer.kept == pytest.approx(layer.relu_keeps, abs=1e-5)
        assert layer.identity == 1.0
    assert layers[0].relu_keeps == pytest.approx(0.8565, abs=0.03)  # of a normal variable
    assert 0.3 < layers[0].passed < 0.7


def test_the_signal_fades_with_depth_and_a_shift_keeps_it(images):
    faded, shifted = net_of("diracnet-52-0.5").train(), net_of("diracnet-52-0.5").train()
    set_chain(faded, alpha=1.0, beta=0.1, bias=0.0)
    set_chain(shifted, alpha=1.0, beta=0.1, bias=2.0)
    of_faded, of_shifted = signal(faded, images), signal(shifted, images)
    assert of_faded[0].arrived > 0.8
    assert of_faded[0].arrived > of_faded[4].arrived > of_faded[15].arrived
    assert of_faded[15].arrived < 0.6 < 0.9 < of_shifted[15].arrived  # before the pooling of the noise
    assert of_shifted[3].passed > 0.9 > of_faded[3].passed


def test_likeness_is_that_of_the_differences_between_images():
    torch.manual_seed(0)
    x, other = torch.randn(32, 4, 3, 3), torch.randn(32, 500)
    turned = 3 * x.flatten(1) @ torch.linalg.qr(torch.randn(36, 36)).Q + torch.randn(36)
    assert float(likeness(products(x), products(turned))) == pytest.approx(1, abs=1e-4)
    assert abs(float(likeness(products(x), products(other)))) < 0.15
    noisy = x + x.std() * torch.randn(x.shape)
    assert 0.2 < float(likeness(products(x), products(noisy))) < 0.9


@pytest.mark.parametrize("name", ["diracnet-10-0.5", "plain-10-0.5"])
@pytest.mark.parametrize("training", [True, False])
def test_the_network_stays_as_it_was(name, training, images, labels):
    net = net_of(name).train(training)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    signal(net, images, labels)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert net.training == training
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_gradients_are_those_of_the_loss(images, labels):
    net = net_of("diracnet-10-0.5").eval()
    layers = signal(net, images, labels)
    loss = nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    for layer in layers:
        assert layer.filter_gradient == pytest.approx(
            float(net.get_submodule(layer.layer).conv.weight.grad.norm()), rel=1e-3
        )
    last = net.feature_maps(images)[-1].detach().requires_grad_()
    loss = nn.functional.cross_entropy(net.fc(last.relu().mean((2, 3))), labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, last)
    assert layers[-1].gradient == pytest.approx(float(gradient.flatten(1).norm(dim=1).mean()), rel=1e-3)
    assert signal(net, images)[0].gradient is None


def test_a_network_and_its_chain_give_the_same_signal(images, labels):
    net = net_of("diracnet-10-0.5").train()
    with torch.no_grad():
        for _ in range(3):
            net(images)
    net.eval()
    of_net, of_chain = signal(net, images, labels), signal(fold(net), images, labels)
    assert len(of_net) == len(of_chain) == 6
    for mine, theirs in zip(of_net, of_chain, strict=True):
        numbers = {"mean", "std", "kept", "arrived", "dimensions", "passed", "relu_keeps", "gradient"}
        mine, theirs = ({key: asdict(layer)[key] for key in numbers} for layer in (mine, theirs))
        assert mine == pytest.approx(theirs, rel=1e-3, abs=1e-4)
        assert theirs["kept"] is not None


def test_only_networks_whose_layers_are_known_are_read(images):
    with pytest.raises(UsageError, match="layers of a Flatten are not known"):
        signal(nn.Flatten(), images)


def test_too_few_images_say_nothing(images):
    with pytest.raises(UsageError, match="3 images are too few"):
        signal(net_of("diracnet-10-0.5"), images[:3])


def test_a_network_that_has_diverged_is_named(images):
    net = net_of("diracnet-10-0.5").eval()
    with torch.no_grad():
        net.groups[1][0].bn.weight.fill_(torch.inf)
    with pytest.raises(TrainingError, match=r"infinite or NaN from groups\.1\.0 on"):
        signal(net, images)


def test_gradients_that_overflow_are_no_error(images, labels):
    net = net_of("diracnet-10-0.5").train()
    with torch.no_grad():
        net.fc.weight.mul_(1e38)
    assert not signal(net, images, labels)[0].gradient < 1e30
