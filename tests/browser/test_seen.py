"""What eyes make of the charts, whatever colours they tell apart; and the pages over TLS."""

from __future__ import annotations

import io
import itertools
import json
import re
import ssl
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from excise.server.dashboard.access import COOKIE
from excise.server.setup import AUTHORITY, SERVER_CERTIFICATE, SERVER_KEY
from excise.server.store.leases import held, lease_of
from tests.browser.conftest import Open
from tests.browser.test_dashboard import event, live
from tests.candidates import ran
from tests.coordinators import DEVICE, Network, ready
from tests.dashboards import COORDINATOR, PASSWORD, app_of, serving, with_users

VISION = ("none", "protanopia", "deuteranopia", "tritanopia", "achromatopsia")
LINES = ("--forget", "--retain", "--third", "--fourth")
WORSE, BETTER = "#B2182B", "#2166AC"
APART = 20.0
"""Distance in CIELAB beyond which nobody takes two colours for one; 2.3 is what is just seen."""
READ = 4.5
"""Of text with what it lies on (WCAG 2.1, 1.4.3)."""
CONTRAST = 3.0
"""Of graphics with what they lie on (WCAG 2.1, 1.4.11)."""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a coordinator with a run, which each test has a copy of."""
    folder = tmp_path_factory.mktemp("prepared")
    with ready(folder) as one:
        ran(one, DEVICE)
        with_users(one)
    return folder


def seen(page: Page, vision: str, colors: tuple[str, ...]) -> list[np.ndarray]:
    """What somebody with this colour vision sees of colours, sRGB from 0 to 1."""
    emulation = page.context.new_cdp_session(page)
    emulation.send("Emulation.setEmulatedVisionDeficiency", {"type": vision})
    page.evaluate(
        """(colors) => colors.forEach((color, number) => {
            const patch = document.createElement("div");
            Object.assign(patch.style, { position: "fixed", zIndex: 99, top: 0, left: `${20 * number}px`, width: "20px",
                height: "20px", background: color.startsWith("--") ? `var(${color})` : color });
            document.body.append(patch);
        })""",
        list(colors),
    )
    shot = page.screenshot(clip={"x": 0, "y": 0, "width": 20 * len(colors), "height": 20})
    emulation.detach()
    pixels = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")) / 255
    return [pixels[10, 20 * number + 10] for number in range(len(colors))]


def linear(color: np.ndarray) -> np.ndarray:
    return np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, other: np.ndarray) -> float:
    """WCAG 2.1's contrast ratio."""
    dark, bright = sorted(float(linear(color) @ (0.2126, 0.7152, 0.0722)) for color in (one, other))
    return (bright + 0.05) / (dark + 0.05)


def distance(one: np.ndarray, other: np.ndarray) -> float:
    """Euclidean, in CIELAB under D65."""
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])

    def lab(color: np.ndarray) -> np.ndarray:
        t = to_xyz @ linear(color) / (0.9505, 1, 1.089)
        f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * 841 / 108 + 4 / 29)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    return float(np.linalg.norm(lab(one) - lab(other)))


def test_the_measures_are_right() -> None:
    black, white, red, green = (np.array(rgb, float) for rgb in ((0, 0, 0), (1, 1, 1), (1, 0, 0), (0, 1, 0)))
    assert contrast(black, white) == pytest.approx(21)
    assert distance(black, white) == pytest.approx(100, abs=0.1)
    assert distance(red, green) == pytest.approx(170.6, abs=0.5)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_are_told_apart(url: str, opened: Open, theme: str) -> None:
    with opened(url, color_scheme=theme) as page:
        live(page)
        for vision in VISION:
            *lines, worse, better, panel = seen(page, vision, (*LINES, WORSE, BETTER, "--panel"))
            assert min(contrast(line, panel) for line in lines) >= CONTRAST, vision
            if vision == "none":  # the emulation does what it says
                assert max(np.ptp(line) for line in lines) > 0.3
            if vision == "achromatopsia":  # lines are told apart by their dashes and markers, and cells by their signs
                assert max(np.ptp(line) for line in lines) < 0.02
            else:
                forget, retain = lines[:2]
                assert distance(forget, retain) > APART, vision
                assert distance(worse, better) > APART, vision


