"""`excise simulate` as a person calls it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from excise import __version__, cli
from excise.server.dashboard.runs import runs_of
from excise.simulations import engine
from excise.simulations.local_grid import LocalGrid
from tests.scenarios import (
    prepared,
    scenario_file,
    write_npz,
)


def test_json_is_all_of_standard_output(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert code == 0, err
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads(out) == json.loads((folder / "metrics.json").read_text())
    assert "Acceptance rule" in err
    assert "Unlearning: 1 of 2" in err  # in lines, since this is no terminal
    assert str(folder.name) in err.replace("\n", "")
    assert list((tmp_path / "xdg" / "excise").iterdir())


def test_options_stand_in_for_the_scenario(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path), "--seed", 7, "--sites", 5, "--dry-run")
    assert code == 0, err
    shown = tomllib.loads(out)
    assert (shown["seed"], shown["partition"]["sites"]) == (7, 5)
    (tmp_path / "shown.toml").write_text(out)  # it is a scenario file itself
    code, out, err = excise("simulate", "--scenario", tmp_path / "shown.toml", "--dry-run", "--json")
    assert json.loads(out)["seed"] == 7
    assert not (tmp_path / "runs").exists()


def test_the_version_is_told(excise: Callable[..., Any]) -> None:
    code, out, _ = excise("--version")
    assert (code, out) == (0, f"excise {__version__}\n")


def test_what_cannot_be_used_exits_2(tmp_path: Path, excise: Callable[..., Any]) -> None:
    code, out, err = excise("simulate", "brain-mir", "--backend", "inprocess")
    assert (code, out) == (2, "")
    assert "did you mean 'brain-mri'?" in err
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path, training={"round": 1}))
    assert (code, out) == (2, "")
    assert "did you mean 'rounds'?" in err
    assert not (tmp_path / "runs").exists()
    code, out, err = excise("simulate", "--scenario", scenario_file(tmp_path, data={"path": "none.npz"}))
    assert (code, out) == (2, "")
    assert "data.path is" in err
    assert not (tmp_path / "runs").exists()
    assert excise("simulate", "--dry-run", "--scenario", tmp_path / "tiny.toml")[0] == 2
    code, _, err = excise("simulate", "--resume", tmp_path)
    assert code == 2
    assert "is not a run folder" in err
    assert "Traceback" not in err


def test_nothing_to_forget_exits_3(tmp_path: Path, excise: Callable[..., Any]) -> None:
    file = scenario_file(tmp_path, request={"where": "site = site-9"})
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", file)
    assert (code, out) == (3, "")
    assert "Nothing was changed" in err
    assert not list((tmp_path / "runs").rglob("*.safetensors"))


def test_a_missed_quorum_exits_4(tmp_path: Path, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LocalGrid", partial(LocalGrid, dead=[1]))
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert (code, out) == (4, "")
    assert "Silent: site-2." in err
    assert "--resume" in err


def test_a_folder_that_cannot_be_written_exits_5(tmp_path: Path, excise: Callable[..., Any]) -> None:
    (tmp_path / "out").write_text("in the way")
    arguments = ("simulate", "--json", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    code, out, err = excise(*arguments, "--out", tmp_path / "out")
    assert (code, out) == (5, "")
    assert "cannot write" in err
    code, out, err = excise(*arguments, "--cache", tmp_path / "out")
    assert (code, out) == (5, "")


def test_ctrl_c_while_hospitals_are_made_exits_130(
    tmp_path: Path, excise: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr("excise.simulations.run.make_sites", interrupted)
    code, out, err = excise("simulate", "--backend", "inprocess", "--scenario", scenario_file(tmp_path))
    assert (code, out) == (130, "")
    assert "Traceback" not in err


def test_ctrl_c_ends_a_run_within_seconds_and_resume_finishes_it(tmp_path: Path, excise: Callable[..., Any]) -> None:
    file = scenario_file(tmp_path, training={"rounds": 100_000}, rounds={"deadline": 60.0})
    command = [sys.executable, "-m", "excise.cli", "simulate", "--json", "--backend", "inprocess", "--scenario", str(file)]
    root = Path(cli.__file__).parents[1]
    process = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(tmp_path / "xdg")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 90
        while not list(tmp_path.glob("runs/*/checkpoints/original.safetensors")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, out) == (130, "")
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs").iterdir()
    (card,) = runs_of(folder.parent)
    assert (card.state, card.phase) == ("stopped", "training")
    assert f"--resume runs/{folder.name}" in err.replace("\n", "").replace("  ", " ")
    # Nobody can wait for 100,000 rounds: the run is shortened, and then goes on from its checkpoint.
    config = folder / "config.toml"
    config.write_text(config.read_text().replace("rounds = 100000", "rounds = 1"))
    code, out, err = excise("simulate", "--json", "--backend", "inprocess", "--resume", folder)
    assert code == 0, err
    assert json.loads(out)["unlearned"]["digest"]
    assert (folder / "report.html").is_file()


def test_write_npz_is_what_the_tiny_scenario_reads(tmp_path: Path) -> None:
    write_npz(tmp_path, 40)
    _, sites = prepared(tmp_path)
    assert sites.classes == ("0", "1")
