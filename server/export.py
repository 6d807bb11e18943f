"""A model as a folder that others can use: safetensors, its signed manifest, and a model card (Mitchell et al., 2019)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

from excise.common.files import write_atomically
from excise.common.weights import load_weights, save_weights
from excise.server.evidence_pack import pack_of
from excise.server.registry import Version, file_of, version
from excise.server.requests import status
from excise.server.store import Store


def export(store: Store, folder: Path, number: int | None, to: Path) -> Version:
    """Write a model into the folder `to`: model.safetensors, manifest.json and its card, README.md.

    Parameters
    ----------
    number : of the model; the one in use without

    Raises
    ------
    ConfigError : there is no such model
    StorageError : it cannot be written
    """
    chosen = version(store, number)
    save_weights(load_weights(file_of(folder, chosen.digest)), to / "model.safetensors", {"digest": chosen.digest})
    signed = {"manifest": json.loads(chosen.manifest), "signature": chosen.signature}
    write_atomically(to / "manifest.json", json.dumps(signed, indent=2) + "\n")
    write_atomically(to / "README.md", card(store, chosen))
    return chosen


def card(store: Store, chosen: Version) -> str:
    """The card's text, Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), undefined=StrictUndefined, autoescape=select_autoescape()
    )
    environment.filters["three"] = lambda value: "\N{EN DASH}" if value is None else f"{value:.3f}"
    forgotten = [status(store, request).request for request in chosen.requests]
    return environment.get_template("model_card.md.j2").render(
        model=chosen, told=json.loads(chosen.manifest), forgotten=forgotten, impact=_impact(store, chosen)
    )


def _impact(store: Store, chosen: Version) -> dict[str, Any] | None:
    """What was measured of the model; None of one that was brought in."""
    return dict(pack_of(store, chosen.run)["document"]["impact_assessment"]) if chosen.run else None
