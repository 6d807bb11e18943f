"""`excise bench`: what it shows, a user's own method, and what it says of what it does not know."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from excise.simulations.contest import cli
from excise.simulations.contest.scenarios import SCENARIOS
from tests.deployment import ROOT
from tests.scenarios import scenario_file
from tests.simulations.contest.made import record

PAGE = ROOT / "docs" / "benchmark.md"
Excise = Callable[..., tuple[int, str, str]]


def test_the_method_of_the_documentation_stands_in_the_table_beside_others(tmp_path: Path, excise: Excise) -> None:
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code
    assert len(code[1].splitlines()) <= 40
    (tmp_path / "mine.py").write_text(code[1])  # the command runs in this folder
    file = scenario_file(tmp_path)
    options = ("--scenario", str(file), "--only", "fine-tune (one place)", "--seeds", "1", "--trials", "1")
    ended, told, error = excise("bench", *options, "--method", "mine:MINE", "--home", str(tmp_path / "home"))
    assert ended == 0, error
    for words in ("original", "retrained", "ascent and descent", "fine-tune", "ToW", "tiny, one seed"):
        assert words in told


def test_make_computes_each_quick_scenario() -> None:
    (line,) = [line for line in (ROOT / "Makefile").read_text().splitlines() if "--jobs" in line]
    assert re.findall(r"quick-(\S+)", line) == list(cli.QUICK)


def test_numbers_are_whole_in_a_narrow_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    cli.print_records([record("a method with a name that is long (one place)", tow=0.123)])
    told = capsys.readouterr().out
    assert "0.123" in told
    assert "…" not in told


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--scenario", "brain-mir"), "unknown scenario 'brain-mir'.*brain-mri"),
        (("--only", "SCRAP"), "no method 'SCRAP'"),
        (("--quick", "--full"), "choose one of them"),
        (("--method", "nowhere:X"), "there is no module 'nowhere'"),
        (("--scenario", "none.toml"), "no scenario file at none.toml"),
        (("--shadows", "7"), "shadow models come in pairs"),
    ],
)
def test_what_is_not_known_is_told(excise: Excise, tmp_path: Path, options: tuple[str, ...], reason: str) -> None:
    code, _, error = excise("bench", *options, "--home", str(tmp_path))
    assert code == 2
    assert re.search(reason, error)


def test_without_optuna_it_says_what_to_install(excise: Excise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "find_spec", lambda name: None)
    code, _, error = excise("bench", "--seeds", "1", "--home", str(tmp_path))
    assert (code, "excise[bench]" in error) == (2, True)


def test_without_anything_it_shows_what_there_is(excise: Excise) -> None:
    told: Any = excise("bench")
    assert "--method" in str(told)
    assert "soak" in str(told)


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ((), (["brain-mri"], 3, 12)),
        (("--quick",), (list(cli.QUICK), 1, 1)),
        (("--quick", "--seeds", "2", "--scenario", "brain-mri-site"), (["brain-mri-site"], 2, 1)),
        (("--full", "--trials", "5"), (list(SCENARIOS), 3, 5)),
    ],
)
def test_how_much_is_done_can_be_said_in_a_word(
    excise: Excise, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], asked: tuple[list[str], int, int]
) -> None:
    given: list[Any] = []

    def run(names: list[str], only: Any, own: Any, seeds: int, trials: int, *more: Any) -> list[Any]:
        given.append((names, seeds, trials))
        return []

    monkeypatch.setattr(cli, "run", run)
    assert excise("bench", "--only", "PUF", *options)[0] == 0
    assert given == [asked]
    assert set(cli.QUICK) <= set(SCENARIOS)
