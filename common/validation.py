"""Pydantic's complaints in our words: which key, what was expected, the closest known name."""

from __future__ import annotations

import tomllib
import typing
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from excise.common.errors import ConfigError, did_you_mean

M = TypeVar("M", bound=BaseModel)


def read_toml(path: Path, model: type[M], missing: str) -> M:
    """Read a TOML file into `model`.

    Parameters
    ----------
    missing : what is said, before the path, when there is no such file

    Raises
    ------
    ConfigError : no such file, not TOML, or a wrong key or value
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise ConfigError(f"{missing} at {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(explain(error, model, str(path))) from error


def explain(error: ValidationError, model: type[BaseModel], source: str) -> str:
    """One line per fault of `error`, raised while reading `source` into `model`."""
    return "\n".join(f"{source}: {_fault(dict(fault), model)}" for fault in error.errors())


def _fault(fault: dict[str, typing.Any], model: type[BaseModel]) -> str:
    place = ".".join(map(str, fault["loc"])) or "(whole file)"
    if fault["type"] == "extra_forbidden":
        return f"unknown key '{place}': {did_you_mean(str(fault['loc'][-1]), _keys_at(model, fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"missing key '{place}'"
    if not fault["loc"]:  # the input is the whole file, which its reader has
        return f"{place}: {fault['msg']}"
    return f"{place}: {fault['msg']}, got {fault['input']!r}"


def _keys_at(model: type[BaseModel], location: Iterable[int | str]) -> list[str]:
    """Names of the fields of the model found by following `location` from `model`."""
    for step in location:
        field = model.model_fields.get(str(step))
        nested = [t for t in _types(field.annotation) if issubclass(t, BaseModel)] if field else []
        if nested:
            model = nested[0]
    return list(model.model_fields)


def _types(annotation: object) -> list[type]:
    if isinstance(annotation, type):
        return [annotation]
    return [t for option in typing.get_args(annotation) for t in _types(option)]
