import pytest
import torch

from diracnets.training.optimizer import make_optimizer
from diracnets.training.recipe import Recipe


@pytest.mark.parametrize("scaled", [False, True])
def test_decays_convolutions_and_linear_weights_alone(scaled, warm_net):
    """A step without gradients but with decay shrinks exactly these."""
    before = {name: parameter.detach().clone() for name, parameter in warm_net.named_parameters()}
    for parameter in warm_net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    make_optimizer(Recipe(lr=1.0, weight_decay=0.5, momentum=0.0), warm_net, scaled=scaled).step()
    for name, parameter in warm_net.named_parameters():
        decayed = name.endswith(("conv.weight", "fc.weight"))
        torch.testing.assert_close(parameter.detach(), before[name] * (0.5 if decayed else 1.0))


def test_a_first_step_that_a_loss_scaler_leaves_out_leaves_no_trace(warm_net):
    optimizer, scaler = make_optimizer(Recipe(lr=1.0), warm_net, scaled=True), torch.amp.GradScaler("cpu")
    before = warm_net.fc.bias.detach().clone()
    for gradient in (float("inf"), 0.0):
        scaler.scale(torch.ones(()))
        for parameter in warm_net.parameters():
            parameter.grad = torch.full_like(parameter, gradient)
        scaler.step(optimizer)
        scaler.update()
    assert warm_net.fc.bias.equal(before)
