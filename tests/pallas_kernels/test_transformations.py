"""vmap, remat, donation; which implementation ran; what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from tests.pallas_kernels import oracle
from tests.pallas_kernels.platforms import PLATFORMS, lowering_for

KERNELS = ["mosaic_tpu", "triton"]


def layer_norm(implementation):
    return functools.partial(pallas_kernels.layer_norm, implementation=implementation, interpret=True)


def arrays(rng):
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    return draw(3, 5, 12), draw(12), draw(12), draw(3, 5, 12)


@pytest.mark.parametrize("implementation", KERNELS)
def test_vmap_is_a_batch(rng, implementation):
    x, scale, bias, dy = arrays(rng)
    mapped = jax.vmap(layer_norm(implementation), in_axes=(0, None, None))

    @jax.jit
    def both(x, scale, bias, dy):
        y, vjp = jax.vjp(mapped, x, scale, bias)
        return y, vjp(dy)

    y, gradients = both(x, scale, bias, dy)
    options = {"axis": -1, "epsilon": 1e-6}
    oracle.assert_close(y, *oracle.forward("layer", x, scale, bias, **options), "y")
    expected = oracle.backward("layer", x, scale, bias, dy, **options)
    for name, gradient in zip(expected, gradients, strict=True):
        oracle.assert_close(gradient, *expected[name], name)


@pytest.mark.parametrize("implementation", KERNELS)
def test_vmap_of_the_gradient_keeps_examples_apart(rng, implementation):
    x, scale, bias, dy = arrays(rng)
    gradient = lambda x, dy: jax.vjp(layer_norm(implementation), x, scale, bias)[1](dy)
    found = jax.jit(jax.vmap(gradient))(x, dy)
    for i in range(len(x)):
        expected = oracle.backward("layer", x[i], scale, bias, dy[i], axis=-1, epsilon=1e-6)
        for name, array in zip(expected, found, strict=True):
            oracle.assert_close(array[i], *expected[name], name)


def kernels(jaxpr):
    """The kernels of a jaxpr as (name, number of outputs), in order."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "pallas_call":
            yield equation.params["name"], len(equation.outvars)
            continue
        for inner in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")):
            if hasattr(inner, "eqns"):
                yield from kernels(inner)
            elif hasattr(inner, "jaxpr"):
                yield from kernels(inner.jaxpr)


@pytest.mark.parametrize("implementation", KERNELS)
def test_remat_saves_no_statistics_that_nobody_reads(rng, implementation):
    x, scale, bias, dy = arrays(rng)

    def loss(x, call):
        return jnp.sum(jnp.cos(call(x, scale, bias)) * dy)

    plain = jax.jit(jax.grad(functools.partial(loss, call=layer_norm(implementation))))
    remat = jax.jit(jax.grad(functools.partial(loss, call=jax.checkpoint(layer_norm(implementation)))))
    np.testing.assert_array_equal(remat(x), plain(x))
    found = list(kernels(jax.make_jaxpr(remat)(x).jaxpr))
    # Forward without statistics, forward again with mean and rstd, backward with dx, dscale, dbias.
    assert found == [("layer_norm_fwd", 1), ("layer_norm_fwd", 3), ("layer_norm_bwd", 3)]


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_donated_input_is_read_before_it_is_overwritten(rng, implementation):
    x, scale, bias, dy = arrays(rng)

    def step(x):
        y, vjp = jax.vjp(layer_norm(implementation), x, scale, bias)
        return y, vjp(dy)[0]

    expected = jax.jit(step)(x)
    donated = jnp.array(x, copy=True)
    found = jax.jit(step, donate_argnums=0)(donated)
    assert donated.is_deleted()
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_the_automatic_choice_and_xla_keep_every_derivative(rng, implementation):
    x, *_ = arrays(rng)
    call = functools.partial(pallas_kernels.rms_norm, implementation=implementation, epsilon=0.0)
    tangent = jax.jit(lambda x: jax.jvp(call, (x,), (x,))[1])(x)
    # Nothing changes in the direction of x: two terms of |x r| cancel, each after a few roundings.
    assert np.abs(tangent).max() < 16 * np.finfo(np.float32).eps * np.sqrt(x.shape[-1])
    hessian = jax.jit(jax.hessian(lambda x: jnp.sum(call(x) ** 3)))(x[0, 0])
    np.testing.assert_allclose(hessian, hessian.T, rtol=1e-5, atol=1e-5 * np.abs(hessian).max())


# JAX 0.12 announces that Pallas will drop Triton.
@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")
@pytest.mark.parametrize(("implementation", "platform", "target"), PLATFORMS)
def test_the_kernel_is_in_the_lowered_program(rng, implementation, platform, target):
    x, scale, bias, _ = arrays(rng)
    call = functools.partial(pallas_kernels.layer_norm, implementation=implementation)
    with lowering_for(platform):
        text = jax.jit(call).trace(x, scale, bias).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(f"@{target}") == 1


def test_no_kernel_is_in_the_automatic_program_of_a_cpu(rng):
    x, scale, bias, _ = arrays(rng)
    compiled = jax.jit(pallas_kernels.layer_norm).lower(x, scale, bias).compile()
    assert pallas_kernels.custom_call_targets(compiled) == {}


@pytest.mark.parametrize("implementation", KERNELS)
def test_a_kernel_without_its_platform_fails_loudly(implementation):
    with pytest.raises(ValueError, match="Only interpret mode is supported on CPU backend"):
        pallas_kernels.rms_norm(jnp.ones((2, 4)), implementation=implementation)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((jnp.ones((2, 4), jnp.int32),), {}, TypeError, "expected a real floating array, got int32; cast it first"),
        ((jnp.ones((2, 4)),), {"axis": 2}, ValueError, r"axis=2 does not name axes of an array of shape \(2, 4\)"),
        ((jnp.ones((2, 3, 4)),), {"axis": (0, 2)}, ValueError, "must name adjacent axes, each once; transpose"),
        ((jnp.ones((0, 4)),), {}, ValueError, r"shape \(0, 4\) has no elements to normalize"),
        ((jnp.ones((2, 4)), jnp.ones(3)), {}, ValueError, r"scale must have the shape \(4,\) .* got \(3,\)"),
        (
            (jnp.ones((2, 4)), None, jnp.ones(4, jnp.int8)),
            {},
            TypeError,
            "bias must be a real floating array, got int8",
        ),
        ((jnp.ones((2, 4)),), {"epsilon": -1.0}, ValueError, "epsilon must not be negative, got -1.0"),
        ((jnp.ones((2, 4)),), {"scale_offset": 1.0}, ValueError, "added to a scale, but scale is None; pass zeros"),
        ((jnp.ones((2, 4)),), {"implementation": "cuda"}, ValueError, "'cuda' is unknown; expected one of"),
        (
            (jnp.ones((2, 4), jnp.float16),),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "takes float32, bfloat16 and computes in float32, got float16; use implementation='xla'",
        ),
        (
            (jnp.ones((1, 2**20)),),
            {"implementation": "mosaic_tpu"},
            NotImplementedError,
            "keeps whole rows in VMEM: 1048576 features of float32 need .* MiB, at most 48 are used",
        ),
    ],
)
def test_errors_say_what_came_and_the_way_out(arguments, options, error, message):
    with pytest.raises(error, match=message):
        pallas_kernels.layer_norm(*arguments, **options)
