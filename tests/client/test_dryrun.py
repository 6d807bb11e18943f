"""A dry run shows what the real rounds would send, and sends nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from excise.client.dryrun import dry_run
from excise.client.requests import Requests
from excise.client.site import open_site
from excise.common.messages import AuditReply, EmbeddingReply, MomentsReply, ProbeReply, ReferenceReply, SiteStatus, SiteUpdate
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import save_weights, snapshot
from tests.dicoms import write_hospital, write_site_toml

SPEC = ModelSpec(name="allcnn", classes=2, size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="retired")


def test_every_round_is_shown_with_its_fields_and_bytes(tmp_path: Path) -> None:
    site = open_site(write_hospital(tmp_path))
    told: list[str] = []
    found = dry_run(site, DEVICE, SPEC, tell=told.append)
    assert told == ["status", "reference", "unlearning", "audit"]
    assert [leaving.kind for leaving in found.leaving] == [
        kind.KIND for kind in (SiteStatus, ReferenceReply, SiteUpdate, AuditReply)
    ]
    assert found.matched["class"] == {"clear": 7, "ill": 7}
    sets = site.select(DEVICE)
    status, _, update, _ = found.leaving
    assert status.fields["message"]["forget"] == len(sets.forget)
    weights = snapshot(build_model(SPEC))
    floats = {name: x for name, x in weights.items() if x.is_floating_point()}
    assert set(update.fields["delta"]) == set(floats)
    assert update.size > sum(4 * x.numel() for x in floats.values())
    assert "CANARY-PATIENT" not in json.dumps([leaving.fields for leaving in found.leaving])


def test_a_class_needs_no_reference(tmp_path: Path) -> None:
    site = open_site(write_hospital(tmp_path))
    request = ForgetRequest(id="ill", kind=RequestKind.CLASS, where="class = ill", reason="r")
    found = dry_run(site, request, SPEC, tell=lambda _: None)
    assert [leaving.kind for leaving in found.leaving] == [kind.KIND for kind in (SiteStatus, SiteUpdate, AuditReply)]


def test_a_linear_probe_is_shown_where_the_request_asks_for_it(tmp_path: Path) -> None:
    request = DEVICE.model_copy(update={"linear_probe": True})
    found = dry_run(open_site(write_hospital(tmp_path)), request, SPEC, tell=lambda _: None)
    assert found.leaving[-1].kind == ProbeReply.KIND
    assert found.leaving[-1].fields["metrics"].keys() == {"deployed/probe_auc"}


def test_points_are_shown_where_the_policy_lets_them_leave(tmp_path: Path) -> None:
    site = open_site(write_hospital(tmp_path))
    changed = site.config.policy.model_copy(update={"embeddings": True})
    told: list[str] = []
    found = dry_run(replace(site, config=site.config.model_copy(update={"policy": changed})), DEVICE, SPEC, tell=told.append)
    assert told[-1] == "embedding"
    moments, places = found.leaving[-2:]
    assert (moments.kind, places.kind) == (MomentsReply.KIND, EmbeddingReply.KIND)
    shown = places.fields["message"]
    assert len(shown["before"]) == len(shown["after"]) == 2 * len(shown["groups"]) > 0


def test_a_request_that_matches_nothing_ends_with_the_status(tmp_path: Path) -> None:
    nobody = DEVICE.model_copy(update={"where": "StationName = MR99"})
    found = dry_run(open_site(write_hospital(tmp_path)), nobody, SPEC, tell=lambda _: None)
    assert [leaving.kind for leaving in found.leaving] == [SiteStatus.KIND]
    assert sum(found.matched["split"].values()) == 0


def test_on_the_command_line(tmp_path: Path, excise: Callable[..., Any]) -> None:
    write_hospital(tmp_path)
    site = write_site_toml(tmp_path, data={"labels": "labels.csv"}, policy={"approval": True, "min_count": 1})
    (tmp_path / "mr7.toml").write_text(DEVICE.to_toml())
    code, out, err = excise("site", "dry-run", tmp_path / "mr7.toml", "--site", site, "--json")
    assert code == 0, err
    assert len(json.loads(out)["leaving"]) == 4
    assert list(Requests(tmp_path)) == []  # a draft is not kept
    save_weights(snapshot(build_model(SPEC.model_copy(update={"width": 0.25}))), tmp_path / "model.safetensors")
    code, out, err = excise(
        "site", "dry-run", tmp_path / "mr7.toml", "--site", site, "--model-weights", tmp_path / "model.safetensors"
    )
    assert code == 0, err
    assert "'mr7' matches 14 images here: StationName = MR7" in out
    assert "bytes would leave" in out
    code, _, err = excise("site", "dry-run", tmp_path / "mr7.toml", "--site", site, "--model", "resnet9000")
    assert code != 0
    assert "resnet9000" in err
