"""The same apps on Flower's own engine: a run finishes, and its numbers do not depend on what carries the messages."""

from __future__ import annotations

from pathlib import Path

from excise.server.record import RunFolder
from excise.simulations.engine import run_plan
from tests.scenarios import prepared, run


def test_flower_and_this_process_give_the_same_model(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds={"deadline": 300.0})
    on_flower = run_plan(plan, sites.configs, RunFolder(tmp_path / "flower"), "flower", lambda *_: None)
    here = run(plan, sites, tmp_path / "here")
    assert on_flower["unlearned"]["digest"] == here["unlearned"]["digest"]
    for model in ("original", "retrained", "unlearned"):
        assert on_flower[model]["pooled"] == here[model]["pooled"]
    assert (tmp_path / "flower" / "metrics.json").is_file()
