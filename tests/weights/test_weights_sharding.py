"""Eight devices: a kernel sharded on its fan-in or on its units has the same effective kernel, state and gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normjax as nj
from pallas_kernels import count_collectives

EPS32 = float(np.finfo(np.float32).eps)
TRANSFORMS = {
    "weight_norm": nj.weight_norm(),
    "centred_weight_norm": nj.centred_weight_norm(use_scale=True),
    "weight_standardization": nj.weight_standardization(),
    "scaled_weight_standardization": nj.scaled_weight_standardization(epsilon_rule="max"),
    "spectral_norm": nj.spectral_norm(n_steps=2, init_steps=3),
    "spectral_norm, flax": nj.spectral_norm(order="flax", n_steps=2),
}


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request):
    return jax.make_mesh((8,), ("model",), axis_types=(request.param,))


@functools.cache
def started(name):
    """A training step from `init` on; one program for all that is not sharded."""
    transform = TRANSFORMS[name]

    @jax.jit
    def run(kernel):
        params, state = transform.init(jax.random.key(0), kernel)

        def loss(params, kernel):
            effective, new_state = transform.apply(params, state, kernel, train=True)
            return jnp.sum(effective**3), (effective, new_state)

        (_, aux), gradients = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, kernel)
        return params, aux, gradients

    return run


@pytest.mark.parametrize("spec", [P("model", None), P(None, "model")], ids=["fan-in", "units"])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_sharded_equals_replicated(name, spec, mesh, rng):
    kernel, run = jax.device_put(np.asarray(rng.standard_normal((16, 24)), jnp.float32)), started(name)
    alone = run(kernel)
    sharded = run(jax.device_put(kernel, NamedSharding(mesh, spec)))
    # Sums of 16 or 24 values in another order, seen through the cube's derivative.
    bound = lambda a: 64 * EPS32 * max(1.0, float(np.max(np.abs(a))))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=bound(b))
    jax.tree.map(close, jax.device_get(sharded), jax.device_get(alone))
    assert sharded[1][0].sharding.is_equivalent_to(NamedSharding(mesh, spec), 2), "the effective kernel moved"


@pytest.mark.parametrize(("spec", "expected"), [(P(None, "model"), {}), (P("model", None), {"all-reduce": 1})])
def test_collectives_are_counted(spec, expected, rng):
    mesh = jax.make_mesh((8,), ("model",), axis_types=(AxisType.Auto,))
    kernel = jax.device_put(jnp.ones((16, 24)), NamedSharding(mesh, spec))
    forward = jax.jit(lambda kernel: nj.weight_normalize(kernel))
    assert count_collectives(forward.lower(kernel).compile()) == expected
    standardized = count_collectives(jax.jit(nj.weight_standardize).lower(kernel).compile())
    # The mean, then what it lacks together with the variance.
    assert standardized == {name: 2 * count for name, count in expected.items()}


@pytest.fixture(scope="module")
def convolution():
    kernel = jax.device_put(np.asarray(np.random.default_rng(0).standard_normal((3, 3, 8, 16)), jnp.float32))
    transform = nj.spectral_norm()
    params, state = jax.jit(transform.init)(jax.random.key(0), kernel)
    run = jax.jit(lambda kernel: transform.apply(params, state, kernel, train=True))
    return kernel, run, run(kernel)[0]


@pytest.mark.parametrize("axis", [2, 3])
def test_convolution_kernels_are_never_reshaped(axis, mesh, convolution):
    """Sharded on its input or output channels, a kernel's vectors are sharded with it."""
    kernel, run, expected = convolution
    spec = P(*["model" if a == axis else None for a in range(4)])
    effective, _ = run(jax.device_put(kernel, NamedSharding(mesh, spec)))
    np.testing.assert_allclose(effective, expected, rtol=0, atol=32 * EPS32)
