"""The axes found from moments are those of all images put together, which nobody ever has."""

from __future__ import annotations

import json
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA

from excise.client.embedding import moments
from excise.server.projection import Projection, projection


def of_sites(sites: list[np.ndarray]) -> Projection | None:
    told = [moments(x) for x in sites]
    upper = [covariance[np.triu_indices(len(mean))].tolist() for mean, covariance in told]
    return projection([len(x) for x in sites], [mean.tolist() for mean, _ in told], upper)


@given(
    sizes=st.lists(st.integers(4, 40), min_size=1, max_size=5),
    dims=st.integers(2, 12),
    seed=st.integers(0, 10**6),
    far=st.sampled_from([0.0, 1.0, 1e4]),
)
def test_as_if_all_images_were_in_one_place(sizes: list[int], dims: int, seed: int, far: float) -> None:
    rng = np.random.default_rng(seed)
    scale = 2.0 ** -np.arange(dims)  # axes that can be told apart
    sites = [rng.normal(size=(n, dims)) * scale + far * rng.normal() for n in sizes]
    found, whole = of_sites(sites), PCA(2).fit(np.concatenate(sites))
    assert found is not None
    np.testing.assert_allclose(found.mean, whole.mean_, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.explained, whole.explained_variance_ratio_, rtol=1e-6, atol=1e-9)
    places = (np.concatenate(sites) - found.mean) @ np.array(found.axes).T
    assert found.unit == pytest.approx(np.sqrt((places**2).mean()), rel=1e-6)
    gap = whole.explained_variance_[0] / max(whole.explained_variance_[1], 1e-300)
    if gap > 1.1:  # else the first two may be turned into each other by rounding
        assert abs(np.dot(found.axes[0], whole.components_[0])) == pytest.approx(1, abs=1e-5)


def test_the_sign_does_not_hang_on_who_is_asked_first() -> None:
    rng = np.random.default_rng(0)
    sites = [rng.normal(size=(n, 5)) * [5, 3, 1, 1, 1] for n in (30, 50, 20)]
    found, other = of_sites(sites), of_sites(sites[::-1])
    assert found is not None
    assert other is not None
    np.testing.assert_allclose(found.axes, other.axes, atol=1e-9)
    for axis in found.axes:
        assert max(axis, key=abs) > 0
    np.testing.assert_allclose(np.array(found.axes) @ np.array(found.axes).T, np.eye(2), atol=1e-12)


def test_without_two_dimensions_or_any_difference_there_is_none() -> None:
    assert of_sites([np.random.default_rng(0).normal(size=(30, 1))]) is None
    assert of_sites([np.full((30, 4), 0.5), np.full((10, 4), 0.5)]) is None
    assert projection([], [], []) is None
    line = of_sites([np.outer(np.arange(9.0), [1.0, 2.0, 0.0])])
    assert line is not None
    assert line.explained == pytest.approx((1, 0), abs=1e-12)


def test_a_projection_is_the_same_after_a_trip_through_json() -> None:
    found = of_sites([np.random.default_rng(1).normal(size=(30, 4))])
    assert found is not None
    assert Projection.of(json.loads(json.dumps(asdict(found)))) == found
