"""The methods of the benchmark by name, as their papers spell them, and a user's own method by its import path."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from excise.common.errors import ConfigError
from excise.simulations.baselines import central, federated
from excise.simulations.baselines.federated.problem import FederatedMethod
from excise.simulations.baselines.method import Method

Named = TypeVar("Named", Method, FederatedMethod)


def by_name(methods: Iterable[Named]) -> dict[str, Named]:
    """Methods by their names.

    Raises
    ------
    ValueError : two have the same
    """
    found: dict[str, Named] = {}
    for method in methods:
        if method.name in found:
            raise ValueError(f"two methods are named '{method.name}'")
        found[method.name] = method
    return found


CENTRAL = by_name((*central.OURS, *central.BASELINES))
"""Methods for images in one place, which a site could run on its own."""
FEDERATED = by_name((*federated.OURS, *federated.BASELINES))
"""Methods for a federation."""


def load_method(path: str) -> Method | FederatedMethod:
    """A user's own method: `package.module:NAME`, installed or in the current folder.

    Raises
    ------
    ConfigError : the path is none, there is no such module or name, the module cannot be imported, or what is there is not a
        `Method` or `FederatedMethod`, or has the name of one of ours
    """
    module, _, name = path.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), name)):
        raise ConfigError(f"'{path}' is no import path; expected package.module:NAME")
    imported = _imported(module)
    if not hasattr(imported, name):
        raise ConfigError(f"the module '{module}' has no '{name}'; --method expects package.module:NAME")
    method = getattr(imported, name)
    if not isinstance(method, Method | FederatedMethod):
        kind = f"{method.__name__} class; give an instance" if isinstance(method, type) else type(method).__name__
        raise ConfigError(f"'{path}' is a {kind}, expected a Method or a FederatedMethod of excise.simulations.baselines")
    if method.name in (CENTRAL if isinstance(method, Method) else FEDERATED):
        raise ConfigError(f"'{path}' is named '{method.name}', as a method of the benchmark is; give it another name")
    return method


def _imported(module: str) -> ModuleType:
    here = str(Path.cwd())
    added = here not in sys.path
    if added:  # last, so that nothing there takes the place of what is installed
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            raise ConfigError(f"there is no module '{error.name}', neither installed nor in the current folder") from error
        raise ConfigError(f"the module '{module}' needs '{error.name}', which is not installed") from error
    except Exception as error:  # the user's own code: whatever it raises, it cannot be imported
        raise ConfigError(f"the module '{module}' cannot be imported: {type(error).__name__}: {error}") from error
    finally:
        if added:
            sys.path.remove(here)
