"""The models of a coordinator: which is in use, which one it was made of, and which requests it has forgotten.

    models/<digest>.safetensors   the weights of each, beside server.toml

A model is told to sites by a manifest that the coordinator signs. It comes in two ways: brought in, as the first must be, or
promoted out of a run, which a person does.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from excise.common.canonical import canonical, digest_of
from excise.common.errors import ConfigError, RequestError
from excise.common.signing import public_hex, read_key, sign
from excise.server.life import State
from excise.server.requests import step
from excise.server.setup import SIGNING_KEY
from excise.server.store import Store
from excise.server.store.opening import Change
from excise.server.store.tables import Meta, Model, Run, Statement, now

if TYPE_CHECKING:  # torch takes seconds to import, and whoever only asks which models there are does without it
    from excise.common.models import ModelSpec
    from excise.common.weights import Weights

CURRENT = "current_model"
"""Under this name `meta` keeps the version of the model in use."""
PROMOTED, ROLLED_BACK = "promoted", "rolled back"


@dataclass(frozen=True)
class Version:
    """One model.

    Attributes
    ----------
    requests : ids of all requests that it has forgotten, its ancestors' first
    size : bytes of its file
    """

    version: int
    digest: str
    parent: int | None
    run: str
    state: str
    current: bool
    requests: tuple[str, ...]
    size: int
    manifest: str
    signature: str

    @property
    def spec(self) -> ModelSpec:
        """Its architecture."""
        from excise.common.models import ModelSpec

        return ModelSpec.model_validate(json.loads(self.manifest)["spec"])


@dataclass(frozen=True)
class InUse:
    """The model that is in use after a step.

    Attributes
    ----------
    again : whether the step had been taken before, so that nothing was changed
    """

    version: int
    again: bool = False


def bring_in(store: Store, folder: Path, weights: Path, spec: ModelSpec, by: str, why: str = "") -> int:
    """Take in a model that was made elsewhere, and use it from now on; returns its version, the same for the same weights.

    Raises
    ------
    DataError : the file is no model, or a pickle of more than tensors
    ConfigError : the weights are not of such a model
    StorageError : it cannot be kept
    """
    from excise.common.models import build_model
    from excise.common.weights import digest, load_weights

    loaded = load_weights(weights)
    built = build_model(spec)
    try:
        built.load_state_dict(loaded)
    except RuntimeError as error:
        raise ConfigError(
            f"{weights} is not of the model '{spec.name}' as described: {_mismatch(built.state_dict(), loaded) or error}; "
            "check --model, --classes, --size, --channels, --width"
        ) from None
    _keep(folder, loaded)
    with store.change() as change:
        present = _current(change.session)
        if present is not None and present.digest == digest(loaded):
            return present.version
        made = _register(change, folder, digest(loaded), spec, None, (), "", by, why)
        change.log("model brought in", version=made.version, digest=made.digest, by=by, why=why)
        return made.version


def promote(store: Store, folder: Path, run: str, weights: Path, by: str, why: str) -> InUse:
    """Use the revised model of a run from now on. Its requests become promoted. Twice is once.

    Raises
    ------
    RequestError : its requests are not verified
    ConfigError : another model was promoted since the run began, so that this one would undo it
    DataError, StorageError : the model cannot be read or kept
    """
    from excise.common.models import ModelSpec
    from excise.common.weights import digest, load_weights

    loaded = load_weights(weights)
    with store.change() as change:
        row = _run(change.session, run)
        done = change.session.scalars(select(Model).where(Model.run == run, Model.state == PROMOTED)).first()
        if done is not None:
            if done != _current(change.session):
                raise ConfigError(f"the run '{run}' was promoted as model {done.version}, which is in use no more")
            return InUse(done.version, again=True)
        base, present = change.session.get_one(Model, row.base), _current(change.session)
        if present is None or present.version != base.version:
            raise ConfigError(
                f"the run '{run}' began with model {base.version}, but model {present.version if present else '–'} is in use "
                "now: to use this one would undo what was forgotten since. Draft its requests anew, under other ids"
            )
        sealed = json.loads(row.document)["description_of_modification"]["model_after"]["digest"]
        if digest(loaded) != sealed:
            raise ConfigError(f"{weights} is not the model that the evidence of '{run}' is of: put that one back")
        ids = tuple(json.loads(row.requests))
        step(change, ids, State.PROMOTED, by, why)
        _keep(folder, loaded)
        spec = ModelSpec.model_validate(json.loads(base.manifest)["spec"])
        made = _register(change, folder, sealed, spec, base, ids, run, by, why)
        make_statement(change, folder, row, f"promoted as model {made.version}", by, why)
        change.log("model promoted", version=made.version, digest=made.digest, run=run, by=by, why=why)
        return InUse(made.version)


def roll_back(store: Store, folder: Path, left: int, by: str, why: str) -> InUse:
    """Use the model again that the model `left`, which is in use, was made of. Twice is once.

    Raises
    ------
    ConfigError : it was made of none, or is not in use
    """
    with store.change() as change:
        present, known = _current(change.session), change.session.get(Model, left)
        if present is None or known is None or present.version != left:
            if known is not None and known.state == ROLLED_BACK and present is not None:
                return InUse(present.version, again=True)
            raise ConfigError(f"model {left} is not in use; {f'model {present.version} is' if present else 'none is'}")
        if present.parent is None:
            raise ConfigError(f"model {left} was made of none that could be used again")
        present.state = ROLLED_BACK
        change.session.get_one(Meta, CURRENT).value = str(present.parent)
        if present.run:
            row = _run(change.session, present.run)
            step(change, json.loads(row.requests), State.ROLLED_BACK, by, why)
            make_statement(change, folder, row, f"rolled back to model {present.parent}", by, why)
        change.log("model rolled back", version=present.version, to=present.parent, by=by, why=why)
        return InUse(present.parent)


def run_of(store: Store, name: str) -> Run:
    """A run, as the store knows it.

    Raises
    ------
    RequestError : there is none of this name
    """
    with store.reading() as session:
        return _run(session, name)


def make_statement(change: Change, folder: Path, run: Run, happened: str, by: str, why: str) -> None:
    """Sign what happened to a run after its evidence was made; it becomes a part of the evidence file."""
    key = read_key(folder / SIGNING_KEY)
    earlier = change.session.scalars(select(Statement.text).where(Statement.run == run.name).order_by(Statement.id)).all()
    before = digest_of(earlier[-1]) if earlier else ""
    told = {"evidence": run.digest, "before": before, "happened": happened, "by": by, "why": why, "at": now()}
    text = canonical(told)
    change.session.add(Statement(run=run.name, text=text, key=public_hex(key), signature=sign(key, text.encode())))


def versions(store: Store) -> list[Version]:
    """Every model, the latest first."""
    with store.reading() as session:
        return [_version(session, model) for model in session.scalars(select(Model).order_by(Model.version.desc()))]


def version(store: Store, number: int | None = None) -> Version:
    """One model; the one in use without a number.

    Raises
    ------
    ConfigError : there is none
    """
    with store.reading() as session:
        found = _current(session) if number is None else session.get(Model, number)
        if found is None:
            raise ConfigError(
                "there is no model yet: excise server model FILE brings the deployed one in"
                if number is None
                else f"no model {number}: excise server models lists them"
            )
        return _version(session, found)


def file_of(folder: Path, weights_digest: str) -> Path:
    """Where the weights of a model are."""
    return folder / "models" / f"{weights_digest}.safetensors"


def _mismatch(wanted: Weights, given: Weights) -> str:
    """The first tensor that is missing, of another shape, or too many; torch would name each."""
    for name, tensor in wanted.items():
        if name not in given:
            return f"it has no tensor '{name}'"
        if given[name].shape != tensor.shape:
            return f"'{name}' is {tuple(given[name].shape)}, expected {tuple(tensor.shape)}"
    return next((f"it has a tensor '{name}', which the model has not" for name in given.keys() - wanted.keys()), "")


def _keep(folder: Path, weights: Weights) -> None:
    from excise.common.weights import digest, save_weights

    path = file_of(folder, digest(weights))
    if not path.exists():
        save_weights(weights, path)


def _register(
    change: Change,
    folder: Path,
    weights_digest: str,
    spec: ModelSpec,
    parent: Model | None,
    own: tuple[str, ...],
    run: str,
    by: str,
    why: str,
) -> Model:
    file, key = file_of(folder, weights_digest), read_key(folder / SIGNING_KEY)
    contained = tuple(json.loads(parent.manifest)["requests"]) if parent else ()
    made = Model(
        digest=weights_digest,
        parent=parent.version if parent else None,
        run=run,
        state=PROMOTED,
        manifest="",
        signature="",
    )
    change.session.add(made)
    change.session.flush()  # the database counts versions
    with file.open("rb") as opened:
        sha = hashlib.file_digest(opened, "sha256").hexdigest()
    made.manifest = canonical(
        {
            "format": "excise model 1",
            "version": made.version,
            "digest": weights_digest,
            "file": {"sha256": sha, "bytes": file.stat().st_size},
            "spec": spec.model_dump(mode="json"),
            "parent": {"version": parent.version, "digest": parent.digest} if parent else None,
            "requests": [*contained, *own],
            "run": run,
            "by": by,
            "why": why,
            "at": now(),
        }
    )
    made.signature = sign(key, made.manifest.encode())
    change.session.get_one(Meta, CURRENT).value = str(made.version)
    return made


def _current(session: Session) -> Model | None:
    number = session.get_one(Meta, CURRENT).value
    return session.get_one(Model, int(number)) if number else None


def _run(session: Session, name: str) -> Run:
    found = session.get(Run, name)
    if found is None:
        raise RequestError(f"no run '{name}'")
    return found


def _version(session: Session, model: Model) -> Version:
    told = json.loads(model.manifest)
    return Version(
        version=model.version,
        digest=model.digest,
        parent=model.parent,
        run=model.run,
        state=model.state,
        current=session.get_one(Meta, CURRENT).value == str(model.version),
        requests=tuple(told["requests"]),
        size=told["file"]["bytes"],
        manifest=model.manifest,
        signature=model.signature,
    )
