import re

import figures
import front
import pages
import pytest
import torch


def test_the_page_is_what_the_results_give():
    assert pages.PAGE.read_text(encoding="utf-8") == pages.page().rstrip("\n") + "\n"


def test_a_stranger_can_read_the_page():
    text = pages.PAGE.read_text(encoding="utf-8")
    tables = re.findall(r"^\| --- .*$", text, re.MULTILINE)
    assert 1 <= len(tables) <= 5
    assert max(line.count("---") for line in tables) <= 6
    assert text.index("not reached") < text.index("| --- |")
    first = text[text.index("| network |") :].partition("\n\n")[0]
    for error in ("6.90", "8.29", "8.63"):  # Wide ResNet, DiracNet and plain network by one recipe
        assert first.count(error) == 1


def test_the_figures_show_the_measured_numbers():
    axes = figures.new_figure(5, 5).subplots()
    figures.by_depth(axes, pages.found(figures.STUDY))
    lines = [[float(f"{value:.1f}") for value in container.lines[0].get_ydata()] for container in axes.containers]
    table = [line[2:-2].split(" | ") for line in pages.by_depth().splitlines()[2:]]
    for line, column in zip(lines, (1, 4, 2, 3), strict=True):
        assert line == [float(row[column].split()[0]) for row in table if row[column].strip()]


def test_the_caption_of_the_readme_s_picture_is_true():
    groups = pages.found(figures.STUDY)
    lines = {name: front.values(groups, row, rate) for name, (row, rate, *_) in front.LINES.items()}
    text = (pages.ROOT / "README.md").read_text(encoding="utf-8")
    low, high = map(int, re.search(r"stays at (\d+) to (\d+)% from 28 to 1,000 layers", text).groups())
    assert (round(min(lines["dirac"].values())), round(max(lines["dirac"].values()))) == (low, high)
    assert [*lines["dirac"]] == [*figures.DEPTHS]
    best = front.values(groups, figures.PLAIN_ROW, None)
    assert all(0 < lines["dirac"][depth] - best[depth] < 3 for depth in best)
    assert lines["residual"].keys() < best.keys()
    assert min(lines["plain"].values()) == pytest.approx(10, abs=0.1)


def test_what_relus_pass_on_by_their_bias_is_as_the_page_on_depth_says():
    text = " ".join((pages.ROOT / "docs" / "depth.md").read_text(encoding="utf-8").split())
    shifted, centred = re.search(r"is still ([\d.]+), where it is ([\d.]+) without a bias", text).groups()
    for bias, written in ((0.0, centred), (1.0, shifted)):
        first = x = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
        for _ in range(1000):
            y = (x + bias).relu()
            x = (y - y.mean()) / y.std()
        assert float(written) == pytest.approx(torch.corrcoef(torch.stack([first, y]))[0, 1].item(), abs=0.02)
