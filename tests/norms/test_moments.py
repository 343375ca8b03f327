"""Merging, masks, ddof and accuracy of the (count, mean, M2) triples."""

import itertools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax.moments import centred, pool_moments, weighted_central
from normjax.reductions import Standardization, prepare

EPS32 = float(np.finfo(np.float32).eps)


def test_shape_count_and_axes(rng):
    x = rng.standard_normal((2, 3, 4)).astype(np.float32)
    triple = nj.compute_moments(x, (0, -1))
    assert triple.mean.shape == triple.m2.shape == (1, 3, 1)
    np.testing.assert_array_equal(triple.count, 8.0)
    np.testing.assert_allclose(triple.mean[0, :, 0], x.mean((0, 2)), rtol=0, atol=8 * EPS32)
    np.testing.assert_allclose(nj.variance(triple)[0, :, 0], x.astype(np.float64).var((0, 2)), rtol=16 * EPS32)


@hypothesis.given(cuts=st.lists(st.integers(0, 12), min_size=1, max_size=3), offset=st.sampled_from([0.0, 1e3]))
def test_merging_any_partition_gives_the_whole(cuts, offset):
    x = (offset + np.random.default_rng(0).standard_normal(12)).astype(np.float32)
    bounds = [0, *sorted(cuts), 12]
    parts = [np.where((np.arange(12) >= a) & (np.arange(12) < b), 1, 0) for a, b in itertools.pairwise(bounds)]
    triples = [nj.compute_moments(x, 0, mask=part) for part in parts]
    merged = triples[0]
    for triple in triples[1:]:
        merged = nj.merge_moments(merged, triple)
    exact = x.astype(np.float64)
    assert float(merged.count[0]) == 12
    np.testing.assert_allclose(merged.mean[0], exact.mean(), rtol=0, atol=8 * EPS32 * np.abs(exact).max())
    # The means of the parts are rounded at the offset's size; their spread enters squared.
    np.testing.assert_allclose(nj.variance(merged)[0], exact.var(), rtol=64 * EPS32 * (1 + offset))


@pytest.mark.parametrize("offset", [0.0, 1e2, 1e3, 1e4, 1e5])
def test_variance_of_offset_data(offset, rng):
    x = (offset + 0.1 * rng.standard_normal(4096)).astype(np.float32)
    exact = x.astype(np.float64).var()
    np.testing.assert_allclose(nj.variance(nj.compute_moments(x, 0))[0], exact, rtol=64 * EPS32)


def test_ddof_and_single_values():
    triple = nj.compute_moments(jnp.array([[5.0], [7.0]]), 1)
    np.testing.assert_array_equal(nj.variance(triple, ddof=1), np.zeros((2, 1), np.float32))
    empty = nj.compute_moments(jnp.ones(3), 0, mask=jnp.zeros(3, bool))
    assert float(empty.count[0]) == float(empty.mean[0]) == float(empty.m2[0]) == 0
    assert float(nj.variance(empty)[0]) == float(nj.variance(empty, ddof=1)[0]) == 1


def test_derivative_of_moments(rng):
    with jax.enable_x64(True):
        x = jnp.asarray(5 + rng.standard_normal(6))
        gradient = jax.grad(lambda x: nj.compute_moments(x, 0).m2[0])(x)
        np.testing.assert_allclose(gradient, 2 * (x - x.mean()), rtol=1e-12, atol=1e-14)
        gradient = jax.grad(lambda x: nj.compute_moments(x, 0).mean[0])(x)
        np.testing.assert_allclose(gradient, np.full(6, 1 / 6), rtol=1e-14)


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_pooled_moments_are_those_of_the_union(masked, offset, rng):
    with jax.enable_x64(True):
        x = offset + rng.standard_normal((4, 5, 3))
        mask = rng.random((4, 5, 1)) < 0.6 if masked else None
        if masked:
            mask[1] = False  # an instance of which nothing is left
        values, valid = prepare(jnp.asarray(x), mask)
        _, centre, moments = centred(values, valid, Standardization((1,)))
        _, pooled = pool_moments(centre, moments, Standardization((0,)))
        whole = nj.compute_moments(x, (0, 1), mask=mask)
        for name in ("count", "mean", "m2"):
            actual, expected = (np.broadcast_to(getattr(m, name), (1, 1, 3)) for m in (pooled, whole))
            np.testing.assert_allclose(actual, expected, rtol=1e-12 * (1 + offset))


def test_pooled_variance_of_offset_data(rng):
    # The means of the instances are rounded at the offset's size; what that lost is in their second part.
    x = jnp.asarray(1e4 + rng.standard_normal((4, 16, 1)), jnp.float32)
    _, centre, moments = centred(x, None, Standardization((1,)))
    _, pooled = pool_moments(centre, moments, Standardization((0,)))
    np.testing.assert_allclose(nj.variance(pooled).item(), np.var(np.asarray(x, np.float64)), rtol=64 * EPS32)


@pytest.mark.parametrize("per_sample", [False, True])
def test_weighted_statistics(per_sample, rng):
    with jax.enable_x64(True):
        x = 3 + rng.standard_normal((4, 5, 3))
        weights = np.asarray(rng.random((4, 1, 1) if per_sample else (4, 5, 1)))
        around, total, mean, var = weighted_central(jnp.asarray(x), jnp.asarray(weights), Standardization((0, 1)))
        full = np.broadcast_to(weights, x.shape).reshape(20, 3)
        expected = np.average(x.reshape(20, 3), axis=0, weights=full)
        spread = np.average((x.reshape(20, 3) - expected) ** 2, axis=0, weights=full)
        np.testing.assert_allclose(total[0, 0], full.sum(0), rtol=1e-14)
        np.testing.assert_allclose(mean[0, 0], expected, rtol=1e-14)
        np.testing.assert_allclose(var[0, 0], spread, rtol=1e-13)
        np.testing.assert_allclose(around, x - expected, rtol=0, atol=1e-14)
