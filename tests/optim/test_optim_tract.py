"""TrAct: the covariance of patches, its place under a norm, and what bad input gets."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import normjax as nj
from normjax.optim import input_covariance, patch_covariance, scale_by_tract, tract_gradient

EPS32 = float(np.finfo(np.float32).eps)


def patches_by_hand(x, size, stride):
    """Rows of the patches of `(batch, height, width, channels)`, in the order of an HWIO kernel."""
    _, height, width, _ = x.shape
    rows = [
        x[:, i : i + size, j : j + size].reshape(len(x), -1)
        for i in range(0, height - size + 1, stride)
        for j in range(0, width - size + 1, stride)
    ]
    return np.concatenate(rows).astype(np.float64)


@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 1), (2, 3)])
def test_patches_are_those_of_the_convolution(rng, size, stride):
    x = rng.standard_normal((2, 6, 5, 3)).astype(np.float32)
    covariance = patch_covariance(x, (size, size), strides=stride, padding="VALID")
    rows = patches_by_hand(x, size, stride)
    np.testing.assert_allclose(covariance, rows.T @ rows / len(rows), rtol=0, atol=len(rows) * EPS32)


def test_20_steps_are_those_of_float64(rng):
    x, target = rng.standard_normal((16, 5)), rng.standard_normal((16, 3))
    start = rng.standard_normal((5, 3))
    tx = optax.chain(scale_by_tract(0.2), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(carry, _):
        w, state = carry
        grads = jax.grad(
            lambda w: jnp.mean((jnp.asarray(x, jnp.float32) @ w["kernel"] - target.astype(np.float32)) ** 2)
        )(w)
        covariances = {"kernel": input_covariance(jnp.asarray(x, jnp.float32))}
        updates, state = tx.update(grads, state, w, covariances=covariances)
        return (optax.apply_updates(w, updates), state), None

    w = {"kernel": jnp.asarray(start, jnp.float32)}
    (ours, _), _ = jax.lax.scan(step, (w, tx.init(w)), None, length=20)
    theirs, trace = start, np.zeros_like(start)
    inverse = np.linalg.inv(x.T @ x / len(x) + 0.2 * np.eye(5))
    for _ in range(20):
        gradient = inverse @ (x.T @ (x @ theirs - target)) * 2 / target.size
        trace = 0.9 * trace + gradient
        theirs = theirs - 0.1 * trace
    # 20 steps, each with the rounding of a solution whose condition is about 10.
    np.testing.assert_allclose(ours["kernel"], theirs, rtol=0, atol=20 * 10 * EPS32 * np.max(np.abs(theirs)))


def test_shards_share_one_covariance(rng):
    x = rng.standard_normal((16, 4)).astype(np.float32)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    local = lambda x: input_covariance(x, axis_name="data")
    mapped = jax.jit(jax.shard_map(local, mesh=mesh, in_specs=P("data"), out_specs=P()))(x)
    np.testing.assert_allclose(mapped, input_covariance(x), rtol=0, atol=16 * EPS32)


def test_bfloat16_is_summed_and_solved_in_float32(rng):
    x = jnp.asarray(rng.standard_normal((64, 4)), jnp.bfloat16)
    gradient = jnp.asarray(rng.standard_normal((4, 3)), jnp.bfloat16)
    covariance = input_covariance(x)
    assert covariance.dtype == jnp.float32
    new = tract_gradient(gradient, covariance)
    exact = np.linalg.solve(np.asarray(covariance, np.float64) + 0.1 * np.eye(4), np.asarray(gradient, np.float64))
    assert new.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(new, np.float64), exact, rtol=2**-8, atol=1e-5)


def test_under_a_norm_the_step_is_no_longer_tangential(rng):
    """Plain gradients are orthogonal to each unit before batch norm; preconditioned ones are not, by a lot."""
    x = rng.standard_normal((64, 6)) @ np.diag([3.0, 1.0, 1.0, 0.3, 0.3, 0.1])
    with jax.enable_x64(True):
        kernel, readout = (jnp.asarray(rng.standard_normal(s)) for s in ((6, 8), (64, 8)))

        @jax.jit
        def gradients(kernel):
            plain = jax.grad(lambda w: jnp.sum(nj.batch_normalize(x @ w, epsilon=1e-12)[0] * readout))(kernel)
            return plain, tract_gradient(plain, input_covariance(jnp.asarray(x)))

        cosine = lambda g: (
            jnp.abs(jnp.sum(g * kernel, 0)) / jnp.linalg.norm(g, axis=0) / jnp.linalg.norm(kernel, axis=0)
        )
        plain, preconditioned = (np.asarray(cosine(g)) for g in gradients(kernel))
    assert plain.max() < 1e-10
    assert preconditioned.max() > 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scale_by_tract(0.0), "damping must be positive, got 0.0"),
        (lambda: tract_gradient(jnp.ones((2, 3)), jnp.eye(3)), r"covariance is \(2, 2\); got \(3, 3\)"),
        (lambda: tract_gradient(jnp.ones((2, 3)), jnp.eye(2), -1.0), "damping must be positive"),
        (lambda: input_covariance(jnp.ones((0, 3))), "has no samples"),
        (lambda: patch_covariance(jnp.ones((2, 3, 4)), (2, 2)), r"\(batch, \*spatial, channels\)"),
        (lambda: _updated(None), "covariances=None"),
        (lambda: _updated({"nowhere": jnp.eye(2)}), "'nowhere'.*not parameters"),
        (lambda: _updated({"kernel": jnp.eye(2)}), "one covariance belongs to one kernel"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def _updated(covariances):
    params = {name: {"kernel": jnp.ones((2, 2))} for name in ("a", "b")}
    tx = scale_by_tract()
    return tx.update(params, tx.init(params), params, covariances=covariances)
