"""Task vectors: depths, groups and ranks against their definitions, and what bad calls are told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax import task_vectors as tv

BASE = {"block": {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(4)}, "step": jnp.int32(7)}
TAU = {"block": {"kernel": jnp.full((3, 4), 0.5), "scale": jnp.arange(4.0)}, "step": jnp.int32(0)}


def test_integers_are_left_alone_everywhere():
    moved = {**TAU, "step": jnp.int32(9)}
    assert tv.task_vector(moved, BASE)["step"] == 0
    assert tv.lines(moved, lambda path: 0, 1, alpha=2.0, beta=0.0)["step"] == 9
    assert tv.compose(BASE, [moved], jnp.ones(1))["step"] == 7


def test_a_task_vector_added_back_gives_the_parameters():
    params = jax.tree.map(lambda a, b: a + b, BASE, TAU)
    restored = tv.compose(BASE, [tv.task_vector(params, BASE)], jnp.ones(1))
    # The entries are sums of few bits: exact.
    jax.tree.map(np.testing.assert_array_equal, restored, params)


def test_compose_keeps_bfloat16_and_rounds_once():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim else x, BASE)
    taus = [jax.tree.map(lambda x: x.astype(jnp.bfloat16) if x.ndim else x, TAU)] * 3
    lam = jnp.array([0.001, 0.002, 0.004])
    composed = tv.compose(narrow, taus, lam)["block"]["kernel"]
    assert composed.dtype == jnp.bfloat16
    # Each addend alone is below half an ulp of one and would be rounded away.
    np.testing.assert_array_equal(composed, jnp.full((3, 4), 1.0035, jnp.bfloat16))
    np.testing.assert_array_equal(tv.compose(narrow, taus, 2 * lam)["block"]["kernel"] > 1, True)


def test_leaves_without_coefficients_stay_and_a_group_without_one_is_not_hidden():
    kernel = {"block/kernel": jnp.array([2.0])}
    composed = tv.compose(BASE, [TAU], kernel)
    np.testing.assert_array_equal(composed["block"]["kernel"], 2.0)
    np.testing.assert_array_equal(composed["block"]["scale"], 1.0)
    groups = {"block/scale": jnp.array([0, 1, 2, 1])}
    composed = tv.compose(BASE, [TAU], {"block/scale": jnp.array([[1.0, 2.0]])}, groups=groups)
    assert np.isnan(composed["block"]["scale"]).tolist() == [False, False, True, False]


def test_random_groups_use_every_group_and_differ_between_leaves():
    params = {"a": jnp.zeros((20, 20)), "b": jnp.zeros((20, 20))}
    groups = tv.random_groups(jax.random.key(0), params, 3)
    assert set(np.unique(groups["a"])) == {0, 1, 2}
    assert np.any(np.asarray(groups["a"]) != np.asarray(groups["b"]))


def test_chunks_are_contiguous_and_a_budget_of_zero_leaves_none():
    groups = tv.chunk_groups({"w": jnp.zeros((2, 5)), "b": jnp.zeros(2)}, {"w": 4, "b": 0})
    assert set(groups) == {"w"}
    # Chunks of ceil(10 / 4) = 3 entries.
    assert np.asarray(groups["w"]).ravel().tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
    alpha = {"a": np.array([1.0, -1.0]), "b": np.array([0.5, 0.0])}
    taus = [{"a": jnp.full(4, 2.0), "b": jnp.full(8, 1.0)}, {"a": jnp.full(4, -1.0), "b": jnp.ones(8)}]
    # Importances 8 + 4 and 4.
    assert tv.importance_chunks(alpha, taus, 10) == {"a": 7, "b": 2}
    assert tv.importance_chunks(alpha, taus, 10, exponent=0.0) == {"a": 5, "b": 5}
    assert tv.importance_chunks(alpha, taus, 0) == {"a": 0, "b": 0}


def test_a_target_is_reached_by_the_first_threshold_of_the_grid():
    rng = np.random.default_rng(0)
    matrices = {
        name: jnp.asarray(rng.normal(size=size), jnp.float32) for name, size in {"a": (8, 6), "b": (5, 9)}.items()
    }
    plans = tv.rank_plan(matrices, target=0.5)
    threshold = plans["a"].threshold
    total = sum(plan.rank for plan in plans.values())
    cut = lambda plans: sum(plan.rank - plan.kept for plan in plans.values()) / total
    assert cut(plans) >= 0.5 > cut(tv.rank_plan(matrices, threshold - 0.005))
    scaled = tv.rank_plan({"a": 3 * matrices["a"], "b": matrices["b"]}, threshold)
    assert [p.kept for p in scaled.values()] == [p.kept for p in plans.values()]
    equal = tv.rank_plan({"eye": jnp.eye(4)}, 0.9, min_ratio=0.5)["eye"]
    assert (equal.kept, equal.low_rank) == (4, False)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: tv.task_vector({"w": jnp.ones(2)}, {"w": jnp.ones(3)}), "differs from the first"),
        (lambda: tv.lines(TAU, lambda path: 3, 2, alpha=1, beta=0), "from 0 to 1"),
        (lambda: tv.lines(TAU, lambda path: None, 2, alpha=1, beta=0), "None outside"),
        (lambda: tv.lines(TAU, lambda path: 0, 0, alpha=1, beta=0), "at least 1, got 0"),
        (lambda: tv.lines_alpha([], TAU), "got 0 and 1"),
        (lambda: tv.lines_alpha([TAU], TAU, ord=3), "got 1 and 3"),
        (lambda: tv.compose(BASE, [], jnp.ones(0)), "at least one task vector"),
        (lambda: tv.compose(BASE, [TAU], jnp.ones(2)), r"shape \(2,\); expected \(1,\)"),
        (lambda: tv.compose(BASE, [TAU], jnp.ones((1, 2))), r"shape \(1, 2\)"),
        (lambda: tv.compose(BASE, [TAU], jnp.ones(1), groups={"block/scale": jnp.zeros(3, int)}), "shapes of their"),
        (lambda: tv.random_groups(jax.random.key(0), BASE, 0), "at least 1, got 0"),
        (lambda: tv.chunk_groups(BASE, -1), "must not be negative"),
        (lambda: tv.importance_chunks({"block/scale": jnp.ones(2)}, [TAU], 3), r"got \{'block/scale': \(2,\)\}"),
        (lambda: tv.importance_chunks({"block/scale": jnp.zeros(1)}, [TAU], 3), "nothing to divide"),
        (lambda: tv.importance_chunks({"block/scale": jnp.ones(1)}, [TAU], -3), "budget >= 0"),
        (lambda: tv.rank_plan({"w": jnp.eye(2)}), "either threshold= or target="),
        (lambda: tv.rank_plan({"w": jnp.eye(2)}, 1.5), r"\[0, 1\], got 1.5"),
        (lambda: tv.rank_plan({"w": jnp.ones(2)}, 0.5), r"got shape \(2,\)"),
        (lambda: tv.rank_plan({"w": jnp.eye(2)}, target=0.5), "no threshold"),
        (lambda: tv.low_rank(jnp.eye(2), 3), r"\(2, 2\), 3"),
    ],
)
def test_bad_calls_say_what_came(call, message):
    with pytest.raises(ValueError, match=message):
        call()
