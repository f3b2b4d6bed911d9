"""For all tests."""

import os

import pytest

# Before torch is imported anywhere, also in processes that tests start: the networks here are so small that a second
# thread gains nothing, and costs much where other processes want the cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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
