"""The measurements on runtimes: what is known is not measured again, and the page tells all."""

import json

import curve
import pytest
import runtimes

from diracnets.deploy.parity import Table
from diracnets.deploy.row import Row, Timing
from diracnets.deploy.subject import subject_of
from diracnets.runtime.environment import circumstances


def test_known_groups_stay_and_the_page_tells_all(tmp_path, monkeypatch):
    asked = []

    def bench(networks, *, backends, precisions, batches, rounds, say):
        asked.append((tuple(network.name for network in networks), backends[0], precisions[0]))
        timing = Timing(0.002, (0.001, 0.003), 0.9, (0.8, 1.0), 0.002, 0.95, (0.94, 0.96), 0.5)
        done = {"latency": {1: timing}, "running_bytes": {1: 5_000_000}}
        first, second = asked[-1][0]
        rows = [Row(first, *asked[-1][1:], **done), Row(second, *asked[-1][1:], reason="it has none")]
        return Table(tuple(rows), {"rounds": rounds, "circumstances": circumstances()})

    monkeypatch.setattr(runtimes, "bench", bench)
    study = runtimes.Runtimes(
        groups=("wrn-10-0.25,plain-10-0.25",), backends=("onnx",), precisions=("float32",), out=tmp_path
    )
    for _ in range(2):
        study.run(lambda line: None)
    assert asked == [(("wrn-10-0.25", "plain-10-0.25"), "onnx", "float32")]
    page = (tmp_path / "runtimes.md").read_text()
    assert "| wrn-10-0.25 | 1 | 2 | 0.900 (0.800 to 1.000) | 0.950 (0.940 to 0.960) | 0.50 | 5.0 |" in page
    assert "it has none" in page
    residual, chain = (
        runtimes._activations(subject_of(name))["peak"]["numbers"] for name in ("wrn-10-0.25", "plain-10-0.25")
    )
    assert chain / residual < 0.7


@pytest.mark.slow
def test_the_curve_takes_what_is_trained(tmp_path, monkeypatch):
    def bench(networks, *, backends, precisions, batches, rounds, say):
        timing = Timing(0.002, (0.001, 0.003), 1.0, (1.0, 1.0), 0.002, 1.0, (1.0, 1.0), 0.5)
        rows = [Row(name, backends[0], "float32", latency={1: timing}) for name in networks]
        return Table(tuple(rows), {"circumstances": circumstances()})

    monkeypatch.setattr(curve, "bench", bench)
    curve.Curve(models=("diracnet-28-0.5-digits",), out=tmp_path).run(lambda line: None)
    facts = json.loads((tmp_path / "curve.json").read_text())
    assert facts["rows"][0]["accuracy"] > 0.95
    assert facts["rows"][0]["kind"] == "chain"
    assert "| diracnet-28-0.5-digits |" in (tmp_path / "curve.md").read_text()
