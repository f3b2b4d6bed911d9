import json

import pytest

from diracnets.studies.overview import reached
from diracnets.studies.side_by_side import race, step_ratio

GPU = {"device": "A GPU", "processor": "Abacus", "threads": 2}
PROCESSOR = {"device": "Abacus", "processor": "Abacus", "threads": 2}


def measured(network="28-10", ratio=1.0, compiled=False, batch=128, precision="bfloat16", around=GPU):
    place = {"network": network, "batch": batch, "precision": precision}
    rows = [{**place, "variant": "plain", "step_ratio": 1.0}, {**place, "variant": "dirac", "step_ratio": ratio}]
    return {"circumstances": around, "compiled": compiled, "rows": rows}


ALL = [measured(network, 1.01, compiled) for network in ("28-10", "34-2") for compiled in (False, True)]


@pytest.mark.parametrize(
    ("measurements", "state"),
    [
        (ALL, "reached"),
        (ALL[1:], "not measured"),
        ([*ALL[1:], measured(ratio=1.02)], "reached"),
        ([*ALL[1:], measured(ratio=1.021)], "not reached"),
        ([*ALL, measured(ratio=1.015, compiled=True)], "not reached"),
        ([measured(ratio=1.5)], "not reached"),
        ([*ALL[1:], measured(around=PROCESSOR)], "not measured"),
        ([*ALL[1:], measured(precision="float32")], "not measured"),
        ([*ALL[1:], measured(batch=64)], "not measured"),
        ([], "not measured"),
    ],
)
def test_the_step_is_judged_on_a_gpu_by_all_networks(measurements, state):
    verdict = step_ratio({"measured": measurements})
    assert verdict.state == state
    assert ("28-10 eager 1.500 on A GPU" in verdict.told) == (measurements == [measured(ratio=1.5)])


def raced(*rows, around=PROCESSOR):
    names = {"ours": "diracnet-sprint", "theirs": "cifar10-airbench, a program"}
    rows = [{"network": names[who], "accuracy_views": accuracy, "seconds": time} for who, accuracy, time in rows]
    return {"circumstances": around, "measured": rows}


THEIRS = ("theirs", 0.94, 1200)


@pytest.mark.parametrize(
    ("content", "state"),
    [
        (raced(("ours", 0.941, 1000), THEIRS), "reached"),
        (raced(("ours", 0.941, 1000), ("ours", 0.938, 1000), THEIRS), "not reached"),
        (raced(("ours", 0.95, 1300), THEIRS), "not reached"),
        (raced(("ours", 0.95, 1000)), "not measured"),
        (raced(("ours", 0.95, 10), ("theirs", 0.94, 12), around=GPU), "not measured"),
    ],
)
def test_the_race_is_judged_by_accuracy_and_time(content, state):
    assert race(content).state == state


def test_the_page_takes_both_from_their_files(tmp_path):
    (tmp_path / "cost.json").write_text(json.dumps({"study": "cost", "measured": ALL}))
    (tmp_path / "airbench.json").write_text(json.dumps(raced(("ours", 0.941, 1200), ("theirs", 0.94, 1320))))
    lines = [line for line in reached(tmp_path).splitlines() if "| reached |" in line]
    assert len(lines) == 2
    assert "94.10% in 20.0 minutes (diracnet-sprint, seeds: 1), against 94.00% in 22.0 minutes" in lines[0]
