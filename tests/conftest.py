"""For all tests."""

import multiprocessing
import os
import sys

import pytest

# Before torch is imported anywhere, also in processes that tests start: the networks here are so small that a second
# thread gains nothing, and costs much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


FIRST = ("training", "deploy", "studies", "benchmarks")


def pytest_collection_modifyitems(items):
    """Folders with tests that take long come first: at the end, one would keep one process waiting for another."""
    items.sort(key=lambda item: item.path.parent.name not in FIRST)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """Nothing is kept in, or taken from, the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DIRACNETS_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def processes():
    """A context of `multiprocessing` whose processes need not import torch: they are forks of one that has."""
    if sys.platform != "linux":
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["diracnets.deploy.process", "torch._dynamo", "torch.distributed.fsdp"])
    return context


@pytest.fixture
def bare_runs(request, monkeypatch):
    """Runs draw no curve and write nothing for TensorBoard, which takes longer than training a tiny network.

    In slow tests they do.
    """
    if request.node.get_closest_marker("slow"):
        return
    from diracnets.training.folder import RunFolder
    from diracnets.training.reporter import Events

    monkeypatch.setattr(RunFolder, "draw", lambda *_: None)
    monkeypatch.setattr(Events, "write", lambda *_: None)


@pytest.fixture
def warm():
    """Make a model's batch norms, Dirac scales and biases random, of both signs, and put it in evaluation mode.

    A wrong fold cannot hide behind such weights and statistics.
    """
    import torch
    from torch import nn
    from torch.nn.modules.batchnorm import _BatchNorm

    def randomize(model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for module in model.modules():
                scales = [getattr(module, name, None) for name in ("alpha", "beta", "bias")]
                if isinstance(module, _BatchNorm):
                    module.running_mean.copy_(torch.randn(module.num_features, generator=generator))
                    module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.2)
                    scales.append(module.weight)
                for scale in scales:
                    if isinstance(scale, nn.Parameter):
                        scale.copy_(torch.randn(scale.shape, generator=generator))
        return model.eval()

    return randomize


def striped_images(count, name, seed, classes=3, size=8):
    """Noise with a bright row for each class, which a small network learns in a few steps."""
    import torch

    from diracnets.data.memory import MemoryImages

    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    pixels = torch.randint(0, 120, (count, size, size, 1), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(count), 3 * labels + 1] += 100
    return MemoryImages(pixels, labels, name=name, mean=(0.3,), std=(0.2,))


@pytest.fixture(scope="session")
def stripes():
    """72 images to train on, 30 to validate, of 8x8 grey pixels in 3 classes."""
    from diracnets.data.images import ImageData

    train, val = striped_images(72, "stripes train", 0), striped_images(30, "stripes val", 1)
    return ImageData("stripes", ("low", "middle", "high"), (1, 8, 8), (0.3,), (0.2,), train, val)


@pytest.fixture(scope="session")
def large_stripes():
    """32 images of 16x16 pixels for both."""
    from diracnets.data.images import ImageData

    images = striped_images(32, "stripes", 0, size=16)
    return ImageData("stripes", ("low", "middle", "high"), (1, 16, 16), (0.3,), (0.2,), images, images)


@pytest.fixture
def warm_net():
    """A DiracNet with random weights whose BatchNorm statistics have seen some images."""
    import torch
    from torch import nn

    from diracnets.artifacts.create import create_model

    torch.manual_seed(1)
    net = create_model("diracnet-10-0.25", num_classes=3, in_channels=1, image_size=8)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.bias, 0.5, 0.3)  # about 0, a group of so few channels can be dead
    with torch.no_grad():
        for _ in range(3):
            net(torch.randn(32, 1, 8, 8) * 2)
    return net.eval()
