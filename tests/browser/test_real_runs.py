"""Real runs, from the page: a simulation that goes on meanwhile, and a deployment's run that is begun, stopped and resumed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from excise.common.models import build_model
from excise.common.weights import save_weights, snapshot
from tests.browser.conftest import Open
from tests.browser.test_dashboard import live
from tests.coordinated import DESCRIBED, SPEC, Coordinated, coordinated, events_of
from tests.deployment import ROOT, eventually
from tests.scenarios import scenario_file

SETTINGS = """
[unlearning.local]
rounds = 2
steps = 3

[unlearning.search]
max_steps = 3

[rounds]
watch = false
deadline = 120

[verification]
resurfacing = false
"""


def test_a_simulation_is_seen_while_it_goes_on_and_afterwards(tmp_path: Path, chromium: Browser) -> None:
    file = scenario_file(tmp_path, unlearning={"local": {"rounds": 5}})
    command = ("simulate", "--dashboard", "--backend", "inprocess", "--scenario", file, "--out", tmp_path / "runs")
    with subprocess.Popen(
        [sys.executable, "-m", "excise.cli", *map(str, command), "--cache", str(tmp_path / "cache")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
    ) as process:
        try:
            assert process.stderr is not None
            said = iter(process.stderr.readline, "")
            address = next(found[1] for line in said if (found := re.search(r"Open (\S+)", line)))
            page = chromium.new_context().new_page()
            page.goto(address)
            live(page)
            expect(page.locator(".headline")).to_contain_text("Finished", timeout=120_000)
            expect(page.locator("[data-part='chart:curve']")).to_have_attribute("data-drawn", re.compile(r"\d"))
            assert any("The dashboard stays" in line for line in said)
            page.reload()  # it does
            live(page)
            process.send_signal(signal.SIGINT)
            assert process.wait(120) == 0
            expect(page.locator("#live")).to_have_text("reconnecting")  # and it has ended with its simulation
        finally:
            process.kill()


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinated]:
    folder = tmp_path_factory.mktemp("deployed")
    with coordinated(folder, ("st-joan",)) as made:
        save_weights(snapshot(build_model(SPEC)), folder / "deployed.safetensors")
        made.server("model", folder / "deployed.safetensors", *DESCRIBED, "--by", "Ada")
        yield made


def press(page: Page, what: str) -> None:
    """Open a dialog of the request's page, and confirm it."""
    page.get_by_role("button", name=f"{what}…").click()
    dialog = page.get_by_role("dialog")
    if what == "Start":
        dialog.get_by_label("Settings").fill(SETTINGS)
    dialog.get_by_role("button", name=what, exact=True).click()


def test_a_run_is_begun_stopped_and_resumed_from_the_page(deployed: Coordinated, opened: Open, tmp_path: Path) -> None:
    run = deployed.config.runs / "mr7"
    with opened(f"http://127.0.0.1:{deployed.config.dashboard_port}") as page:
        page.get_by_role("link", name="Requests").click()
        live(page)
        page.get_by_label("Id").fill("mr7")
        page.get_by_label("Kind").select_option("device")
        page.get_by_label("Forget where").fill("StationName = MR7")
        page.get_by_label("Reason").fill("retired")
        page.get_by_role("button", name="Send for approval").click()
        expect(page.locator("#said")).to_contain_text("it waits for st-joan")

        def arrived() -> bool:
            return "mr7" in deployed.site("st-joan", "requests", "list")

        eventually(arrived, 60, "the request does not come to its site")
        deployed.site("st-joan", "approve", "mr7", "--by", "Dr. Noether")
        page.get_by_role("link", name="mr7").first.click()
        expect(page.locator("#standing")).to_contain_text("approved", timeout=60_000)
        press(page, "Start")
        expect(page.locator("#said")).to_contain_text("Being carried out: mr7", timeout=120_000)
        expect(page.locator("#standing")).to_contain_text("running")
        # Until its process has begun, which takes a busy machine half a minute, nobody carries the run out.
        expect(page.get_by_role("button", name="Stop…")).to_be_visible(timeout=120_000)
        expect(page.get_by_role("button", name="Resume…")).to_have_count(0)
        expect(page.get_by_role("link", name="Evidence")).to_have_count(0)
        eventually(lambda: '"unlearned_round"' in events_of(run), 300, "no round ends")
        press(page, "Stop")
        expect(page.locator("#said")).to_contain_text("The run 'mr7' is stopped", timeout=120_000)
        expect(page.locator("#standing")).to_contain_text("stopped; nobody carries it out since")
        expect(page.locator("#standing")).to_contain_text("waits for the coordinator, to resume it")
        expect(page.get_by_role("button", name="Stop…")).to_have_count(0)
        assert '"finished"' not in events_of(run)
        assert "mr7: stopped, nobody carries it out since" in deployed.server("status")
        with page.context.new_page() as other:
            other.goto(page.url.replace("/requests/mr7", "/?run=mr7"))
            expect(other.locator(".headline")).to_contain_text("Stopped")
            expect(other.get_by_role("region", name="Requests")).to_contain_text("stopped")
        press(page, "Resume")
        expect(page.locator("#said")).to_contain_text("The run 'mr7' goes on", timeout=120_000)
        expect(page.get_by_role("button", name="Stop…")).to_be_visible(timeout=60_000)
        expect(page.locator("#standing")).to_contain_text("candidate", timeout=300_000)
        assert events_of(run).count('"unlearned_round"') == 2  # the first was not done again
        page.goto(page.url.replace("/requests/mr7", "/?run=mr7"))
        live(page)
        expect(page.locator(".headline")).to_contain_text("Candidate")
    log = [json.loads(line) for line in (deployed.folder / "audit.jsonl").read_text().splitlines()]
    done = [line["event"] for line in log if line.get("by") == "ada"]
    assert [one for one in done if "request" in one or "run" in one] == [
        "request drafted",
        "run begun",
        "run stopped",
        "run resumed",
    ]
