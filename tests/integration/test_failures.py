"""Sites that fail, and a disk that is full."""

from __future__ import annotations

import errno
import math
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message

from excise.common.errors import DataError, QuorumError, StorageError
from excise.common.messages import SiteUpdate
from excise.common.weights import load_weights
from excise.server.coordinator import Coordinator
from excise.server.record import RunFolder
from excise.simulations.engine import simulated_client
from excise.simulations.local_grid import LocalGrid
from tests.scenarios import (
    events,
    hurried,
    numbers,
    prepared,
    run,
    same,
)

Json = dict[str, Any]


NodeApp = Callable[[Message, Context], Message]


def poisoned(app: NodeApp, kind: str) -> NodeApp:
    """The app of all sites, of which the third returns NaN for messages of `kind`."""

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if context.node_config["partition-id"] != 2 or message.metadata.message_type != kind:
            return reply
        update = SiteUpdate.from_record(reply.content)
        delta = {name: torch.full_like(tensor, math.nan) for name, tensor in update.delta.items()}
        return Message(replace(update, delta=delta).to_record(), reply_to=message)

    return answer


@pytest.mark.parametrize(("kind", "phase"), [("train.fit", "original"), ("train.unlearn", "unlearned")])
def test_an_update_of_nan_is_refused_and_the_run_goes_on(tmp_path: Path, kind: str, phase: str) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.5})
    grid = LocalGrid(poisoned(simulated_client(sites.configs), kind), 3)  # type: ignore[arg-type]
    results = Coordinator(grid, hurried(plan), RunFolder(tmp_path / "run")).run()
    refused = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert {(event["site"], event["code"]) for event in refused} == {("site-3", "not_finite")}
    assert phase in {event["round"] for event in refused}
    if kind == "train.unlearn":
        assert [entry["refused"] for entry in results["unlearned"]["history"]] == [[["site-3", "not_finite"]]] * 2
    weights = load_weights(tmp_path / "run" / "model.safetensors")
    assert all(bool(tensor.isfinite().all()) for tensor in weights.values())


def test_a_dead_site_is_left_out_when_the_quorum_allows(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path, rounds={"quorum": 0.5})
    grid = LocalGrid(simulated_client(sites.configs), 3, dead=[2])
    results = Coordinator(grid, hurried(plan), RunFolder(tmp_path / "run")).run()
    assert list(results["sites"]) == ["site-1", "site-2"]
    (refused,) = [event for event in events(tmp_path / "run") if event["event"] == "refused"]
    assert (refused["round"], refused["code"]) == ("status", "no_answer")


def test_a_dead_site_stops_a_run_that_needs_all(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    grid = LocalGrid(simulated_client(sites.configs), 3, dead=[2])
    with pytest.raises(QuorumError, match=r"2 of 3 sites .*\nHeard from: site-1, site-2\. Silent: site-3\.") as caught:
        Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()
    assert caught.value.missing == ("site-3",)
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_a_site_that_dies_on_the_way_is_named(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    plan = hurried(plan)
    grid = LocalGrid(simulated_client(sites.configs), 3)

    def progress(phase: str, done: int, total: int, note: str) -> None:
        if phase == "unlearned" and done == 1:
            grid._dead.add(101)

    with pytest.raises(QuorumError, match=r"2 of 3 sites .*site-2 \(no_answer\)") as caught:
        Coordinator(grid, plan, RunFolder(tmp_path / "run"), progress).run()
    assert caught.value.missing == ("site-2",)
    grid._dead.clear()
    assert Coordinator(grid, plan, RunFolder(tmp_path / "run")).run()["unlearned"]["history"][1]["refused"] == []


def test_too_few_sites_connected_is_told_at_the_deadline(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    with pytest.raises(QuorumError, match="3 of 4 sites connected; start the others"):
        run(plan.model_copy(update={"sites": 4}), sites, tmp_path / "run")


def test_two_sites_of_one_name_are_refused(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    twice = replace(sites, configs=(*sites.configs[:2], sites.configs[1]))
    with pytest.raises(DataError, match="two sites call themselves 'site-2'"):
        run(plan, twice, tmp_path / "run")


def test_sites_of_other_classes_are_refused(tmp_path: Path) -> None:
    plan, sites = prepared(tmp_path)
    text = sites.configs[2].read_text()
    other = sites.configs[2].with_name("other.toml")
    other.write_text(re.sub(r"classes = \[[^]]*\]", 'classes = ["0", "1", "2"]', text))
    with pytest.raises(DataError, match="do not agree on the classes"):
        run(plan, replace(sites, configs=(*sites.configs[:2], other)), tmp_path / "run")


def test_a_full_disk_stops_the_run_and_it_can_go_on(
    undisturbed: Json, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, sites = prepared(tmp_path)
    fsync = os.fsync

    def disk_full(file: int) -> None:
        """The coordinator's disk alone: sites count what leaves on disks of their own."""
        if (tmp_path / "run") in Path(f"/proc/self/fd/{file}").readlink().parents:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        fsync(file)

    with monkeypatch.context() as patch:

        def progress(phase: str, done: int, total: int, note: str) -> None:
            if (phase, done) == ("original", 1):  # its next write is a checkpoint
                patch.setattr(os, "fsync", disk_full)

        with pytest.raises(StorageError, match=r"original\.safetensors: No space left") as caught:
            run(plan, sites, tmp_path / "run", progress=progress)
    assert caught.value.exit_code == 5
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["original.safetensors"]
    kept = RunFolder(tmp_path / "run").load_phase("original")
    assert kept is not None
    assert kept.rounds == 1
    assert same(numbers(run(plan, sites, tmp_path / "run")), numbers(undisturbed))
