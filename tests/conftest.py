"""What holds for every test: Flower keeps quiet and to itself, arithmetic uses one thread, hypothesis has no deadline."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import pytest

_flower_home = tempfile.TemporaryDirectory(prefix="excise-flower-")  # removed when the interpreter ends

# Flower and the arithmetic libraries read these when they are first imported. pytest reads this file before any test module,
# and Ray's workers inherit them.
os.environ.update(
    FLWR_HOME=_flower_home.name,  # never the developer's own connections and runs
    FLWR_TELEMETRY_ENABLED="0",
    FLWR_DISABLE_UPDATE_CHECK="1",
    FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION="1",  # else `flwr run` may swap torch for another release
    OMP_NUM_THREADS="1",  # sums of floats depend on the number of threads, and so would golden values
    MKL_NUM_THREADS="1",
)

# A first example is slow when it is the one that imports torch, so no deadline. CI tests the same examples every time: a
# failure there is the change's, not chance's.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "default")


def pytest_configure() -> None:
    """Hold torch to one thread, whatever it made of the environment, and let what tests start hear Ctrl-C."""
    import torch

    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # of a shell that runs the suite in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def excise(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs the command in a folder of its own; returns exit code, standard output and standard error."""
    from excise import cli  # after the environment above

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["excise", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return (code or 0, *capfd.readouterr())

    return call
