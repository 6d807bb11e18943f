"""The methods by name, and a user's own by its import path."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from excise.common.errors import ConfigError
from excise.simulations.baselines.federated.problem import FederatedMethod
from excise.simulations.baselines.method import Method
from excise.simulations.baselines.registry import CENTRAL, FEDERATED, by_name, load_method

MINE = """
from excise.simulations.baselines.federated.problem import Composed, FederatedMethod
from excise.simulations.baselines.method import Knob, Made, Method

MINE = Method("nothing", lambda problem, settings: Made(problem.original, 0), "nowhere", {"luck": Knob(0, 1, 0.5)})
OURS = FederatedMethod("nothing, together", lambda problem, settings: Composed(problem.original, 0, 1), "nowhere")
TAKEN = Method("SCRUB", MINE.run, "nowhere")
OTHER = 3
CLASS = Method
"""
Written = Callable[[str, str], str]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Written:
    """Writes a module into the current folder, from where it is gone again afterwards."""
    monkeypatch.chdir(tmp_path)

    def write(name: str, text: str) -> str:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.delitem(sys.modules, name, raising=False)
        return name

    return write


def test_every_method_of_the_benchmark_is_there() -> None:
    assert [name for name in CENTRAL if not name.startswith("excise")] == [
        "fine-tune", "NegGrad+", "random labels", "CF-k", "EU-k", "SCRUB", "bad teacher", "SalUn", "SSD", "DELETE",
        "Boundary Shrink",
    ]  # fmt: skip
    assert [name for name in FEDERATED if not name.startswith("excise")] == [
        "retrain again", "fine-tune rounds", "projected ascent", "FedEraser", "PUF", "NoT", "FedOSD", "FedQUIT-like",
    ]  # fmt: skip
    assert [name for name in CENTRAL if name.startswith("excise")] == [
        f"excise, {kind}" for kind in ("nearest", "soft", "topk", "calibrated")
    ]
    assert all(method.name == name for name, method in (*CENTRAL.items(), *FEDERATED.items()))


def test_two_methods_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two methods are named 'SCRUB'"):
        by_name((CENTRAL["SCRUB"], CENTRAL["SCRUB"]))


def test_a_user_s_own_method_is_loaded_from_the_current_folder(written: Written) -> None:
    before, module = list(sys.path), written("of_a_user", MINE)
    method = load_method(f"{module}:MINE")
    assert isinstance(method, Method)
    assert (method.name, list(method.knobs)) == ("nothing", ["luck"])
    assert isinstance(load_method(f"{module}:OURS"), FederatedMethod)
    assert sys.path == before


def test_an_installed_method_is_loaded() -> None:
    assert load_method("tests.simulations.test_methods_registry:INSTALLED") is INSTALLED


INSTALLED = Method("installed", CENTRAL["SSD"].run, "nowhere")


@pytest.mark.parametrize(
    "path", ["", "module", "module:", ":NAME", "a b:NAME", "module:NAME.x", "/tmp/module.py:NAME", "..m:N"]
)
def test_what_is_no_import_path_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match=r"is no import path; expected package\.module:NAME"):
        load_method(path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("NOBODY", "the module 'of_a_user' has no 'NOBODY'"),
        ("OTHER", "is a int, expected a Method or a FederatedMethod"),
        ("CLASS", "is a Method class; give an instance"),
        ("TAKEN", "is named 'SCRUB', as a method of the benchmark is"),
    ],
)
def test_what_is_no_method_of_its_own_is_refused(name: str, message: str, written: Written) -> None:
    with pytest.raises(ConfigError, match=message):
        load_method(f"{written('of_a_user', MINE)}:{name}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nobody_has_this", "the module 'broken' needs 'nobody_has_this', which is not installed"),
        ("1 / 0", "the module 'broken' cannot be imported: ZeroDivisionError: division by zero"),
        ("def", "the module 'broken' cannot be imported: SyntaxError"),
        ("from math import nobody", "the module 'broken' cannot be imported: ImportError: cannot import name 'nobody'"),
    ],
)
def test_a_module_that_cannot_be_imported_is_told_from_one_that_is_not_there(
    text: str, message: str, written: Written
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_method(f"{written('broken', text)}:MINE")
    for path, missing in (
        ("nobody_has_this:X", "nobody_has_this"),
        ("excise.nobody.it:X", "excise.nobody"),
        ("math.it:X", "math.it"),
    ):
        with pytest.raises(ConfigError, match=f"there is no module '{missing}', neither installed nor in the current folder"):
            load_method(path)
