"""Whether a process carries a run out is told by a lock that no end of a process leaves behind, and its end by an event."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from excise.common.errors import Interrupted, RequestError, StorageError
from excise.server.carrying import LOCK, carrying_out, is_carried_out
from excise.server.events import FAILED, STOPPED, events_of
from tests.deployment import eventually

HOLDS = "import sys, time; from pathlib import Path; from excise.server.carrying import carrying_out\n"
HOLDS += "with carrying_out(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def test_it_is_known_while_it_lasts_and_not_before_the_first_time(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert is_carried_out(run) is None
    with carrying_out(run):
        assert is_carried_out(run) is True
        with carrying_out(run):  # whoever was taken for dead
            pass
        assert is_carried_out(run) is True
    assert is_carried_out(run) is False
    assert events_of(run) == []


def test_whoever_looks_takes_nothing_from_whoever_comes(tmp_path: Path) -> None:
    with carrying_out(tmp_path):
        pass
    for _ in range(50):
        assert is_carried_out(tmp_path) is False
        with carrying_out(tmp_path):
            assert is_carried_out(tmp_path) is True


def test_a_process_that_was_killed_carries_nothing_out(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDS, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            assert is_carried_out(tmp_path) is True
        finally:
            process.kill()
        eventually(lambda: is_carried_out(tmp_path) is False, 20, "it is held still")  # though nobody took note of its end yet
    assert events_of(tmp_path) == []


@pytest.mark.parametrize("error", [Interrupted("stopped by Ctrl-C"), KeyboardInterrupt()])
def test_a_run_that_is_stopped_says_so(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), carrying_out(tmp_path):
        raise error
    assert [event["event"] for event in events_of(tmp_path)] == [STOPPED]


def test_a_run_that_fails_says_why_in_words_of_ours_alone(tmp_path: Path) -> None:
    for error in (RequestError("no such run"), ValueError("patient 7")):
        with pytest.raises(type(error)), carrying_out(tmp_path):
            raise error
    told = [(event["event"], event["error"], event["message"], event["exit_code"]) for event in events_of(tmp_path)]
    assert told == [(FAILED, "RequestError", "no such run", 2), (FAILED, "ValueError", "", 1)]


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "run" / LOCK).mkdir(parents=True)
    with pytest.raises(StorageError, match="cannot write"), carrying_out(tmp_path / "run"):
        pass
    assert is_carried_out(tmp_path / "run") is None
