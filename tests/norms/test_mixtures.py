"""What the mixing batch norms do over several steps: schedules, averages, the auxiliary loss, evaluation."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj

EPS32 = float(np.finfo(np.float32).eps)
close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=32 * EPS32 * max(1.0, float(np.max(np.abs(b)))))


def train(norm, state, xs, params, **context):
    for x in xs:
        _, state = norm.apply(params, state, x, train=True, **context)
    return state


def test_the_schedule_warms_up_and_runs_out(rng):
    xs = rng.standard_normal((6, 5, 3)).astype(np.float32)
    norm = nj.prep_batch_norm(total_steps=2, warmup_steps=1, initial_weight=0.5, ticks_every=2)
    params, state = norm.init(None, xs[0])
    step = jax.jit(lambda state, x: norm.apply(params, state, x, train=True)[1]["weights"] | {})
    counters = []
    for x in xs:
        state = {**state, "weights": step(state, x)}
        counters.append(tuple(int(state["weights"][name]) for name in ("warm", "iter", "num_step")))
    # The first call ticks, then every second one.
    assert counters == [(0, 2, 1), (0, 2, 0), (0, 1, 1), (0, 1, 0), (0, 0, 1), (0, 0, 0)]
    y, _ = norm.apply(params, state, xs[0], train=True)
    rep = nj.rep_batch_norm()
    close(y, rep.apply(params["1"], rep.init(None, xs[0])[1], xs[0], train=True)[0])


def test_warming_up_keeps_the_statistics_and_evaluation_is_rep_alone(rng):
    x = (3 + rng.standard_normal((5, 3))).astype(np.float32)
    norm = nj.prep_batch_norm(warmup_steps=1)
    params, state = norm.init(None, x)
    warm = train(norm, state, [x], params)
    jax.tree.map(np.testing.assert_array_equal, warm["1"], state["1"])
    after = train(norm, warm, [x], params)
    close(after["1"]["mean"], 0.1 * x.mean(0))
    y, same = norm.apply(params, after, x, train=False)
    close(y, nj.rep_batch_norm().apply(params["1"], after["1"], x, train=False)[0])
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_the_speed_of_estimated_statistics_is_given_or_kept(rng):
    x = (3 + rng.standard_normal((5, 3))).astype(np.float32)
    norm = nj.estimated_batch_norm()
    params, state = norm.init(None, x)
    np.testing.assert_array_equal(train(norm, state, [x], params)["mean"], state["mean"])
    moved = train(norm, state, [x], params, moving_speed=0.5)
    close(moved["mean"], 0.5 * x.mean(0))
    again = train(norm, moved, [x], params)
    close(again["var"], 0.5 * moved["var"] + 0.5 * np.mean((x - np.asarray(moved["mean"])) ** 2, 0))


def test_renorm_ramps_from_batch_norm(rng):
    xs = (3 + 2 * rng.standard_normal((3, 50, 3))).astype(np.float32)
    norm = nj.batch_renorm(r_max=lambda t: 1 + t, d_max=lambda t: 10.0 * t, renorm_momentum=0.5, epsilon=1e-5)
    params, state = norm.init(None, xs[0])
    y, state = norm.apply(params, state, xs[0], train=True)
    close(y, nj.batch_normalize(xs[0])[0])
    assert int(state["count"]) == 1
    # Unclipped, the output is the input by the running statistics.
    y, _ = norm.apply(params, state, xs[1], train=True)
    close(y, (xs[1] - np.asarray(state["renorm_mean"])) / np.asarray(state["renorm_stddev"]))


def test_the_batch_average_of_switchable_norm_is_that_of_all_batches(rng):
    xs = (rng.standard_normal((4, 8, 3)) + rng.standard_normal((4, 1, 3))).astype(np.float32)
    norm = nj.switch_norm(momentum=None)
    params, state = norm.init(None, xs[0])
    state = train(norm, state, xs, params)
    means, variances = xs.mean(1), xs.var(1, ddof=1)
    close(state["mean"], means.mean(0))
    # Theirs sums mean² + variance, and takes the square of the average mean away in the end.
    close(state["var"], (means**2 + variances).mean(0) - means.mean(0) ** 2)


@pytest.mark.parametrize(("renormalize", "expected"), [(False, 0.75), (True, 1.0)])
def test_the_weights_of_absent_tasks_are_lost_as_published(renormalize, expected):
    x, task = jnp.ones((3, 1)), jnp.zeros(3, jnp.int32)
    weigh = lambda current: (
        nj.adaptive_balance_normalize(x, task, jnp.full(2, 0.0), current_task=current, renormalize=renormalize)[1].mean
    )
    close(weigh(0), jnp.ones((1, 1)))
    # (e^0 + 3) / (e^0 + 3 + e^0 + 0) with a second task that is not in the batch; psi chosen so that it is 3/4.
    psi = jnp.log(jnp.asarray([0.75, 1.25]))
    moments = nj.adaptive_balance_normalize(x, task, psi, current_task=1, renormalize=renormalize)[1]
    close(moments.mean, jnp.full((1, 1), expected))


@pytest.mark.parametrize(
    ("kappa", "etas"), [(0.0, [1, 1 / 2, 1 / 3]), (1.0, [0.1] * 3), (0.5, [0.316228, 0.25, 0.208562])]
)
def test_the_momentum_schedule(kappa, etas, rng):
    x = rng.standard_normal((5, 3)).astype(np.float32)
    norm = nj.adaptive_balance_norm(2, kappa=kappa)
    params, state = norm.init(None, x)
    for eta in etas:
        state = train(norm, state, [x], params)
        np.testing.assert_allclose(state["eta"], eta, rtol=0, atol=1e-6)


def auxiliary(state):
    """The documented recipe."""
    return sum(v for p, v in jax.tree_util.tree_leaves_with_path(state) if "auxiliary_loss" in jax.tree_util.keystr(p))


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x, task):
        norm = nj.adaptive_balance_norm(2)
        return nj.linen.Norm(norm)(2 * nj.linen.Norm(norm)(x, task=task), task=task)


class Nnx(nnx.Module):
    def __init__(self):
        norm = nj.adaptive_balance_norm(2)
        self.first, self.second = (nj.nnx.Norm(norm, 3, rngs=nnx.Rngs(0)) for _ in range(2))

    def __call__(self, x, task):
        return self.second(2 * self.first(x, task=task), task=task)


def test_the_auxiliary_loss_of_all_layers_has_a_gradient_everywhere(rng):
    x, task = (3 + rng.standard_normal((6, 3))).astype(np.float32), np.array([0, 0, 1, 1, 1, 0], np.int32)
    norm = nj.chain(
        nj.adaptive_balance_norm(2), nj.stateless(lambda p, x, *, mask, **_: 2 * x), nj.adaptive_balance_norm(2)
    )
    params, state = norm.init(None, x)
    pure_loss = lambda x: auxiliary(norm.apply(params, state, x, train=True, task=task)[1])
    pure = jax.value_and_grad(pure_loss)(x)
    assert float(jnp.max(jnp.abs(pure[1]))) > 1e-3

    variables = Linen().init(jax.random.key(0), x, task)
    linen_loss = lambda x: auxiliary(Linen().apply(variables, x, task, mutable="batch_stats")[1])
    linen = jax.value_and_grad(linen_loss)(x)

    def nnx_loss(x, model):
        model(x, task)
        return auxiliary(nnx.to_pure_dict(nnx.state(model, nnx.BatchStat)))

    flax = nnx.value_and_grad(nnx_loss)(x, Nnx())
    for other in (linen, flax):
        jax.tree.map(close, other, pure)
