"""An unfolded chain computes the same, folds back to itself, and can be trained on."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import diracnets
from diracnets.artifacts.card import ModelCard, attach_card
from diracnets.artifacts.chain import write_model_file
from diracnets.artifacts.load import load
from diracnets.artifacts.unfold import unfold
from diracnets.errors import UsageError
from diracnets.models.build import list_models, on_meta
from diracnets.models.names import parse
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
    ("vgg-16", {"width": 0.0625, "size": 32, "pool": "average"}),
    ("diracnet-18", {"width": 0.0625, "size": 32, "pool": "average"}),
]


@pytest.mark.parametrize(("name", "arguments"), CASES, ids=[name for name, _ in CASES])
def test_computes_the_same_and_folds_back(name, arguments):
    torch.manual_seed(0)
    original = trained(name, **arguments)
    chain = diracnets.fold(original)
    x = torch.randn(80, *original.input_size)
    with torch.inference_mode():
        wanted = chain(x)
    tolerance = 1e-4 * wanted.abs().max()
    for images in (None, x):
        net = unfold(chain, images)
        assert not net.training
        assert (type(net), net.config) == (type(original), original.config)
        with torch.inference_mode():
            found, folded = net(x), diracnets.fold(net)(x)
        assert (found - wanted).abs().max() <= tolerance
        assert (folded - wanted).abs().max() <= tolerance


SMALL = {  # of each listed network a small one of its family, where the listed one is large
    "sprint": ("{0}-sprint-0.05", {"image_size": 16}),
    "vgg": ("{0}", {"width": 0.03}),
    "imagenet": ("{0}", {"width": 0.03, "image_size": 32}),
    "cifar": ("{0}-{1}-0.1", {"image_size": 8}),
}


def small(name):
    parsed = parse(name)
    kind = parsed.family if parsed.family in ("sprint", "vgg") else "imagenet" if parsed.imagenet else "cifar"
    pattern, arguments = SMALL[kind]
    words = name.split("-")
    whole = name if kind in ("vgg", "imagenet") else words[0]
    return pattern.format(whole, words[1]), arguments


SHORT = [name for name in list_models() if parse(name).depth <= 20]  # deeper ones repeat blocks, and take long to build
CHAINS = sorted({small(name)[0] for name in SHORT if on_meta({"name": name}).is_chain})


@pytest.mark.parametrize("name", CHAINS)
def test_every_listed_chain_is_written_read_unfolded_and_trained(name, warm, tmp_path):
    torch.manual_seed(0)
    arguments = small(name)[1]
    net = diracnets.create_model(name, **arguments)
    for _ in range(2):
        net(torch.randn(8, *net.input_size))
    net.eval()
    card = ModelCard(net.input_size, (0.5,) * 3, (0.5,) * 3, architecture=net.config)
    attach_card(net, card)
    chain = write_model_file(net, tmp_path / "model.safetensors")
    again = load(tmp_path / "model.safetensors", folded=False)
    x = torch.randn(4, *net.input_size)
    with torch.no_grad():
        torch.testing.assert_close(again(x), chain(x), rtol=1e-3, atol=1e-4 * float(chain(x).abs().max()))
    assert (type(again), again.config, again.card.architecture) == (type(net), net.config, net.config)
    again.train()(x).square().mean().backward()
    asked = {key for key, value in net.named_parameters() if value.requires_grad}
    assert {key for key, value in again.named_parameters() if value.grad is not None} == asked


@pytest.mark.parametrize("with_images", [False, True])
def test_batch_norms_that_fold_left_are_those_of_the_network(with_images):
    """Behind a max-pooling a negative scale cannot be folded: these batch norms stay in the chain."""
    torch.manual_seed(0)
    original = trained("diracnet-sprint-0.1")
    with torch.no_grad():
        for layer in original.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.weight[::2] *= -1
    chain = diracnets.fold(original)
    assert any(isinstance(layer, nn.BatchNorm2d) for layer in chain)
    x = torch.randn(64, 3, 16, 16)
    net = unfold(chain, x if with_images else None)
    with torch.no_grad():
        torch.testing.assert_close(net(x), chain(x), rtol=1e-3, atol=1e-3)
    moved = nn.Sequential(*chain)
    moved.config = original.config
    place = next(index for index, layer in enumerate(moved) if isinstance(layer, nn.BatchNorm2d))
    moved[place], moved[place + 1] = moved[place + 1], moved[place]
    with pytest.raises(UsageError, match=r"has no batch norm after these layers|not those"):
        unfold(moved)


def test_average_pooling_is_known_by_the_card_or_by_the_layers(tmp_path):
    torch.manual_seed(0)
    net = trained("diracnet-10-0.25", pool="average")
    attach_card(net, ModelCard(net.input_size, (0.5,) * 3, (0.5,) * 3, architecture=net.config))
    chain = write_model_file(net, tmp_path / "model.safetensors")
    file = load(tmp_path / "model.safetensors")
    bare = nn.Sequential(*chain)
    x = torch.randn(8, *net.input_size)
    for each in (file, bare):
        again = unfold(each)
        assert again.config["pool"] == "average"
        with torch.no_grad():
            torch.testing.assert_close(again(x), net(x), rtol=1e-3, atol=1e-3)
    with pytest.raises(UsageError, match="its layers are not those that"):
        unfold(chain, architecture={key: value for key, value in net.config.items() if key != "pool"})


def test_a_plain_chain_becomes_a_dirac_network_where_that_is_asked_for():
    chain = diracnets.fold(trained("plain-10-0.5"))
    x = torch.randn(32, 3, 16, 16)
    asked = {**chain.config, "name": "diracnet-10-0.5"}
    net = unfold(chain, x, architecture=asked)
    assert any(isinstance(layer, DiracConv2d) for layer in net.modules())
    with torch.no_grad():
        torch.testing.assert_close(net(x), chain(x), rtol=1e-3, atol=1e-3)
    for other in ("diracnet-16-0.5", "wrn-10-0.5", "diracnet-10-0.25"):
        with pytest.raises(UsageError, match=f"{other}"):
            unfold(chain, x, architecture={**chain.config, "name": other})


def test_the_card_decides_not_the_sizes():
    """The same sizes are those of a Dirac network and of a plain one, and of names that differ."""
    net = trained("plain-10-0.25")
    chain = diracnets.fold(net)
    for name in ("plain-10-0.25", "plain-10-0.250", "diracnet-10-0.25"):
        architecture = {**net.config, "name": name}
        attach_card(chain, ModelCard((3, 16, 16), (0.5,) * 3, (0.5,) * 3, architecture=architecture))
        assert unfold(chain).config["name"] == name
    attach_card(chain, ModelCard((3, 16, 16), (0.5,) * 3, (0.5,) * 3, architecture={"name": "vgg-16"}))
    with pytest.raises(UsageError, match="vgg-16"):
        unfold(chain)


def test_a_chain_with_hooks_is_not_unfolded():
    chain = diracnets.fold(trained("diracnet-10-0.25"))
    chain[1].register_forward_hook(lambda *args: 2 * args[-1])
    with pytest.raises(UsageError, match=r"layer 1 .ReLU. has a forward hook"):
        unfold(chain)


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
