"""Runs that have their revised model, made without rounds, for tests of what comes after."""

from __future__ import annotations

from typing import Any

from excise.common.canonical import canonical, digest_of
from excise.common.signing import read_key, sign
from excise.common.weights import Weights, load_weights, save_weights
from excise.server.evidence_pack import pack_of, sign_as_site
from excise.server.launch import prepare
from excise.server.record import REVISED, RunFolder
from tests.coordinators import Network

MET = {"forget_accuracy": 0.5, "retain_accuracy": 0.9, "held_out_accuracy": 0.9, "membership_auc": 0.5}
COUNTS = {"train": 10, "forget": 2, "retain": 8}


def changed(weights: Weights, by: float) -> Weights:
    return {name: tensor + by if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def ran(made: Network, *requests: Any, by: float = 0.1, met: bool = True, sites: str = "ab", **more: Any) -> str:
    """A run that has its revised model, as the server app leaves it; returns its name."""
    made.approved(*requests)
    folder = prepare(made.store, made.folder, made.config, [one.id for one in requests], None, 0, "Ada")
    base = load_weights(folder / "deployed.safetensors")
    save_weights(changed(base, by), folder / REVISED)
    scores = MET | {"matched_held_out_accuracy": 0.5, "matched_forget_accuracy": 0.5}
    scored = {name: {"held_out_accuracy": 0.9, "held_out_images": 100.0} for name in sites}
    after = scores | ({} if met else {"membership_auc": 0.9})
    record = RunFolder(folder)
    record.event("started", release="0.1.0", source="ab" * 32)
    record.event("refused", round="unlearned", site="b", code="no_answer", incident="")
    record.write_json(
        "metrics.json",
        {
            "sites": dict.fromkeys(sites, COUNTS),
            "commitments": {"a": "ab" * 32, "b": "cd" * 32},
            "original": {"pooled": scores, "sites": scored},
            "unlearned": {"pooled": after, "sites": scored},
            "verification": {
                "membership_auc": {"unlearned": {"value": 0.5, "low": 0.41, "high": None}},
                "worst_site": {"held_out_accuracy": {"site": "b", "value": 0.9, "low": 0.8, "high": 0.95}},
                "resurfacing": {"unlearned": {"forget_accuracy": 0.0123, "beside_unseen": 0.0, "membership_auc": None}},
                "linear_probe": None,
            },
            **more,
        },
    )
    return folder.name


def signed(made: Network, run: str, *sites: str) -> None:
    for site in sites:
        text = canonical(pack_of(made.store, run)["document"])
        key = read_key(made.sites[site].parent / "keys" / "signing.pem")
        sign_as_site(made.store, made.config, site, run, digest_of(text), sign(key, text.encode()))
