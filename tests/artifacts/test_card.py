"""Cards survive as plain values, and what cannot be is refused where it is written down."""

import json

import pytest
from torch import nn

from diracnets.artifacts.card import ModelCard, attach_card, card_of
from diracnets.errors import UsageError

GOOD = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5), "std": (0.2, 0.2, 0.2)}


def test_facts_come_back_from_json():
    card = ModelCard(
        **GOOD, classes=("a", "ü"), provenance={"lr": 0.1, "list": [1, None, True]}, fold={"largest": 1e-6}
    )
    assert ModelCard.from_data(json.loads(json.dumps(card.to_data()))) == card


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("input_size", (3,), "input_size"),
        ("input_size", (3, 0, 8), "input_size"),
        ("input_size", (3, 8.0, 8), "input_size"),
        ("mean", (0.5,), "mean has 1 numbers for 3 channels"),
        ("mean", (0.5, 0.5, float("inf")), "mean"),
        ("std", (0.2, 0.2, 0.0), "positive"),
        ("std", (0.2, 0.2, -1.0), "positive"),
        ("classes", ("a", 1), "a class called 1"),
        ("classes", ("a", "b\n"), "control characters"),
        ("provenance", {"x": object()}, "provenance.x"),
        ("provenance", {1: 2}, "not text"),
        ("fold", {"x": float("nan")}, "fold.x"),
        ("fold", {"x": {"y": "\x1b"}}, "fold.x.y holds control characters"),
    ],
)
def test_impossible_facts_are_refused(key, value, message):
    with pytest.raises(UsageError, match=message):
        ModelCard(**{**GOOD, key: value})


@pytest.mark.parametrize("data", [{}, {"input_size": "3"}, {**GOOD, "classes": {"a": 1}}, {**GOOD, "mean": None}])
def test_incomplete_data_is_refused(data):
    with pytest.raises(UsageError):
        ModelCard.from_data(data)


def test_the_card_of_a_network():
    net = nn.Sequential()
    assert card_of(net) is None
    attach_card(net, ModelCard(**GOOD))
    assert net.card == card_of(net) == ModelCard(**GOOD)
