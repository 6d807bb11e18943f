"""Pydantic's complaints in our words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from excise.common.validation import explain


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    width: int = Field(1, ge=1)
    height: int = 1


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    name: str
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[Inner, ...] = ()
    named: dict[str, Inner] = {}


def _explained(data: Any) -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(data)
    return explain(caught.value, Outer, "file.toml").splitlines()


@pytest.mark.parametrize(
    ("data", "line"),
    [
        ({}, "missing key 'name'"),
        ({"name": "a", "nmae": 1}, "unknown key 'nmae': did you mean 'name'?"),
        ({"name": "a", "xyz": 1}, "unknown key 'xyz': known: inner, many, maybe, name, named"),
        ({"name": "a", "inner": {"widht": 1}}, "unknown key 'inner.widht': did you mean 'width'?"),
        ({"name": "a", "inner": {"name": 1}}, "unknown key 'inner.name': known: height, width"),
        ({"name": "a", "maybe": {"heigt": 1}}, "unknown key 'maybe.heigt': did you mean 'height'?"),
        ({"name": "a", "many": [{}, {"heigt": 1}]}, "unknown key 'many.1.heigt': did you mean 'height'?"),
        ({"name": "a", "named": {"x": {"heigt": 1}}}, "unknown key 'named.x.heigt': did you mean 'height'?"),
        ({"name": 3}, "name: Input should be a valid string, got 3"),
        ({"name": "a", "inner": {"width": 0}}, "inner.width: Input should be greater than or equal to 1, got 0"),
        ({"name": "a", "many": [{"width": "wide"}]}, "many.0.width: Input should be a valid integer"),
        ("text", "(whole file): Input should be a valid dictionary"),
    ],
)
def test_a_fault_is_told_with_its_place(data: Any, line: str) -> None:
    (found,) = _explained(data)
    assert found.startswith(f"file.toml: {line}")


def test_one_line_for_each_fault() -> None:
    lines = _explained({"nam": 1, "inner": {"width": -1, "depth": 2}})
    assert len(lines) == 4
    assert all(line.startswith("file.toml: ") for line in lines)
