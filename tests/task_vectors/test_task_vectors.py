"""Task-vector tools against their equations, and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from normjax.task_vectors import (
    chunk_groups,
    compose,
    importance_chunks,
    lines,
    lines_alpha,
    low_rank_factors,
    random_groups,
    rank_plan,
)

EPS32 = float(np.finfo(np.float32).eps)


def test_leaves_outside_the_blocks_get_what_was_asked_and_integers_stay():
    tau = {"blocks": {"0": jnp.ones(2), "1": jnp.ones(2)}, "head": jnp.ones(2), "step": jnp.array(3)}
    depth = lambda path: int(path[-1]) if path.startswith("blocks") else None
    scaled = lines(tau, depth=depth, layers=2, alpha=0.5, beta=0.25, outside=2.0)
    assert [float(scaled["blocks"][i][0]) for i in "01"] == [0.5, 0.75]
    assert float(scaled["head"][0]) == 2.0
    assert int(scaled["step"]) == 3
    only = lines(tau["head"], depth=lambda path: 0, layers=1, alpha=0.5, beta=7.0)
    assert float(only[0]) == 0.5


def test_a_depth_outside_the_stack_is_refused():
    with pytest.raises(ValueError, match=r"depth\('w'\) is 2, outside of 2 layers"):
        lines({"w": jnp.ones(1)}, depth=lambda path: 2, layers=2, alpha=1.0, beta=0.0)
    with pytest.raises(ValueError, match="task_vectors is empty"):
        lines_alpha([], {"w": jnp.ones(1)})


def test_a_plain_sum_of_tasks_has_one_over_their_number(rng):
    taus = [{"w": jnp.asarray(rng.standard_normal(8), jnp.float32)} for _ in range(4)]
    total = jax.tree.map(lambda *leaves: sum(leaves), *taus)
    assert abs(float(lines_alpha(taus, total)) - 0.25) <= 8 * EPS32


def test_blocks_without_coefficients_stay_and_coefficients_are_learned(rng):
    params = {"w": jnp.zeros((2, 3)), "norm": jnp.ones(3)}
    taus = [{"w": jnp.asarray(rng.standard_normal((2, 3)), jnp.float32), "norm": jnp.ones(3)} for _ in range(2)]
    groups = {"w": random_groups(jax.random.key(0), (2, 3), 2), "norm": None}

    def loss(coefficients):
        merged = compose(params, taus, {"w": coefficients, "norm": None}, groups)
        return jnp.sum(merged["w"] ** 2) + jnp.sum(merged["norm"]), merged

    coefficients = jnp.asarray(rng.standard_normal((2, 2)), jnp.float32)
    gradient, merged = jax.grad(loss, has_aux=True)(coefficients)
    np.testing.assert_array_equal(merged["norm"], params["norm"])
    chosen = np.asarray(coefficients)[:, np.asarray(groups["w"])]
    expected = sum(c * np.asarray(t["w"]) for c, t in zip(chosen, taus, strict=True))
    np.testing.assert_allclose(merged["w"], expected, rtol=0, atol=4 * EPS32)
    slopes = [[np.sum(2 * expected * t["w"], where=np.asarray(groups["w"]) == g) for g in range(2)] for t in taus]
    np.testing.assert_allclose(gradient, slopes, rtol=0, atol=32 * EPS32 * np.max(np.abs(slopes)))


def test_runs_are_as_long_as_torch_cuts_them():
    groups = chunk_groups((5, 2), 4)
    np.testing.assert_array_equal(np.bincount(np.ravel(groups), minlength=4), [3, 3, 3, 1])
    # Nine entries in four runs of three leave the fourth coefficient without work.
    assert set(np.ravel(chunk_groups((9,), 4))) == {0, 1, 2}


def test_chunks_follow_importance_and_exhausted_blocks_get_none():
    tau = {"a": jnp.full(8, 2.0), "b": jnp.ones(4), "c": jnp.zeros(4)}
    alpha = {name: jnp.ones(1) for name in tau}
    assert importance_chunks(alpha, [tau], budget=10) == {"a": 8, "b": 2, "c": 0}
    assert importance_chunks(
        {"a": jnp.ones(1), "b": jnp.ones(1)}, [{k: tau[k] for k in "ab"}], budget=10, kappa=0.0
    ) == {
        "a": 5,
        "b": 5,
    }
    with pytest.raises(ValueError, match="all importances are zero"):
        importance_chunks({"c": jnp.ones(1)}, [{"c": tau["c"]}], budget=3)


@pytest.mark.parametrize(
    ("coefficients", "groups", "message"),
    [
        ({"w": jnp.ones(3)}, None, r"coefficients of \['w'\] have shape \(3,\); expected \(1,\)"),
        ({"w": jnp.ones(1)}, {"w": jnp.zeros(2, jnp.int32)}, r"expected \(1, number of groups\)"),
        ({"w": jnp.ones((1, 2))}, {"w": jnp.zeros(3, jnp.int32)}, r"groups of \['w'\] have shape \(3,\)"),
        ({"v": jnp.ones(1)}, None, "coefficients has the structure"),
    ],
)
def test_what_does_not_fit_is_named(coefficients, groups, message):
    with pytest.raises(ValueError, match=message):
        compose({"w": jnp.zeros(2)}, [{"w": jnp.ones(2)}], coefficients, groups)


def test_the_threshold_for_a_target_takes_at_least_that_share(rng):
    weights = {name: rng.standard_normal((8, 6)) for name in "ab"}
    plans = rank_plan(weights, target=0.5)
    gone = sum(p.rank - p.kept for p in plans.values()) / sum(p.rank for p in plans.values())
    assert 0.5 <= gone < 0.7
    # Projecting the norm of a matrix changes no plan.
    assert rank_plan({name: 7.0 * w for name, w in weights.items()}, 0.3) == rank_plan(weights, 0.3)
    assert rank_plan({"eye": np.eye(3)}, 0.5)["eye"].kept == 3


def test_factors_are_the_best_of_their_rank(rng):
    weight = jnp.asarray(rng.standard_normal((6, 4)), jnp.float32)
    left, right = low_rank_factors(weight, 2)
    values = np.linalg.svd(np.asarray(weight, np.float64), compute_uv=False)
    error = np.linalg.norm(np.asarray(left, np.float64) @ np.asarray(right, np.float64) - weight)
    np.testing.assert_allclose(error, np.sqrt(np.sum(values[2:] ** 2)), rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_plan({"w": np.eye(2)}), "either threshold or target"),
        (lambda: rank_plan({"w": np.eye(2)}, 0.5, target=0.5), "either threshold or target"),
        (lambda: rank_plan({"w": np.ones(2)}, 0.5), r"weight 'w' has shape \(2,\)"),
        (lambda: rank_plan({"w": np.eye(2)}, 1.5), r"threshold must be in \[0, 1\]"),
        (lambda: rank_plan({"w": np.eye(2)}, target=1.0), r"target must be in \[0, 1\)"),
        (lambda: low_rank_factors(np.eye(2), 3), "rank=3 is not between 1 and 2"),
    ],
)
def test_bad_ranks_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
