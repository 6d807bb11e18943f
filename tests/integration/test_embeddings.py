"""Where models put the images, through the real apps: the same as if all images were in one place, and never at any price."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict

from excise.client.rounds.features import features_of
from excise.client.site import open_site
from excise.common import messages as m
from excise.common.embedding import CELLS, FARTHEST, GROUPS
from excise.common.models import build_model
from excise.common.weights import Weights, digest, load_weights, snapshot
from excise.server import embeddings
from excise.server.embeddings import EMBEDDINGS, embed
from excise.server.federation import Federation
from excise.server.plan import Plan
from excise.server.record import RunFolder
from excise.simulations.engine import simulated_client
from excise.simulations.local_grid import LocalGrid
from excise.simulations.sites import Sites
from tests.scenarios import FEATURES, asked_of, events, hurried, merged, numbers, pictures, prepared, run, same, write_npz

Json = dict[str, Any]
ASKED: Json = {
    "verification": {"embeddings": True},
    "request": {"where": "patient in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20)"},
    "training": {"rounds": 1},
}


def of(home: Path, **changes: Any) -> tuple[Plan, Sites]:
    write_npz(home, 300)
    plan, sites = prepared(home, **merged(ASKED, changes))
    return hurried(plan), sites


def embedded_at(app: Callable[[Message, Context], Message], plan: Plan, folder: Path) -> Json:
    """The embedding alone, of two new models, with the sites of one client app."""
    grid = LocalGrid(simulated_client(()), plan.sites)
    grid._app = app  # type: ignore[assignment]
    federation = Federation(grid, plan, RunFolder(folder))
    federation.gather()
    return embed(federation, *(snapshot(build_model(plan.model, seed)) for seed in (0, 1)))


def page(folder: Path) -> Json:
    told: Json = json.loads((folder / EMBEDDINGS).read_text())
    return told


def refusals(folder: Path) -> list[tuple[str, str]]:
    told = [event for event in events(folder) if event["event"] == "refused"]
    return [(event["site"], event["code"]) for event in told if event["round"] in ("moments", "embedding")]


def not_measured(folder: Path) -> list[list[str]]:
    return [event["codes"] for event in events(folder) if event["event"] == "not_measured" and event["what"] == "embeddings"]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Json, Path, Plan, Sites]:
    home = tmp_path_factory.mktemp("embedded")
    plan, sites = of(home)
    return run(plan, sites, home / "run"), home / "run", plan, sites


def test_as_if_all_images_were_in_one_place(embedded: tuple[Json, Path, Plan, Sites]) -> None:
    """The slow, obvious way: all features in one array, their singular value decomposition, rounded."""
    _, folder, plan, sites = embedded
    original = RunFolder(folder).load_phase("original")
    assert original is not None
    models = (original.weights, load_weights(folder / "model.safetensors"))
    rows: list[tuple[str, int, int]] = []
    features: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for path in sites.configs:
        site = open_site(path)
        sets = site.select(plan.request)
        for group, index in enumerate((sets.forget, sets.retain, sets.reference)):
            rows += [(site.config.name, group, int(c)) for c in site.y_N[index]]
            for x, weights in zip(features, models, strict=True):
                x.append(_features(plan, weights, site.x[index]))
    before, after = map(np.concatenate, features)
    mean = before.mean(0)
    axes = np.linalg.svd(before - mean)[2][:2]
    axes *= np.sign(axes[[0, 1], np.abs(axes).argmax(1)])[:, None]
    unit = np.sqrt((((before - mean) @ axes.T) ** 2).mean())
    places = [np.clip(np.rint((x - mean) @ axes.T / unit * CELLS), -FARTHEST, FARTHEST) / CELLS + 0.0 for x in (before, after)]
    told = page(folder)
    for name, its in told["sites"].items():
        wanted = [(*b, *a, g, c) for (site_, g, c), b, a in zip(rows, *places, strict=True) if site_ == name]
        found = [(*b, *a, g, c) for b, a, g, c in zip(its["before"], its["after"], its["group"], its["class"], strict=True)]
        assert found != wanted  # another order
        assert sorted(found) == sorted(wanted)
    assert sum(len(its["group"]) for its in told["sites"].values()) == len(rows)
    share = ((before - mean) @ axes.T).var(0) / (before - mean).var(0).sum()
    assert told["explained"] == pytest.approx(share.tolist())


def _features(plan: Plan, weights: Weights, x: torch.Tensor) -> np.ndarray:
    model = build_model(plan.model)
    model.load_state_dict(weights)
    return features_of(model.eval(), x).double().numpy()


def test_what_the_run_keeps_of_it(embedded: tuple[Json, Path, Plan, Sites]) -> None:
    results, folder, _, sites = embedded
    told, original = page(folder), RunFolder(folder).load_phase("original")
    assert told.keys() == {"model_before", "model_after", "explained", "groups", "classes", "sites"}
    assert original is not None
    assert told["model_before"] == digest(original.weights)
    assert told["model_after"] == results["unlearned"]["digest"]
    assert (told["groups"], told["classes"]) == (list(GROUPS), ["0", "1"])
    assert list(told["sites"]) == ["site-1", "site-2", "site-3"]
    (event,) = [event for event in events(folder) if event["event"] == "embeddings"]
    counted = Counter(GROUPS[g] for its in told["sites"].values() for g in its["group"])
    assert event.keys() == {"at", "event", "explained", "sites", "points"}  # counts alone
    assert (event["sites"], event["points"]) == (3, counted)
    found = results["verification"]["embeddings"]
    assert found["points"] == counted
    assert found["cost"]["passes"] == 3 * sum(counted.values())
    assert found["cost"]["bytes_down"] > 0
    site = open_site(sites.configs[0])
    identifiers = {row.item for row in site.scan.rows} | {row.patient for row in site.scan.rows}
    assert not {key for its in told["sites"].values() for key in its} & identifiers


def test_the_model_and_its_scores_are_those_of_a_run_without(embedded: tuple[Json, Path, Plan, Sites], tmp_path: Path) -> None:
    results, _, _, _ = embedded
    plan, sites = of(tmp_path, verification={"embeddings": False})
    plain = run(plan, sites, tmp_path / "run")
    blank = {"retrained": {"pooled": {}}}
    assert same(numbers(plain | blank), numbers(results | blank))
    assert plain["unlearned"]["cost"]["passes"] == results["unlearned"]["cost"]["passes"]
    assert plain["verification"]["embeddings"] is None
    assert not (tmp_path / "run" / EMBEDDINGS).exists()
    assert asked_of(plan, sites, tmp_path / "again", m.MomentsQuery, m.EmbeddingQuery) == []


@pytest.mark.parametrize("when", ["before the axes are kept", "before the points", "before they are kept", "after"])
def test_an_interrupted_run_goes_on_and_ends_alike(
    embedded: tuple[Json, Path, Plan, Sites], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    _, folder, _, _ = embedded
    plan, sites = of(tmp_path)

    class Killed(Exception):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        if when == "before the points":
            patch.setattr(embeddings, "_points", killed)
        elif when == "before they are kept":
            patch.setattr(RunFolder, "write_json", killed)
        else:
            saved, left = RunFolder.save_phase, 0 if when == "before the axes are kept" else 1

            def save(folder: RunFolder, name: str, *given: Any, **named: Any) -> None:
                nonlocal left
                if name == embeddings.CHECKPOINT:
                    if not left:
                        raise Killed
                    left -= 1
                saved(folder, name, *given, **named)

            patch.setattr(RunFolder, "save_phase", save)
        with pytest.raises(Killed):
            run(plan, sites, tmp_path / "run")
    asked = asked_of(plan, sites, tmp_path / "run", m.MomentsQuery)
    assert len(asked) == (3 if when == "before the axes are kept" else 0)  # what was done is not done again
    assert page(tmp_path / "run") == page(folder)
    assert asked_of(plan, sites, tmp_path / "run", m.EmbeddingQuery) == []


def test_points_of_other_models_are_not_taken_for_those_of_this_one(tmp_path: Path) -> None:
    """As after a coordinator's operator removed checkpoints, to unlearn anew."""
    plan, sites = of(tmp_path)
    found = []
    for seed in (1, 2):
        federation = Federation(LocalGrid(simulated_client(sites.configs), 3), plan, RunFolder(tmp_path / "run"))
        federation.gather()
        embed(federation, snapshot(build_model(plan.model, 0)), snapshot(build_model(plan.model, seed)))
        found.append(page(tmp_path / "run"))
    assert found[0]["model_before"] == found[1]["model_before"]
    assert found[0]["model_after"] != found[1]["model_after"]
    assert found[0]["sites"] != found[1]["sites"]


