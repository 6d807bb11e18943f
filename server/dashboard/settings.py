"""What a run was to do: the request and the settings in its folder, as far as a view shows them.

A coordinator writes ``plan.toml``, a simulation ``config.toml``. Both are read as plain tables: the classes they are made of
bring torch, and a folder of another release is shown as well.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from excise.common.errors import ExciseError
from excise.common.naming import IDENTIFIERS
from excise.common.predicate import InList, field_tests
from excise.common.predicate_parser import parse
from excise.common.request import ForgetRequest, RequestKind

FILES = ("plan.toml", "config.toml")
IDENTIFYING = IDENTIFIERS | {"StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"}
"""Fields of a predicate whose values tell of one patient: they are not shown."""
_WORDS = {
    RequestKind.DEVICE: "images of a device",
    RequestKind.PATIENTS: "images of patients",
    RequestKind.SAMPLES: "images",
    RequestKind.CLASS: "a whole class",
    RequestKind.SITE: "all of a site",
    RequestKind.LABELS: "labels of images",
}
_TEXTS = frozenset(("where", "forgotten"))
"""Keys of predicates in the settings."""


@dataclass(frozen=True)
class Settings:
    """The settings of one run.

    Attributes
    ----------
    table : the whole file
    request : None when it is missing or none
    kind : "simulated" or "deployed"; empty for a folder with neither file
    problem : why there are none; empty when there are
    """

    table: Mapping[str, Any] = field(default_factory=dict)
    request: ForgetRequest | None = None
    kind: str = ""
    problem: str = ""

    @property
    def scope(self) -> str:
        """What is forgotten, in words, without anything of a patient."""
        return f"{_WORDS[self.request.kind]}: {shown(self.request.where)}" if self.request else ""

    @property
    def sites(self) -> list[str]:
        """Sites that the plan names, or none where it names none."""
        named = self.table.get("site_names")
        return [site for site in named if isinstance(site, str)] if isinstance(named, list) else []

    @property
    def candidates(self) -> dict[str, Mapping[str, Any]]:
        """Tables of the candidates and merges, by name; none of a run that tries one way."""
        told = [*_tables(self.table.get("candidates")), *_tables(self.table.get("merges"))]
        return {one["name"]: one for one in told if isinstance(one.get("name"), str)}

    @property
    def min_count(self) -> int | None:
        """Fewest images of which the sites tell anything, where it is known here: in a simulation."""
        return _count(self.table, "policy", "min_count")

    @property
    def deployed(self) -> bool:
        """Whether the run begins with a model, and trains none."""
        return isinstance(self.table.get("deployed" if self.kind == "deployed" else "after"), str)

    def rounds(self, candidate: str) -> int | None:
        """Most unlearning rounds of a candidate; recovery rounds are not counted."""
        return _count(self.candidates.get(candidate, self.table), "unlearning", "local", "rounds")

    @property
    def training_rounds(self) -> int | None:
        """Rounds of training, and of retraining."""
        return _count(self.table, "training", "rounds")

    def flat(self, candidate: str = "") -> dict[str, Any]:
        """Every setting by its dotted name, with those of the candidate in place of the run's."""
        table = {key: value for key, value in self.table.items() if key not in ("candidates", "merges")}
        own = {key: value for key, value in self.candidates.get(candidate, {}).items() if key != "name"}
        return dict(_flat({**table, **own}))


def read_settings(path: Path) -> Settings:
    """The settings in a run's folder; what is wrong with them stands in `problem`."""
    name = next((name for name in FILES if (path / name).is_file()), "")
    if not name:
        return Settings(problem=f"no {' and no '.join(FILES)}")
    kind = "deployed" if name == FILES[0] else "simulated"
    try:
        table = tomllib.loads((path / name).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        return Settings(kind=kind, problem=f"{name} cannot be read ({type(error).__name__})")
    try:
        return Settings(table, ForgetRequest.model_validate(table.get("request")), kind)
    except (ExciseError, ValueError) as error:
        return Settings(table, None, kind, f"the request in {name} is none ({type(error).__name__})")


@lru_cache(maxsize=512)
def shown(where: str) -> str:
    """A predicate as people may see it: as it is, unless it names a patient by itself.

    >>> shown("StationName = MR7")
    'StationName = MR7'
    >>> shown("PatientID in @withdrawn")
    'PatientID in @withdrawn'
    >>> shown("PatientID = 4711 and class = 1")
    'by PatientID (values are not shown)'
    """
    try:
        tests = list(field_tests(parse(where)))
    except ExciseError:
        return "a predicate that cannot be read"
    naming = sorted({test.field for test in tests if test.field in IDENTIFYING and not isinstance(test, InList)})
    return f"by {', '.join(naming)} (values are not shown)" if naming else where


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _flat(item, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and any(isinstance(item, dict) for item in value):
        for number, item in enumerate(value, 1):
            yield from _flat(item, f"{name}[{number}]")
    elif name.rpartition(".")[2] in _TEXTS:
        yield name, [shown(str(one)) for one in value] if isinstance(value, list) else shown(str(value))
    else:
        yield name, value if isinstance(value, bool | int | float | str | list) else str(value)


def _tables(value: Any) -> list[dict[str, Any]]:
    return [one for one in value if isinstance(one, dict)] if isinstance(value, list) else []


def _count(table: Any, *keys: str) -> int | None:
    for key in keys:
        table = table.get(key) if isinstance(table, Mapping) else None
    return table if isinstance(table, int) and not isinstance(table, bool) else None
