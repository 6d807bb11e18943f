"""The death of a run's process never loses a round, wherever it comes; neither does a full disk or a damaged checkpoint."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from excise.client.config import read_site_config
from excise.common.errors import StorageError
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.sites import Sites
from tests.killed import TINY, outcome
from tests.scenarios import events, prepared, run, same

Json = dict[str, Any]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plan, Sites, Json]:
    """A tiny run of three rounds at two sites, and what comes of it when nobody disturbs it."""
    folder = tmp_path_factory.mktemp("tiny")
    plan, sites = prepared(folder, **TINY)
    plan = plan.model_copy(update={"retrain": False})
    return plan, sites, outcome(run(plan, sites, folder / "undisturbed"), folder / "undisturbed")


def forget(sites: Sites) -> None:
    """The sites' states, as if they had never been asked."""
    for site in sites.configs:
        shutil.rmtree(read_site_config(site).state, ignore_errors=True)


def test_a_run_that_is_killed_at_any_point_goes_on_to_the_same_end(tmp_path: Path, tiny: tuple[Plan, Sites, Json]) -> None:
    program = [sys.executable, "-m", "tests.killed", str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert same(found["undisturbed"], tiny[2])
    assert [point for point, outcome in found["killed"].items() if not same(outcome, found["undisturbed"])] == []
    points = {point.split(" ", 1)[1] for point in found["killed"]}
    files = ("unlearned", "unlearned.previous", "kept-unlearned", "original", "model")
    assert {f"{when} {name}.safetensors" for when in ("before", "after") for name in files} <= points
    assert {"after append", "after event", "before metrics.json", "after metrics.json", "before rounds.json"} <= points
    assert len(found["undisturbed"]["results"]["unlearned"]["history"]) == 3


def test_a_disk_that_is_full_at_any_write_stops_the_run_and_it_can_go_on(
    tmp_path: Path, tiny: tuple[Plan, Sites, Json], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sites, undisturbed = tiny
    make, written, fatal = tempfile.mkstemp, 0, 0

    def mkstemp(**where: Any) -> tuple[int, str]:
        nonlocal written
        if Path(where["dir"]).is_relative_to(tmp_path):  # the run's, and not the sites'
            written += 1
            if written == fatal:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return make(**where)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    forget(sites)
    run(plan, sites, tmp_path / "counted")
    total = written
    assert total == 9  # original, three rounds and the model kept of each, the revised model, what was measured
    for fatal in range(1, total + 1):
        forget(sites)
        folder, written = tmp_path / f"run-{fatal}", 0
        with pytest.raises(StorageError, match="No space left") as caught:
            run(plan, sites, folder)
        assert caught.value.exit_code == 5
        assert same(outcome(run(plan, sites, folder), folder), undisturbed)


def test_a_disk_that_is_full_for_a_line_of_rounds_stops_the_run_and_it_can_go_on(
    tmp_path: Path, tiny: tuple[Plan, Sites, Json]
) -> None:
    plan, sites, undisturbed = tiny
    forget(sites)
    folder = tmp_path / "run"
    in_the_way = folder / "checkpoints" / "unlearned.rounds.jsonl"

    def progress(phase: str, done: int, *_: object) -> None:
        if (phase, done) == ("unlearned", 1):
            in_the_way.rename(folder / "aside")
            in_the_way.mkdir()

    with pytest.raises(StorageError, match=r"unlearned\.rounds\.jsonl"):
        run(plan, sites, folder, progress=progress)
    in_the_way.rmdir()
    (folder / "aside").rename(in_the_way)
    assert same(outcome(run(plan, sites, folder), folder), undisturbed)


@pytest.mark.parametrize("rounds", [1, 2])
def test_a_damaged_checkpoint_costs_one_round_and_the_end_is_the_same(
    tmp_path: Path, tiny: tuple[Plan, Sites, Json], rounds: int
) -> None:
    plan, sites, undisturbed = tiny
    forget(sites)
    folder, seen = tmp_path / "run", list[int]()

    def progress(phase: str, done: int, *_: object) -> None:
        if phase == "unlearned":
            seen.append(done)
            if len(seen) == rounds + 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan, sites, folder, progress=progress)
    path = folder / "checkpoints" / "unlearned.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    if rounds == 1:  # there is none before the first
        with pytest.raises(StorageError, match=r"unlearned\.safetensors is damaged.*delete unlearned\.\*"):
            run(plan, sites, folder)
        assert path.exists()
        for one in path.parent.glob("unlearned.*"):  # as it says
            one.unlink()
    else:
        seen.clear()
    results = run(plan, sites, folder, progress=lambda phase, done, *_: phase == "unlearned" and seen.append(done))
    if rounds == 2:
        assert seen == [1, 2, 3]  # the second round was held again
        assert [event["rounds"] for event in events(folder) if event["event"] == "checkpoint_damaged"] == [1]
    assert same(outcome(results, folder), undisturbed)


def test_a_lost_model_of_the_kept_round_is_made_again(tmp_path: Path, tiny: tuple[Plan, Sites, Json]) -> None:
    plan, sites, undisturbed = tiny
    forget(sites)
    folder = tmp_path / "run"
    run(plan, sites, folder)
    kept = folder / "checkpoints" / "kept-unlearned.safetensors"
    other = RunFolder(folder).load_phase("original")
    assert other is not None
    RunFolder(folder).save_phase("kept-unlearned", other, spare=False)
    results = run(plan, sites, folder)  # the last round is the kept one, and its checkpoint is there
    assert same(outcome(results, folder), undisturbed)
    kept.write_bytes(b"damaged")
    assert same(outcome(run(plan, sites, folder), folder), undisturbed)
