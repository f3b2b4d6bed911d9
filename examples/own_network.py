"""Diracify a network of your own, train it in your own loop, and fold it: python examples/own_network.py

It compares the plain network with the diracified one, and the diracified one with what folding makes of it.
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

import diracnets


class Net(nn.Module):
    """A plain network as you may have one already."""

    def __init__(self, width: int = 16, depth: int = 20) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.Sequential(*(layer for _ in range(depth) for layer in self.block(width)))
        self.classifier = nn.Linear(width, 10)

    @staticmethod
    def block(width: int) -> tuple[nn.Module, ...]:
        """Convolution, batch norm, ReLU."""
        return nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, 8, 8] images -> [B, 10] logits."""
        return self.classifier(self.layers(self.stem(x)).amax((2, 3)))


def fit(net: nn.Module, images: Tensor, labels: Tensor, epochs: int) -> None:
    """A training loop without anything special in it, but for the last argument of the optimizer."""
    groups = diracnets.parameter_groups(net, weight_decay=5e-4)  # no decay of alpha, beta and batch norms
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    for epoch in range(epochs):
        net.train()
        for batch in torch.randperm(len(images)).split(32):
            loss = functional.cross_entropy(net(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"  epoch {epoch + 1}  loss {loss.item():.3f}")


@torch.inference_mode()
def accuracy(net: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The fraction of images whose likeliest class is the right one."""
    return float((net.eval()(images).argmax(1) == labels).float().mean())


def main(epochs: int = 3, depth: int = 20) -> dict[str, float]:
    """Train the network as it is and diracified; gives both accuracies and the fold's largest difference."""
    digits = load_digits()
    images, labels = torch.tensor(digits.images[:, None] / 16, dtype=torch.float32), torch.tensor(digits.target)
    torch.manual_seed(0)
    plain = Net(depth=depth)
    # A larger random part (beta) than the default of 0.1, which suits longer training, learns faster in the beginning.
    dirac, report = diracnets.diracify(copy.deepcopy(plain), beta=0.3, init="kaiming")
    print(report)

    found = {}
    for name, net in (("plain", plain), ("dirac", dirac)):
        print(name)
        torch.manual_seed(1)
        fit(net, images[:1400], labels[:1400], epochs)
        found[name] = accuracy(net, images[1400:], labels[1400:])

    folded = diracnets.fold(dirac.eval(), images[:8])
    print(folded.fold_report)
    with torch.inference_mode():
        found["difference"] = float((folded(images) - dirac(images)).abs().max())
    kinds = sorted({type(layer).__name__ for layer in folded.modules() if not list(layer.children())})
    print(f"accuracy: plain {found['plain']:.1%}, dirac {found['dirac']:.1%}; after folding there are {kinds}")
    return found


if __name__ == "__main__":
    main()
