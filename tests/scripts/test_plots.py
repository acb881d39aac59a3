"""Plots show what was measured."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from scripts.peers import plots
from scripts.rigs import suite_plots


def goodput(per_s: float) -> dict[str, object]:
    return {"goodput": {slo: {"share": 1.0, "per_s": per_s} for slo in ("10", "25")}}


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    figures: list[Figure] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: figures.append(figure))
    return figures


def test_goodput_has_a_panel_for_each_load_and_a_bar_for_each_system_and_slo(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    ours = {"16 clients@10": [goodput(5)], "16 clients@25": [goodput(7)], "400/s@10": [goodput(3)]}
    runs = {"gearmesh": ours, "mosec": {"16 clients": [goodput(2), goodput(4), goodput(3)]}}
    plots.draw(runs, ["16 clients", "400/s"], [10.0, 25.0], Path("unused.png"))
    first, second = figures[0].axes
    assert [bar.get_height() for bar in first.patches] == [5, 7, 3, 3]
    assert [bar.get_height() for bar in second.patches] == [3, 0, 0, 0]


def test_a_suite_has_a_line_for_each_policy_and_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    attainments = {"atc": [[0.9, 1.0], [0.5, 0.7]], "bound": [[1.0], [0.8]]}
    suite_plots.draw([suite_plots.Panel("W1", "load", ("1", "2"), attainments)], Path("unused.png"))
    (axis,) = figures[0].axes
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.95, 0.6], [1.0, 0.8]]


def test_panels_beyond_a_row_go_below_and_no_empty_one_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    figures = drawn(monkeypatch)
    panels = [suite_plots.Panel(str(n), "load", ("1",), {"atc": [[1.0]]}) for n in range(4)]
    suite_plots.draw(panels, Path("unused.png"))
    assert [axis.get_title() for axis in figures[0].axes if axis.axison] == ["0", "1", "2", "3"]
