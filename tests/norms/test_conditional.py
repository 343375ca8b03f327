"""What conditional norms promise beyond the battery: identities, exact conversions and the rule of a bound."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj

EPS32 = float(np.finfo(np.float32).eps)


def test_equal_times_are_one_time(rng):
    x = rng.standard_normal((3, 4, 8)).astype(np.float32)
    norm = nj.time_dependent_layer_norm()
    params, _ = norm.init(None, x, time=0.0)
    params = jax.tree.map(lambda p: p + rng.standard_normal(p.shape).astype(np.float32), params)
    each, _ = norm.apply(params, {}, x, train=True, time=np.full(3, 1.5, np.float32))
    once, _ = norm.apply(params, {}, x, train=True, time=1.5)
    np.testing.assert_allclose(each, once, rtol=0, atol=32 * EPS32 * np.max(np.abs(once)))


def test_times_may_differ_from_token_to_token(rng):
    x = rng.standard_normal((2, 4, 8)).astype(np.float32)
    time = rng.standard_normal((2, 4)).astype(np.float32)
    norm = nj.time_dependent_rms_norm(use_bias=True)
    params, _ = norm.init(None, x, time=time)
    params = jax.tree.map(lambda p: p + rng.standard_normal(p.shape).astype(np.float32), params)
    y, _ = norm.apply(params, {}, x, train=True, time=time)
    flat, _ = norm.apply(params, {}, x.reshape(8, 8), train=True, time=time.reshape(8))
    np.testing.assert_allclose(y.reshape(8, 8), flat, rtol=0, atol=32 * EPS32 * np.max(np.abs(flat)))


def test_a_block_s_six_chunks_are_two_transforms(rng):
    x, c = rng.standard_normal((2, 4, 8)).astype(np.float32), rng.standard_normal((2, 5)).astype(np.float32)
    kernel, bias = rng.standard_normal((5, 48)).astype(np.float32), rng.standard_normal(48).astype(np.float32)
    parts = nj.ada_modulation(c, kernel, bias, chunks=6)
    order = ("shift", "scale", "gate")
    for i in range(2):
        columns = slice(24 * i, 24 * (i + 1))
        params = {"norm": {}, "kernel": kernel[:, columns], "bias": bias[columns]}
        y, _ = nj.ada_layer_norm(chunks=order).apply(params, {}, x, train=True, condition=c)
        shift, scale, gate = (p[:, None] for p in parts[3 * i : 3 * i + 3])
        expected = nj.modulate(nj.layer_normalize(x), scale, shift)
        np.testing.assert_allclose(y, expected, rtol=0, atol=32 * EPS32 * np.max(np.abs(expected)))
        np.testing.assert_allclose(nj.ada_gate(params, x, c), gate, rtol=32 * EPS32, atol=32 * EPS32)


@pytest.mark.parametrize("inside", [nj.layer_norm, nj.batch_norm], ids=lambda f: f.__name__)
def test_a_condition_changes_nothing_at_the_start(inside, rng):
    x = rng.standard_normal((4, 3, 8)).astype(np.float32)
    c = np.full((4, 2), 1e4, np.float32)
    plain = inside(use_scale=False, use_bias=False)
    norm = nj.ada_layer_norm(plain, chunks=("scale", "shift"), activation=None)
    params, state = norm.init(None, x, condition=c)
    expected, expected_state = plain.apply({}, state, x, train=True)
    y, new_state = norm.apply(params, state, x, train=True, condition=c)
    np.testing.assert_allclose(y, expected, rtol=0, atol=8 * EPS32 * np.max(np.abs(expected)))
    jax.tree.map(np.testing.assert_array_equal, new_state, expected_state)


def rule(raw, sign):
    return jnp.sum(sign * nj.lower_bound(raw, 1.0))


def test_a_bound_lets_a_parameter_rise_and_not_fall():
    raw = jnp.array([0.5, 1.0, 1.5])
    for transform in (lambda f: f, jax.jit, jax.checkpoint):
        gradient = jax.grad(transform(rule))
        np.testing.assert_array_equal(gradient(raw, 1.0), [0, 1, 1])
        np.testing.assert_array_equal(gradient(raw, -1.0), [-1, -1, -1])
    both = jax.vmap(jax.grad(rule), in_axes=(None, 0))(raw, jnp.array([1.0, -1.0]))
    np.testing.assert_array_equal(both, [[0, 1, 1], [-1, -1, -1]])
    many = jax.grad(lambda raw: jnp.sum(jax.vmap(rule, in_axes=(0, None))(raw, -1.0)))(jnp.stack([raw, raw]))
    np.testing.assert_array_equal(many, np.full((2, 3), -1.0))


def test_forward_mode_through_a_bound_is_the_derivative():
    raw = jnp.array([0.5, 1.0, 1.5])
    value, tangent = jax.jvp(lambda raw: nj.lower_bound(raw, 1.0), (raw,), (jnp.ones(3),))
    np.testing.assert_array_equal(value, [1, 1, 1.5])
    np.testing.assert_array_equal(tangent, [0, 1, 1])
    curvature = jax.jvp(jax.grad(lambda raw: jnp.sum(nj.lower_bound(raw, 1.0) ** 2)), (raw,), (jnp.ones(3),))[1]
    np.testing.assert_array_equal(curvature, [0, 2, 2])


def test_gdn_is_undone_by_its_inverse_for_a_weak_coupling(rng):
    x = 1e-3 * rng.standard_normal((2, 3, 4)).astype(np.float32)
    params, _ = nj.gdn().init(None, x)
    y, _ = nj.gdn().apply(params, {}, x, train=True)
    back, _ = nj.gdn(inverse=True).apply(params, {}, y, train=True)
    # What comes back is x (1 - x⁴ / 100 + ...): for x of 1e-3 that is x.
    np.testing.assert_allclose(back, x, rtol=16 * EPS32, atol=0)


def test_mask_carrying_keeps_what_is_removed_out(rng):
    x = rng.standard_normal((4, 6, 3)).astype(np.float32)
    mask = rng.random((4, 6, 1)) < 0.6
    norm = nj.mask_carrying_norm()
    params, state = norm.init(None, x)
    for train in (True, False):
        y, _ = norm.apply(params, state, x, train=train, mask=mask)
        dirty, _ = norm.apply(params, state, np.where(mask, x, np.nan), train=train, mask=mask)
        np.testing.assert_array_equal(y, dirty)
        assert np.all(np.asarray(y)[~np.broadcast_to(mask, x.shape)] == 0)


def test_a_mean_over_nothing_is_zero():
    x = jnp.array([[jnp.nan, 1.0], [2.0, 4.0]])
    mask = jnp.array([[0, 0], [1, 1]])
    np.testing.assert_allclose(nj.masked_global_mean(x, mask, axis=1), [[0.0], [3.0]], rtol=8 * EPS32)
    gradient = jax.grad(lambda x: jnp.sum(nj.masked_global_mean(x, mask, axis=1)))(x)
    np.testing.assert_allclose(gradient, [[0, 0], [0.5, 0.5]], rtol=8 * EPS32)


def test_filled_holes_get_no_gradient(rng):
    x = rng.standard_normal((2, 5, 5, 3)).astype(np.float32)
    mask = rng.random((2, 5, 5, 1)) < 0.5

    @jax.jit
    def loss(x):
        return jnp.sum(nj.fill_holes(x, mask, rounds=2)[0])

    np.testing.assert_array_equal(jax.grad(loss)(np.where(mask, x, np.nan)), np.broadcast_to(mask, x.shape))
