"""The process that a site's app processes are forked from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deployment import ROOT, eventually

NOTHING_LOADED = """
import time
from excise.client.deploy import apps
apps.FLOWER, apps.LOADED = (), "json"
def superexec(order):
    print("ready", flush=True)
    time.sleep(60)
apps._superexec = superexec
apps.main()
"""
"""The two processes without what they load."""


def python(code: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


def test_each_command_is_carried_out_in_a_process_of_its_own_that_ends_as_one() -> None:
    code = """
import atexit, os, subprocess, sys
from excise.client.deploy.apps import serve
def run(command):
    atexit.register(lambda: os.write(1, f"{os.getpid()} {' '.join(command)}\\n".encode()))  # in one piece
    subprocess.run(["true"], check=True)  # an app may wait for a process
    raise SystemExit(3)  # as Flower ends an app
print(os.getpid(), "loaded", flush=True)
serve(sys.stdin, run)
"""
    told, errors = python(code).communicate(
        '["flwr-clientapp", "--token", "a"]\n["flwr-clientapp", "--token", "b c"]\n', timeout=60
    )
    assert not errors
    lines = dict(line.split(" ", 1) for line in told.splitlines())
    assert sorted(lines.values()) == ["flwr-clientapp --token a", "flwr-clientapp --token b c", "loaded"]
    assert len(lines) == 3, "three processes"


def test_what_is_loaded_can_be_forked_from() -> None:
    code = """
import threading
from importlib import import_module
from excise.client.deploy.apps import FLOWER, LOADED
for module in (*FLOWER, LOADED):
    import_module(module)
import torch
print(threading.active_count(), torch.cuda.is_initialized())
"""
    told, errors = python(code).communicate(timeout=120)
    assert told == "1 False\n", errors


@pytest.fixture
def superexec() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A SuperExec that does nothing, and the id of the process that apps are forked from."""
    process = python(NOTHING_LOADED)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process, int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())
    process.kill()
    process.communicate()


def test_a_superexec_whose_loaded_process_died_ends_and_says_why(superexec: tuple[subprocess.Popen[str], int]) -> None:
    process, loaded = superexec
    os.kill(loaded, signal.SIGKILL)
    assert process.communicate(timeout=30) == ("", "the process from which apps are forked has ended\n")
    assert process.returncode == 1


def test_a_loaded_process_does_not_outlive_its_superexec(superexec: tuple[subprocess.Popen[str], int]) -> None:
    process, loaded = superexec
    process.kill()
    process.wait()
    eventually(lambda: not Path(f"/proc/{loaded}").exists(), 30, "it is still there")
