"""A point for each image: on a grid, in an order that tells nothing, none of few images, and only where the site allows it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch
from hypothesis import given
from hypothesis import strategies as st

from excise.client import rounds
from excise.client.config import SiteConfig, read_site_config
from excise.client.embedding import cells, chosen, moments, sketch
from excise.client.rounds.features import features_of
from excise.client.rounds.model import SiteFailure
from excise.client.site import Site, open_site
from excise.common.embedding import CELLS, DIMS, FARTHEST, GROUPS, UNTOLD
from excise.common.errors import ConfigError, MessageError, SiteError
from excise.common.messages import EmbeddingQuery, EmbeddingReply, MomentsQuery, MomentsReply
from excise.common.models import ModelSpec, build_model
from excise.common.request import ForgetRequest, RequestKind
from excise.common.weights import Weights, snapshot
from tests.dicoms import write_hospital

SPEC = ModelSpec(size=16, width=0.05)
DEVICE = ForgetRequest(id="mr7", kind=RequestKind.DEVICE, where="StationName = MR7", reason="r")
BEFORE, AFTER = (snapshot(build_model(SPEC, seed)) for seed in (0, 1))
F = 10  # features of that model: 192 × 0.05
AXES = np.linalg.qr(np.random.default_rng(0).normal(size=(F, 2)))[0].T
UNIT = 1e-4


# --- the arithmetic --------------------------------------------------------------------------------------------------------


def test_few_features_stay_as_they_are_and_many_keep_their_distances() -> None:
    np.testing.assert_array_equal(sketch(DIMS), np.eye(DIMS))
    x = np.random.default_rng(0).normal(size=(60, 512)) * 2.0 ** -np.arange(512)[::-1].clip(0, 8)
    y = x @ sketch(512)
    assert y.shape == (60, DIMS)
    pairs = np.triu_indices(60, 1)
    ratio = [np.linalg.norm(v[pairs[0]] - v[pairs[1]], axis=1) for v in (y, x)]
    assert np.mean(ratio[0] / ratio[1]) == pytest.approx(1, abs=0.1)
    assert np.std(ratio[0] / ratio[1]) < 0.2


def test_the_sketch_is_the_same_everywhere() -> None:
    """Written down: sites of one run may have other versions of numpy."""
    signs = np.sign(sketch(100))
    assert signs[0, :8].tolist() == [1, 1, 1, -1, 1, 1, 1, -1]
    assert signs[99, -8:].tolist() == [-1, -1, -1, 1, -1, -1, -1, 1]
    assert signs.sum() == -36
    assert set(np.abs(sketch(100)).flatten()) == {1 / math.sqrt(DIMS)}


_images = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=60)


@given(images=_images, most=st.integers(1, 20), min_count=st.integers(1, 6), exact=st.booleans())
def test_who_is_shown(images: list[tuple[int, int]], most: int, min_count: int, exact: bool) -> None:
    group_N, label_N = (np.array([image[i] for image in images], dtype=np.int64) for i in (0, 1))
    keys = [f"{i * 7919 % 101:03d}" for i in range(len(images))]
    rows = chosen(group_N, label_N, keys, most, min_count, exact)
    assert len(set(rows.tolist())) == len(rows)
    there, told = Counter(images), Counter(images[i] for i in rows)
    for image, count in told.items():
        assert there[image] >= count >= min_count
        assert exact or count % min_count == 0
    for group in range(3):
        of_group = sum(count for (g, _), count in told.items() if g == group)
        enough = sum(count for (g, _), count in there.items() if g == group and count >= min_count)
        assert of_group <= most
        if exact and enough <= most:
            assert of_group == enough
    for i in rows:  # of two images of one class and group, the one with the smaller key
        before = [j for j in range(len(images)) if images[j] == images[i] and keys[j] < keys[i]]
        assert set(before) <= set(rows.tolist())


def test_cells_are_whole_numbers_that_end_somewhere() -> None:
    x = np.array([[0.0, 0.0, 9.0], [1.0, -1.0, 9.0], [1e9, -1e9, 9.0], [0.001, -0.001, 9.0]])
    found = cells(x, np.zeros(3), np.eye(2, 3), 1.0)
    assert found.tolist() == [[0, 0], [CELLS, -CELLS], [FARTHEST, -FARTHEST], [0, 0]]
    assert not np.signbit(found[3]).any()  # minus zero would be a number of its own
    half = cells(x[1:2], np.array([1.0, -1.0, 0.0]), np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]), 2.0)
    assert half.tolist() == [[0, 0]]


# --- at a site -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return with_policy(open_site(write_hospital(tmp_path_factory.mktemp("hospital"), patients=80)), exact_counts=True)


def with_policy(site: Site, **policy: Any) -> Site:
    changed = site.config.policy.model_copy(update=policy)
    return replace(site, config=site.config.model_copy(update={"policy": changed}))


def asked(points: int = 500, weights: Weights = BEFORE, dims: int = DIMS) -> MomentsQuery:
    return MomentsQuery(model=SPEC, weights=weights, request=DEVICE, points=points, dims=dims)


def query(points: int = 500, **changed: Any) -> EmbeddingQuery:
    told = {"mean": (0.0,) * F, "axes": tuple(AXES.flatten().tolist()), "unit": UNIT}
    models = {"before": BEFORE, "after": AFTER}
    return EmbeddingQuery(**{"model": SPEC, "candidates": models, "request": DEVICE, "points": points, **told, **changed})


def features(site: Site, rows: torch.Tensor, weights: Weights) -> np.ndarray:
    model = build_model(SPEC)
    model.load_state_dict(weights)
    return features_of(model.eval(), site.x[rows]).double().numpy()


def points(reply: EmbeddingReply) -> list[tuple[float, ...]]:
    before, after = ([told[2 * i : 2 * i + 2] for i in range(len(reply.groups))] for told in (reply.before, reply.after))
    return [(*b, *a, g, c) for b, a, g, c in zip(before, after, reply.groups, reply.labels, strict=True)]


def expected(site: Site) -> list[tuple[float, ...]]:
    """The points of all images, in the order of the rows of each group."""
    found: list[tuple[float, ...]] = []
    sets = site.select(DEVICE)
    for group, rows in enumerate((sets.forget, sets.retain, sets.reference)):
        before, after = (
            np.clip(np.rint(features(site, rows, weights) @ AXES.T / UNIT * CELLS), -FARTHEST, FARTHEST) + 0.0
            for weights in (BEFORE, AFTER)
        )
        found += [(*b, *a, group, site.y_N[i]) for b, a, i in zip(before, after, rows.tolist(), strict=True)]
    return [tuple(map(float, point)) for point in found]


def test_moments_are_of_retain_forget_and_reference_images(site: Site) -> None:
    sets = site.select(DEVICE)
    rows = torch.cat([sets.forget, sets.retain, sets.reference])
    reply = rounds.moments.answer(site, asked())
    mean, covariance = moments(features(site, rows, BEFORE))
    assert reply.images == reply.passes == len(rows)
    np.testing.assert_allclose(reply.mean, mean, atol=1e-9)
    np.testing.assert_allclose(reply.covariance, covariance[np.triu_indices(F)], atol=1e-9)


def test_every_point_is_of_its_image_before_and_after(site: Site) -> None:
    reply = rounds.embedding.answer(site, query())
    assert sorted(points(reply)) == sorted(expected(site))
    assert reply.passes == 2 * len(reply.groups)
    assert reply.before != reply.after
    assert Counter(reply.groups) == {float(i): len(getattr(site.select(DEVICE), name)) for i, name in enumerate(GROUPS)}


def test_the_order_tells_nothing(site: Site) -> None:
    in_rows = expected(site)
    reply = rounds.embedding.answer(site, query())
    found = [in_rows.index(point) for point in points(reply)]
    assert abs(np.corrcoef(found, np.arange(len(found)))[0, 1]) < 0.4
    assert [int(g) for g in reply.groups] != sorted(int(g) for g in reply.groups)
    assert reply == rounds.embedding.answer(site, query())  # asked twice, told once
    # Another question or another secret: another order, so that points of two answers cannot be joined by their places.
    turned = query(axes=tuple(AXES[::-1].flatten().tolist()))
    moved = points(rounds.embedding.answer(site, query(mean=(1e-15,) * F)))
    assert sorted(moved) == sorted(points(reply))
    assert moved != points(reply)
    back = [(x0, y0, x1, y1, g, c) for y0, x0, y1, x1, g, c in points(rounds.embedding.answer(site, turned))]
    assert sorted(back) == sorted(points(reply))
    assert back != points(reply)
    split = site.config.split.model_copy(update={"key": "another"})
    secret = replace(site, config=site.config.model_copy(update={"split": split}))
    again = points(rounds.embedding.answer(secret, query()))
    assert sorted(again) == sorted(points(reply))
    assert again != points(reply)


def test_the_same_images_are_shown_however_often_and_of_whatever_model_is_asked(site: Site) -> None:
    first = rounds.embedding.shown(site, DEVICE, 9).rows.tolist()
    assert set(first) < set(rounds.embedding.shown(site, DEVICE, 12).rows.tolist())
    reply = rounds.embedding.answer(site, query(points=9))
    assert max(Counter(reply.groups).values()) <= 9
    assert rounds.moments.answer(site, asked(points=12)).images == len(rounds.embedding.shown(site, DEVICE, 12).rows)


def test_a_class_of_few_images_in_a_group_is_not_shown(site: Site) -> None:
    rare = replace(site, y_N=site.y_N.clone())
    forget = site.select(DEVICE).forget
    rare.y_N[forget] = 0
    rare.y_N[forget[:3]] = 1
    few = with_policy(rare, min_count=4)
    reply = rounds.embedding.answer(few, query())
    told = Counter(zip(reply.groups, reply.labels, strict=True))
    assert (0.0, 1.0) not in told
    assert told[0.0, 0.0] == len(forget) - 3
    assert rounds.moments.answer(few, asked()).images == len(reply.groups)  # no difference is left to tell of the three
    nothing = EmbeddingReply(before=(), after=(), groups=(), labels=(), passes=0)
    assert rounds.embedding.answer(with_policy(site, min_count=1000), query()) == nothing


def test_the_number_of_points_tells_no_more_than_other_counts(site: Site) -> None:
    reply = rounds.embedding.answer(with_policy(site, min_count=4, exact_counts=False), query())
    assert reply.groups
    assert all(count % 4 == 0 for count in Counter(zip(reply.groups, reply.labels, strict=True)).values())


def test_too_few_images_for_so_many_numbers_tell_no_moments(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    images = rounds.moments.answer(site, asked()).images
    for per_dim, told in ((images // F, True), (images // F + 1, False)):
        monkeypatch.setattr(rounds.moments, "IMAGES_PER_DIM", per_dim)
        reply = rounds.moments.answer(site, asked())
        assert (reply.images > 0, len(reply.mean) > 0, len(reply.covariance) > 0) == (told,) * 3
        assert reply.passes == images


def test_fewer_dimensions_are_the_first_of_those_there_are(site: Site) -> None:
    np.testing.assert_allclose(sketch(100, 8) * math.sqrt(8), sketch(100)[:, :8] * math.sqrt(DIMS))
    reply, rows = rounds.moments.answer(site, asked(dims=4)), rounds.embedding.shown(site, DEVICE, 500).rows
    np.testing.assert_allclose(reply.mean, (features(site, rows, BEFORE) @ sketch(F, 4)).mean(0), atol=1e-9)
    axes = tuple(np.eye(2, 4).flatten().tolist())
    placed = rounds.embedding.answer(site, query(mean=(0.0,) * 4, axes=axes))
    wanted = np.rint(features(site, rows, BEFORE) @ sketch(F, 4)[:, :2] / UNIT * CELLS).clip(-FARTHEST, FARTHEST) + 0.0
    assert sorted(point[:2] for point in points(placed)) == sorted(map(tuple, wanted.tolist()))
    for dims in (0, -1, DIMS + 1):
        with pytest.raises(MessageError, match="1 to 64 dimensions"):
            rounds.moments.answer(site, asked(dims=dims))


def test_of_several_labels_no_class_is_told(site: Site) -> None:
    labels = torch.nn.functional.one_hot(site.y_N, 2).float()
    config = site.config.model_copy(update={"data": site.config.data.model_copy(update={"multi_label": True})})
    several = replace(site, y_N=labels, config=config)
    spec = SPEC.model_copy(update={"multi_label": True})
    reply = rounds.embedding.answer(several, query(model=spec))
    assert set(reply.labels) == {float(UNTOLD)}
    assert len(reply.groups) == len(expected(site))


@pytest.mark.parametrize("of", ["moments", "embedding"])
def test_features_that_are_not_finite_are_refused(site: Site, of: str) -> None:
    broken = {name: torch.full_like(x, math.nan) if x.is_floating_point() else x for name, x in BEFORE.items()}
    answers: dict[str, Callable[[], object]] = {
        "moments": lambda: rounds.moments.answer(site, asked(weights=broken)),
        "embedding": lambda: rounds.embedding.answer(site, query(candidates={"before": BEFORE, "after": broken})),
    }
    with pytest.raises(SiteFailure, match="not finite") as failed:
        answers[of]()
    assert failed.value.code is SiteError.DIVERGED


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"mean": (0.0,) * (F + 1)}, "expected a mean of 10 numbers"),
        ({"mean": ()}, "1 to 64 dimensions here, not to 0"),
        ({"mean": (0.0,) * (DIMS + 1)}, "1 to 64 dimensions here, not to 65"),
        ({"axes": (1.0,) * F}, "expected a mean of 10 numbers and 2 axes"),
        ({"axes": (1.0, *(0.0,) * (F - 1)) * 2}, "length 1 and at right angles"),
        ({"axes": tuple((1e6 * np.eye(2, F)).flatten().tolist())}, "length 1 and at right angles"),
        ({"unit": 0.0}, "its unit above 0"),
        ({"unit": math.nan}, "its unit above 0"),
        ({"unit": -1.0}, "its unit above 0"),
        ({"candidates": {"before": BEFORE}}, "of the models 'before' and 'after'"),
        ({"candidates": {"before": BEFORE, "after": AFTER, "x": AFTER}}, "of the models 'before' and 'after'"),
    ],
)
def test_axes_that_cannot_be_those_of_one_projection(site: Site, changed: dict[str, Any], reason: str) -> None:
    with pytest.raises(MessageError, match=reason):
        rounds.embedding.answer(site, query(**changed))


def test_a_unit_however_small_draws_no_more_out_of_a_site(site: Site) -> None:
    reply = rounds.embedding.answer(site, query(unit=1e-300))
    assert {abs(cell) for cell in (*reply.before, *reply.after)} <= {0.0, float(FARTHEST)}


def test_nothing_is_asked_of_a_site_without_such_images(site: Site) -> None:
    nobody = with_policy(site, min_count=1000)
    assert rounds.moments.answer(nobody, asked()) == MomentsReply(images=0, mean=(), covariance=(), passes=0)


def test_a_policy_that_allows_it_needs_a_secret(tmp_path: Path) -> None:
    toml = tmp_path / "site.toml"
    raw: dict[str, Any] = {"name": "a", "data": {"path": "x", "classes": ["a", "b"]}, "policy": {"embeddings": True}}
    toml.write_text(tomli_w.dumps(raw))
    with pytest.raises(ConfigError, match=r"policy\.embeddings needs a split\.key of your own"):
        read_site_config(toml)
    toml.write_text(tomli_w.dumps({**raw, "split": {"key": "secret"}}))
    assert read_site_config(toml).policy.embeddings
    assert not SiteConfig.model_validate({**raw, "policy": {}}).policy.embeddings
