"""Networks with trained weights, as `create_model(..., pretrained=...)` makes them."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from diracnets.errors import UsageError
from diracnets.models.facts import attach_facts
from diracnets.models.load import load_weights
from diracnets.models.network import Network
from diracnets.models.pretrained import choose_weights
from diracnets.models.recognize import on_meta
from diracnets.models.unfold import unfold


def trained_network(
    name: str,
    pretrained: str | bool,
    *,
    num_classes: int | None = None,
    in_channels: int | None = None,
    image_size: int | tuple[int, int] | None = None,
    width: float = 1.0,
) -> Network:
    """A network with trained weights, ready to be trained further; folded weights are unfolded.

    Args:
        name: of the network.
        pretrained: the name of its weights, or True for the first ones with as many classes.
        num_classes: None for any number; 0 for pooled features, without the classifier.
        in_channels: None for what the weights take.
        image_size: None for what the weights were trained on.
        width: of the network.

    Returns:
        The network in training mode, as a fresh one is, with the weights' `facts`.

    Raises:
        UsageError: there are no such weights; the message says which there are.
        FileError: their file is damaged, or cannot be downloaded.

    >>> net = trained_network("diracnet-28-0.5", True)
    >>> net.num_classes, net.input_size, net.facts.provenance["data"]["name"]
    (10, (1, 8, 8), 'digits')
    """
    weights = choose_weights(name, pretrained, num_classes or None)
    for what, given, fixed in (
        ("in_channels", in_channels, weights.model["in_channels"]),
        ("width", width, weights.model.get("width", 1.0)),
    ):
        if given not in (None, fixed):
            raise UsageError(f"the weights {weights.name} have {what} {fixed}, not {given}; leave {what} out")
    loaded = load_weights(weights)
    trained = unfold(loaded) if isinstance(loaded, nn.Sequential) else loaded
    config = dict(weights.model) if image_size is None else {**weights.model, "image_size": image_size}
    net = on_meta(config)
    net.load_state_dict(trained.state_dict(), assign=True)
    facts = replace(weights.facts(), input_size=net.input_size)
    if num_classes == 0:
        net.reset_classifier(0)
        facts = replace(facts, classes=())
    attach_facts(net, facts)
    return net
