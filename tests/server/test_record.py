"""A run folder: whole checkpoints or none, one event a line, and JSON that every reader takes."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import torch

from excise.common.errors import StorageError
from excise.common.weights import digest
from excise.server.record import Phase, RunFolder
from excise.server.trail import Trail


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


# --- damage -----------------------------------------------------------------------------------------------------------------


def checkpoints(folder: RunFolder) -> set[str]:
    return {path.name for path in (folder.path / "checkpoints").iterdir()}


def three_rounds(folder: RunFolder) -> list[str]:
    """Save three rounds; the digest of each one's weights."""
    digests, trail = [], Trail()
    for rounds in (1, 2, 3):
        now = phase(rounds)
        now.trail = trail
        folder.save_phase("unlearned", now, {"round": rounds, "updates": {"a": rounds / 7}})
        digests.append(digest(now.weights))
        trail = now.trail
    return digests


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def rot_in_a_weight(path: Path) -> None:
    flip(path, -1)


def rot_in_the_history(path: Path) -> None:
    text = b'rounds\\": '
    flip(path, path.read_bytes().index(text) + len(text))  # another digit: it is JSON still


def emptied(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE = [cut_off, rot_in_a_weight, rot_in_the_history, emptied]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_costs_one_round(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = RunFolder(tmp_path)
    digests = three_rounds(folder)
    damage(tmp_path / "checkpoints" / "unlearned.safetensors")
    kept = folder.load_phase("unlearned")
    assert kept is not None
    assert (kept.rounds, digest(kept.weights)) == (2, digests[1])
    (event,) = folder.events()
    assert (event["event"], event["phase"], event["rounds"]) == ("checkpoint_damaged", "unlearned", 2)
    again = folder.load_phase("unlearned")
    assert again is not None
    assert again.rounds == 2
    assert len(folder.events()) == 1  # it is told once
    folder.save_phase("unlearned", phase(3))  # and the good one stays where it is until there is a better
    emptied(tmp_path / "checkpoints" / "unlearned.safetensors")
    last = folder.load_phase("unlearned")
    assert last is not None
    assert last.rounds == 2


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_all_is_damaged_it_says_what_to_do_and_nothing_begins_anew_by_itself(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = RunFolder(tmp_path)
    folder.save_phase("original", phase(3))
    damage(tmp_path / "checkpoints" / "original.safetensors")
    remedy = r"original\.safetensors is damaged.*copy from a backup.*delete original\.\* in .*checkpoints"
    with pytest.raises(StorageError, match=remedy) as caught:
        folder.load_phase("original")
    assert caught.value.exit_code == 5
    folder.path.joinpath("checkpoints", "original.previous.safetensors").write_bytes(b"damaged too")
    with pytest.raises(StorageError, match=remedy.replace("original", r"original\.previous", 1)):
        folder.load_phase("original")
    assert checkpoints(folder) == {"original.safetensors", "original.previous.safetensors"}


def test_killed_between_the_two_renames_the_one_before_is_there(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    digests = three_rounds(folder)
    (tmp_path / "checkpoints" / "unlearned.safetensors").replace(tmp_path / "checkpoints" / "unlearned.previous.safetensors")
    kept = folder.load_phase("unlearned")
    assert kept is not None
    assert (kept.rounds, digest(kept.weights), folder.events()) == (3, digests[2], [])


def test_a_checkpoint_without_a_spare_has_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for rounds in (1, 2):
        folder.save_phase("kept-unlearned", phase(rounds), spare=False)
    assert checkpoints(folder) == {"kept-unlearned.safetensors"}


# --- what rounds measured ---------------------------------------------------------------------------------------------------


def test_what_rounds_measured_comes_back_as_it_went(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    three_rounds(folder)
    kept = folder.load_phase("unlearned")
    assert kept is not None
    assert folder.rounds_of("unlearned", kept) == [{"round": r, "updates": {"a": r / 7}} for r in (1, 2, 3)]
    assert folder.rounds_of("unlearned", Phase({})) == []
    path = tmp_path / "checkpoints" / "unlearned.rounds.jsonl"
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("more", [b'{"round": 3, "updates": {}}\n', b'{"round": 3, "upd'])
def test_a_line_without_its_checkpoint_is_written_over(tmp_path: Path, more: bytes) -> None:
    folder, now = RunFolder(tmp_path), phase(2)
    folder.save_phase("unlearned", now, {"round": 1})
    path = tmp_path / "checkpoints" / "unlearned.rounds.jsonl"
    path.write_bytes(path.read_bytes() + more)
    kept = folder.load_phase("unlearned")
    assert kept is not None
    assert folder.rounds_of("unlearned", kept) == [{"round": 1}]
    folder.save_phase("unlearned", kept, {"round": 2, "again": True})
    assert folder.rounds_of("unlearned", kept) == [{"round": 1}, {"round": 2, "again": True}]


@pytest.mark.parametrize("damage", [cut_off, emptied, lambda path: flip(path, 8), Path.unlink])
def test_damaged_rounds_are_told(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    folder = RunFolder(tmp_path)
    three_rounds(folder)
    damage(tmp_path / "checkpoints" / "unlearned.rounds.jsonl")
    kept = folder.load_phase("unlearned")
    assert kept is not None
    with pytest.raises(StorageError, match=r"rounds\.jsonl is damaged.*delete unlearned\.\*"):
        folder.rounds_of("unlearned", kept)


# --- events and leftovers ---------------------------------------------------------------------------------------------------


def test_an_event_that_was_cut_off_harms_none_after_it(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.event("started")
    path = tmp_path / "events.jsonl"
    path.write_bytes(path.read_bytes() + b'{"at": "2026-01-01", "event": "st')
    assert [event["event"] for event in folder.events()] == ["started"]
    folder.event("finished")
    folder.event("later")
    assert [event["event"] for event in folder.events()] == ["started", "finished", "later"]
    assert [event["event"] for event in folder.events(2)] == ["later"]


def test_leftovers_of_killed_writers_are_removed_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = RunFolder(tmp_path)
    three_rounds(folder)
    folder.write_json("metrics.json", {})
    (tmp_path / ".hidden").touch()
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # as if killed before it
        patch.setattr(os, "fsync", disk_full)
        with pytest.raises(StorageError):
            folder.save_phase("unlearned", phase())
        with pytest.raises(StorageError):
            folder.write_json("metrics.json", {"new": 1})
    assert len({path for path in tmp_path.rglob("*") if path.is_file()} - before) == 2
    folder.tidy()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