def test_lines_differ_by_dash_and_marker_as_well(made: Network, url: str, opened: Open) -> None:
    scores = dict.fromkeys(("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc"), 0.5)
    told = {"candidate": "unlearned", "excess": 0.1, "objective_gradient_norm": 1.0, "refused": [], "metrics": {}}
    for number in (1, 2):
        event(made, "unlearned_round", round=number, scores=scores, **told)
    with opened(url) as page:
        page.wait_for_function("() => document.querySelector(\"[data-part='chart:curve']\").dataset.drawn")
        series = page.evaluate(
            """() => echarts.getInstanceByDom(document.querySelector("[data-part='chart:curve']")).getOption().series
                .map((one) => [one.symbol, JSON.stringify(one.lineStyle.type ?? "solid")])"""
        )
    assert len(series) == 4
    for told_by in zip(*series, strict=True):
        assert all(one != other for one, other in itertools.combinations(told_by, 2)), told_by


def option(page: Page, kind: str, of: str) -> Any:
    """What a chart was drawn from."""
    chart = f"document.querySelector(\"[data-part='chart:{kind}']\")"
    page.wait_for_function(f"() => {chart}.dataset.drawn")
    return page.evaluate(f"() => ((chart) => {of})(echarts.getInstanceByDom({chart}))")


def measured(made: Network, **changes: Any) -> None:
    """The run of the fixture with other results; before a dashboard looks, which sees files that are replaced."""
    file = made.config.runs / "mr7" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_cells_of_the_heat_map_can_be_read(made: Network, opened: Open, theme: str) -> None:
    before = {"held_out_accuracy": 0.5, "held_out_images": 100.0, "retain_accuracy": 0.5, "retain_images": 100.0}
    names = [f"s{number:02}" for number in range(11)]
    after = {name: before | {"held_out_accuracy": 0.45 + number / 100} for number, name in enumerate(names)}
    after["s03"]["forget_accuracy"] = 0.5  # and of the others there is a dash
    measured(
        made,
        original={"pooled": {}, "sites": dict.fromkeys(names, before | {"forget_accuracy": 0.5})},
        unlearned={"pooled": {}, "sites": after},
    )
    with serving(app_of(made)) as url, opened(url, color_scheme=theme) as page:
        cells = option(page, "heat", "chart.getOption().series[0].data.map((one) => [one.label.color, one.itemStyle.color])")
        texts = option(page, "heat", "chart.getOption().series[0].data.map((one) => one.label.formatter)")
        pairs = list(dict.fromkeys(map(tuple, cells)))
        colors = seen(page, "none", tuple(color for pair in pairs for color in pair))
    assert {"–", "−0.050", "+0.050", "0.000", "−0.020"} <= set(texts)
    worst = min(contrast(ink, ground) for ink, ground in zip(colors[::2], colors[1::2], strict=True))
    assert worst >= READ
    assert len(pairs) > 10


def test_few_sites_do_not_fill_the_height(url: str, opened: Open) -> None:
    with opened(url, height=1200) as page:
        height = option(
            page, "heat", "chart.convertToPixel({ yAxisIndex: 0 }, 1) - chart.convertToPixel({ yAxisIndex: 0 }, 0)"
        )
    assert 20 < height <= 52