def test_a_site_that_does_not_allow_it_sends_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    plan, sites = of(tmp_path)
    toml = sites.configs[1]
    toml.write_text(toml.read_text().replace("embeddings = true", "embeddings = false"))
    sent: list[tuple[int, RecordDict]] = []
    app = simulated_client(sites.configs)

    def listening(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type in (m.MomentsQuery.KIND, m.EmbeddingQuery.KIND):
            sent.append((message.metadata.dst_node_id, reply.content))
        return reply

    found = embedded_at(listening, plan, tmp_path / "run")
    assert list(page(tmp_path / "run")["sites"]) == ["site-1", "site-3"]
    assert refusals(tmp_path / "run") == [("site-2", "forbidden")]
    (refused,) = [record for node, record in sent if node == 101]
    assert list(refused) == ["message"]
    assert m.Failure.from_record(refused).code == "forbidden"
    assert found["sites"] == 2


def test_where_no_site_allows_it_there_is_none_and_the_run_ends(tmp_path: Path) -> None:
    plan, sites = of(tmp_path, policy={"embeddings": False})
    results = run(plan, sites, tmp_path / "run")
    assert results["verification"]["embeddings"] == {}
    assert not_measured(tmp_path / "run") == [["forbidden"]]
    assert not (tmp_path / "run" / EMBEDDINGS).exists()
    assert events(tmp_path / "run")[-1]["event"] == "finished"


def test_of_few_images_nothing_is_shown(tmp_path: Path) -> None:
    plan, sites = of(tmp_path, policy={"min_count": 6}, request={"where": "site = site-2 and patient in (1, 2, 3)"})
    embedded_at(simulated_client(sites.configs), plan, tmp_path / "run")
    told = page(tmp_path / "run")
    for its in told["sites"].values():
        assert min(Counter(zip(its["group"], its["class"], strict=True)).values()) >= 6
    assert 0 not in {g for its in told["sites"].values() for g in its["group"]}


def test_images_with_any_number_of_labels_have_no_class(tmp_path: Path) -> None:
    images, labels = pictures(300)
    np.savez(tmp_path / "images.npz", images=images, labels=np.stack([labels, 1 - labels], 1), patients=np.arange(300) // 2)
    plan, sites = prepared(tmp_path, **merged(ASKED, {"model": {"multi_label": True}}))
    embedded_at(simulated_client(sites.configs), plan, tmp_path / "run")
    told = page(tmp_path / "run")
    assert told["classes"] == []
    assert {c for its in told["sites"].values() for c in its["class"]} == {-1}
    assert {g for its in told["sites"].values() for g in its["group"]} == {0, 1, 2}


def test_where_no_site_has_enough_images_it_is_not_measured(tmp_path: Path) -> None:
    plan, sites = of(tmp_path, verification={"embedding_points": 2})
    assert embedded_at(simulated_client(sites.configs), plan, tmp_path / "run") == {}
    assert not_measured(tmp_path / "run") == [["too_few"]]


# --- sites that answer nonsense --------------------------------------------------------------------------------------------


def lying(sites: Sites, kind: type[m.Message], lie: Callable[[RecordDict], RecordDict]) -> Callable[..., Message]:
    """The client app, in which the second site's answers of one kind are changed on their way."""
    app = simulated_client(sites.configs)

    def answer(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type == kind.KIND and message.metadata.dst_node_id == 101:
            return Message(lie(reply.content), reply_to=message)
        return reply

    return answer


def points(**changed: Callable[[tuple[float, ...]], tuple[float, ...]]) -> Callable[[RecordDict], RecordDict]:
    def lie(record: RecordDict) -> RecordDict:
        honest = m.EmbeddingReply.from_record(record)
        return replace(honest, **{name: change(getattr(honest, name)) for name, change in changed.items()}).to_record()

    return lie


def raw(**changed: Any) -> Callable[[RecordDict], RecordDict]:
    def lie(record: RecordDict) -> RecordDict:
        told = record["message"]
        assert isinstance(told, ConfigRecord)
        record["message"] = ConfigRecord({**told, **changed})
        return record

    return lie


def tenfold(record: RecordDict) -> RecordDict:
    honest = m.EmbeddingReply.from_record(record)
    return m.EmbeddingReply(
        before=honest.before * 10, after=honest.after * 10, groups=honest.groups * 10, labels=honest.labels * 10, passes=1
    ).to_record()


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (points(before=lambda x: x[:-1]), "shapes"),
        (points(labels=lambda x: (*x, 0.0)), "shapes"),
        (points(labels=lambda x: (2.0, *x[1:])), "labels"),
        (points(groups=lambda x: (7.0, *x[1:])), "labels"),
        (points(after=lambda x: (0.25, *x[1:])), "range"),
        (points(after=lambda x: (1e300, *x[1:])), "range"),
        (tenfold, "points"),
        (raw(before=[float("nan")]), "malformed"),
        (raw(passes="many"), "malformed"),
        (lambda _: RecordDict(), "malformed"),
    ],
    ids=["shape", "labels", "class", "group", "off the grid", "far", "too many", "nan", "text", "nothing"],
)
def test_points_that_cannot_be_are_refused_and_whose_they_are_is_said(
    tmp_path: Path, lie: Callable[[RecordDict], RecordDict], code: str
) -> None:
    plan, sites = of(tmp_path, verification={"embedding_points": 60})
    embedded_at(lying(sites, m.EmbeddingQuery, lie), plan, tmp_path / "run")
    assert refusals(tmp_path / "run") == [("site-2", code)]
    assert list(page(tmp_path / "run")["sites"]) == ["site-1", "site-3"]


@pytest.mark.parametrize(
    ("lie", "code"),
    [
        (raw(mean=[0.0, float("inf")]), "malformed"),
        (raw(covariance=[1.0]), "shapes"),
        (raw(images=-5), "shapes"),
        (raw(images=0), "shapes"),
        (raw(mean=[1e200] * FEATURES), "range"),
    ],
    ids=["infinite", "shape", "negative", "none", "far"],
)
def test_moments_that_cannot_be_are_refused_and_that_site_shows_no_points(
    tmp_path: Path, lie: Callable[[RecordDict], RecordDict], code: str
) -> None:
    plan, sites = of(tmp_path)
    embedded_at(lying(sites, m.MomentsQuery, lie), plan, tmp_path / "run")
    assert refusals(tmp_path / "run") == [("site-2", code)]
    assert list(page(tmp_path / "run")["sites"]) == ["site-1", "site-3"]


def test_a_site_whose_features_are_others_does_not_turn_the_axes(tmp_path: Path) -> None:
    plan, sites = of(tmp_path)
    embedded_at(
        lying(sites, m.MomentsQuery, raw(mean=[0.0] * 3, covariance=[1.0, 0.0, 0.0, 1.0, 0.0, 1.0])), plan, tmp_path / "run"
    )
    assert len(page(tmp_path / "run")["sites"]) == 3  # its points are on the others' axes


@pytest.mark.parametrize("kind", [m.MomentsQuery, m.EmbeddingQuery])
def test_a_silent_site_does_not_stop_the_run(tmp_path: Path, kind: type[m.Message]) -> None:
    plan, sites = of(tmp_path)
    app = simulated_client(sites.configs)

    def dies(message: Message, context: Context) -> Message:
        if message.metadata.message_type == kind.KIND and message.metadata.dst_node_id == 101:
            raise RuntimeError
        return app(message, context)

    embedded_at(dies, plan, tmp_path / "run")
    assert refusals(tmp_path / "run") == [("site-2", "no_answer")]
    assert list(page(tmp_path / "run")["sites"]) == ["site-1", "site-3"]
