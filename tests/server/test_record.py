"""A run folder: whole checkpoints or none, one event a line, and JSON that every reader takes."""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from excise.common.errors import StorageError
from excise.common.weights import digest
from excise.server.record import Phase, RunFolder


def phase(rounds: int = 3) -> Phase:
    weights = {"w": torch.randn(4, 2), "bn.num_batches_tracked": torch.tensor(7), "s": torch.tensor(0.5)}
    return Phase(
        weights, rounds, [{"round": i + 1, "loss": i / 7} for i in range(rounds)], {"seconds": 0.1 + 0.2, "passes": 9}
    )


def disk_full(_: int) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_checkpoint_comes_back_as_it_went(tmp_path: Path) -> None:
    before = phase()
    RunFolder(tmp_path).save_phase("original", before)
    after = RunFolder(tmp_path).load_phase("original")
    assert after is not None
    assert digest(after.weights) == digest(before.weights)
    assert (after.rounds, after.history, after.cost) == (before.rounds, before.history, before.cost)


def test_a_phase_without_a_checkpoint_is_none(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).load_phase("original") is None


def test_nan_in_the_history_survives(tmp_path: Path) -> None:
    before = phase(1)
    before.history[0]["loss"] = math.nan
    RunFolder(tmp_path).save_phase("unlearned", before)
    after = RunFolder(tmp_path).load_phase("unlearned")
    assert after is not None
    assert math.isnan(after.history[0]["loss"])


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, old = RunFolder(tmp_path), phase(1)
    folder.save_phase("original", old)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(StorageError, match=r"No space left.*Free space"):
            folder.save_phase("original", phase(2))
    kept = folder.load_phase("original")
    assert kept is not None
    assert (kept.rounds, digest(kept.weights)) == (1, digest(old.weights))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["original.safetensors"]
    folder.save_phase("original", phase(2))
    again = folder.load_phase("original")
    assert again is not None
    assert again.rounds == 2


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    folder = RunFolder(tmp_path / "file" / "run")
    with pytest.raises(StorageError):
        folder.event("started")
    with pytest.raises(StorageError):
        folder.save_phase("original", phase())


def test_events_are_appended_one_a_line(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "new" / "run")
    folder.event("started", request="r")
    RunFolder(tmp_path / "new" / "run").event("finished", text="two\nlines", digest="d")
    lines = (folder.path / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["started", "finished"]
    assert events[0]["request"] == "r"
    assert all(event["at"].endswith("+00:00") for event in events)
    assert (folder.path / "events.jsonl").stat().st_mode & 0o777 == 0o600


def not_json(name: str) -> NoReturn:
    raise AssertionError(f"{name} is not JSON")


def test_what_is_not_a_number_becomes_null(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    value = {"a": math.nan, "b": [1.5, (math.nan,)], "c": {"d": math.inf, "e": -math.inf}, "f": "text", "g": True}
    folder.write_json("metrics.json", value)
    folder.event("round", scores=value)
    expected = {"a": None, "b": [1.5, [None]], "c": {"d": None, "e": None}, "f": "text", "g": True}
    assert json.loads((tmp_path / "metrics.json").read_text(), parse_constant=not_json) == expected
    assert json.loads((tmp_path / "events.jsonl").read_text(), parse_constant=not_json)["scores"] == expected