def test_what_retraining_reaches_is_told_beside_the_curves(made: Network, opened: Open) -> None:
    keys = ("forget_accuracy", "retain_accuracy", "held_out_accuracy", "membership_auc")
    told = {"candidate": "unlearned", "excess": 0.1, "objective_gradient_norm": 1.0, "refused": [], "metrics": {}}
    event(made, "unlearned_round", round=1, scores=dict.fromkeys(keys, 0.75), **told)
    reached = dict(zip(keys, (0.761, 0.999, 0.76, 0.759), strict=True))  # three that lie on each other
    measured(made, retrained={"pooled": reached, "sites": {}})
    with serving(app_of(made)) as url, opened(url) as page:
        right = option(page, "curve", "chart.getWidth() - chart.getOption().grid[0].right")
        places = option(
            page,
            "curve",
            """chart.getZr().storage.getDisplayList().filter((one) => /^ ?0\\.\\d{3}$/.test(one.style.text ?? ""))
                .map((one) => [one.style.text.trim(), one.getPaintRect()])
                .map(([text, box]) => [text, box.x, box.y, box.height])""",
        )
        values = {text: (x, y, height) for text, x, y, height in places}
    assert set(values) >= {"0.761", "0.999", "0.760", "0.759"}
    labels = sorted((values[f"{value:.3f}"] for value in reached.values()), key=lambda place: place[1])
    assert all(x >= right for x, _, _ in labels)
    assert all(one[1] + 9 <= other[1] for one, other in itertools.pairwise(labels))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_no_accuracy_beyond_1_is_offered(url: str, opened: Open, theme: str) -> None:
    with opened(url, color_scheme=theme) as page:
        texts = option(page, "pareto", "chart.getZr().storage.getDisplayList().map((one) => one.style.text).filter(Boolean)")
        legend = option(page, "pareto", "chart.getOption().legend[0].data.map((one) => one.icon)")
        series = option(page, "pareto", "chart.getOption().series.map((one) => [one.name, one.symbol, one.itemStyle.color])")
    numbers = [float(text.replace("−", "-")) for text in texts if re.fullmatch(r"−?\d\.\d+", text)]
    assert numbers
    assert (min(numbers), max(numbers)) == (pytest.approx(0, abs=0.001), pytest.approx(1, abs=0.07))
    assert max(numbers) <= 1
    assert legend == [symbol for _, symbol, _ in series]
    assert ["deployed", "circle", "transparent"] in series


@pytest.mark.parametrize("width", [390, 1366])
def test_embeddings_have_one_scale(made: Network, opened: Open, width: int) -> None:
    points = [[0.0, 0.0], [10.0, 1.0], [5.0, 4.0]]
    told = {"groups": ["forget", "retain"], "sites": {"a": {"before": points, "after": points, "group": [0, 1, 1]}}}
    (made.config.runs / "mr7" / "embeddings.json").write_text(json.dumps(told))
    with serving(app_of(made)) as url, opened(url, width=width) as page:
        for path in ("/", "/embeddings"):
            page.goto(url + path)
            low, high = (
                option(page, "embedding", f"chart.convertToPixel({{ gridIndex: 1 }}, [{at}])") for at in ("0, 0", "10, 4")
            )
            wide, tall = high[0] - low[0], low[1] - high[1]
            assert wide / 10 == pytest.approx(tall / 4, rel=0.02)
            assert wide > 90


def test_over_tls_the_pages_are_live_and_the_cookie_is_secure(made: Network, opened: Open) -> None:
    files = made.folder / SERVER_CERTIFICATE, made.folder / SERVER_KEY
    with held(made.store, lease_of("mr7")), serving(app_of(made), 0, *files) as url:
        assert url.startswith("https://localhost:")
        trusting = ssl.create_default_context(cafile=str(made.folder / AUTHORITY))
        with httpx.Client(base_url=url, verify=trusting) as client:
            answer = client.post("/login", data={"name": COORDINATOR, "password": PASSWORD})
            assert "Secure" in answer.headers["set-cookie"]
            assert "max-age" in answer.headers["strict-transport-security"]
        with pytest.raises(httpx.ConnectError, match="certificate"):
            httpx.get(url)  # by whoever does not know the coordinator's authority
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))
        with opened(url, ignore_https_errors=True) as page:  # Chromium has no other way to be told of an authority
            live(page)
            (cookie,) = [one for one in page.context.cookies() if one["name"] == COOKIE]
            assert (cookie["secure"], cookie["httpOnly"], cookie["sameSite"]) == (True, True, "Strict")
            event(made, "awaiting", round="unlearned", number=1, sites=["b"], since="2026-11-26T11:59:00.000+00:00")
            expect(page.locator(".headline")).to_contain_text("awaits b since")
