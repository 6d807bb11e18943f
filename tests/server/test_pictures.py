"""What a look at the pictures would show at once: that a legend is whole and leaves the axes their place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from excise.server import pictures
from tests.server.test_report import made_up_results

RESULTS = made_up_results()
HISTORY = RESULTS["unlearned"]["history"]
CANDIDATE = {"objectives": {"forget gap": 0.01, "membership": 0.02, "retain loss": 0.003, "worst site loss": 0.01}}
CANDIDATES = {f"candidate-{i}": {**CANDIDATE, "on_front": i > 2, "chosen": i == 3} for i in range(6)}
LOSSES = [RESULTS[model]["losses"] for model in ("original", "unlearned")]


@pytest.mark.parametrize(
    "drawn",
    [
        lambda: pictures.round_curves(RESULTS["original"]["pooled"], HISTORY, RESULTS["retrained"]["pooled"], 6, ""),
        lambda: pictures.loss_histograms(*LOSSES, ""),
        lambda: pictures.site_changes({f"hospital-{i}": (0.01 * i, 0.02) for i in range(4)}, 0.03, ""),
        lambda: pictures.membership_intervals({f"unlearned at hospital-{i}": (0.5, 0.4, 0.63) for i in range(4)}, ""),
        lambda: pictures.convergence(HISTORY, ""),
        lambda: pictures.candidate_map(CANDIDATES, ""),
        lambda: pictures.cost_bars({"wall time": 0.1, "images processed": 0.2}, ""),
    ],
    ids=["rounds", "losses", "sites", "verification", "convergence", "candidates", "cost"],
)
def test_legends_are_whole_and_leave_room(drawn: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Figure] = []

    def keep(name: str, label: str, size: tuple[float, float], paint: Callable[[Figure], Any]) -> str:
        figures.append(Figure(figsize=size, layout="constrained"))
        FigureCanvasAgg(figures[-1])
        paint(figures[-1])
        return name

    monkeypatch.setattr(pictures, "draw", keep)
    assert drawn()
    (figure,) = figures
    figure.canvas.draw()
    whole = figure.bbox
    legends = [legend for axes in figure.axes if (legend := axes.get_legend())] + figure.legends
    assert legends
    for legend in legends:
        box = legend.get_window_extent()
        assert whole.x0 <= box.x0 < box.x1 <= whole.x1
        assert whole.y0 <= box.y0 < box.y1 <= whole.y1
    width = sum(axes.get_window_extent().width for axes in figure.axes)
    assert width > 0.6 * whole.width
