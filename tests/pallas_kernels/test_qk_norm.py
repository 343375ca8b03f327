"""Norms of queries and keys against float64 NumPy, forward and backward, where heads fill registers and where not."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import pallas_kernels
from pallas_kernels._dispatch import IMPLEMENTATIONS
from pallas_kernels.qk_norm import shapes
from pallas_kernels.qk_norm.api import KINDS
from pallas_kernels.row_norm import packed_tpu, reference
from pallas_kernels.row_norm.formula import RowNorm
from tests.pallas_kernels import oracle
from tests.pallas_kernels.test_placement import mesh_of
from tests.pallas_kernels.test_tpu_interpreter import PARAMS, races_found
from tests.pallas_kernels.test_transformations import kernels

EPSILON = 1e-5
NAMES = ("q", "k", "q_scale", "k_scale")


def inputs(rng, shape):
    """`(q, k, q_scale, k_scale), (dq, dk)`."""
    draw = lambda *s: (rng.normal(size=s) + 0.5).astype(np.float32)
    pair = lambda: tuple(
        draw(shape.tokens, heads, shape.features).astype(jnp.dtype(shape.dtype))
        for heads in (shape.heads, shape.key_heads)
    )
    return (*pair(), draw(shape.features), draw(shape.features)), pair()


def check(arrays, cotangents, kind, call, scale_offset=0.0):
    def both(arrays, cotangents):
        outputs, vjp = jax.vjp(call, *arrays)
        return outputs, vjp(cotangents)

    outputs, gradients = jax.jit(both)(arrays, cotangents)
    options = {"axis": -1, "epsilon": EPSILON, "scale_offset": scale_offset}
    for i in range(2):
        x, scale, dy = arrays[i], arrays[2 + i], cotangents[i]
        assert outputs[i].dtype == x.dtype
        oracle.assert_close(outputs[i], *oracle.forward(kind, x, scale, None, **options), NAMES[i])
        expected = oracle.backward(kind, x, scale, None, dy, **options)
        for name, array, gradient in (("x", x, gradients[i]), ("scale", scale, gradients[2 + i])):
            if array is None:
                assert gradient is None
            else:
                assert (gradient.dtype, gradient.shape) == (array.dtype, array.shape)
                oracle.assert_close(gradient, *expected[name], f"gradient of the {name} of {NAMES[i]}")


def norm(kind, implementation, **options):
    options |= {"implementation": implementation, "interpret": implementation != "xla", "epsilon": EPSILON}
    return functools.partial(pallas_kernels.qk_norm, kind=kind, **options)


# The TPU kernel is this family's own and sees every shape; the others are the row norms', tested on more shapes there.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
CASES = [
    pytest.param(name, implementation, kind, id=f"{name}-{implementation}-{kind}")
    for i, name in enumerate(shapes.SMALL)
    for implementation, every in (("mosaic_tpu", 1), ("triton", 12), ("xla", 12))
    for k, kind in enumerate(KINDS)
    if NIGHTLY or (i % every == 0 and (i // every + k) % 2 == 0)
]


@pytest.mark.parametrize(("name", "implementation", "kind"), CASES)
def test_agrees_with_float64(rng, name, implementation, kind):
    check(*inputs(rng, shapes.SMALL[name]), kind, norm(kind, implementation))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_scale_offset_and_scales_of_another_dtype(rng, implementation):
    (q, k, *scales), cotangents = inputs(rng, shapes.SMALL["odd_tokens"])
    scales = [scale.astype(jnp.bfloat16) for scale in scales]
    check((q, k, *scales), cotangents, "rms", norm("rms", implementation, scale_offset=1.0), scale_offset=1.0)


def test_a_distant_head_beside_a_near_one(rng):
    # The statistics of one head know nothing of its neighbour in the register.
    (q, k, *_), cotangents = inputs(rng, shapes.SMALL["a_register_and_a_half"])
    q[:, 1] += 1e4
    check((q, k, None, None), cotangents, "layer", norm("layer", "mosaic_tpu"))


def test_which_kernel_runs(rng):
    def found(name):
        arrays, cotangents = inputs(rng, shapes.SMALL[name])
        call = norm("rms", "mosaic_tpu")
        return dict(kernels(jax.make_jaxpr(lambda *a: jax.vjp(call, *a)[1](cotangents))(*arrays).jaxpr))

    assert found("odd_tokens") == {"rms_norm_heads_fwd": 1, "rms_norm_heads_bwd": 2}
    assert found("plain_rows") == {"rms_norm_fwd": 2, "rms_norm_bwd": 2}


def test_vmap_and_remat(rng):
    (q, k, *scales), cotangents = inputs(rng, shapes.Heads(6, 2, 1, 64, "float32"))
    stack = lambda a: a.reshape(2, 3, *a.shape[1:])
    mapped = jax.checkpoint(jax.vmap(norm("rms", "mosaic_tpu"), in_axes=(0, 0, None, None)))
    check((stack(q), stack(k), *scales), tuple(map(stack, cotangents)), "rms", mapped)


def test_split_tokens_and_heads_need_one_all_reduce_for_each_scale(rng):
    mesh, spec = mesh_of("Auto"), P("data", "model")
    arrays, cotangents = inputs(rng, shapes.Heads(8, 4, 2, 64, "float32"))
    call = norm("rms", "mosaic_tpu", mesh=mesh, spec=spec)
    place = lambda a: jax.device_put(a, NamedSharding(mesh, spec if a.ndim == 3 else P()))
    placed, placed_cotangents = jax.tree.map(place, (arrays, cotangents))
    assert pallas_kernels.count_collectives(jax.jit(call).lower(*placed).compile()) == {}
    both = jax.jit(lambda arrays, cotangents: jax.vjp(call, *arrays)[1](cotangents)).lower(placed, placed_cotangents)
    both = both.compile()
    # XLA may send both in one message.
    assert pallas_kernels.count_collectives(both)["all-reduce"] <= 2
    gradients = both(placed, placed_cotangents)
    for i in range(2):
        expected = oracle.backward("rms", arrays[i], arrays[2 + i], None, cotangents[i], axis=-1, epsilon=EPSILON)
        oracle.assert_close(gradients[i], *expected["x"], NAMES[i])
        oracle.assert_close(gradients[2 + i], *expected["scale"], NAMES[2 + i])


def test_no_races_and_nothing_out_of_bounds(rng):
    settings = RowNorm("rms", (2,), 1e-6, heads=True, interpret=PARAMS)
    (x, _, scale, _), (dy, _) = inputs(rng, shapes.Heads(66, 3, 1, 64, "float32"))

    def passes(room, *block):
        outputs, saved = room.forward(settings, (x, scale, None), True, *block)
        return *outputs, *room.backward(settings, (scale, None), saved, (dy,), *block)[:2]

    found = jax.block_until_ready(jax.jit(lambda: passes(packed_tpu, 64))())
    expected = jax.jit(lambda: passes(reference))()
    assert not races_found()
    pltpu.reset_tpu_interpret_mode_state()
    for a, b in zip(found, expected, strict=True):
        # Both are float32 and sum in their own order: a few eps of the largest terms, over 198 rows.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps * np.abs(b).max())


def test_errors_say_what_came_and_the_way_out():
    q, k = jnp.ones((5, 4, 8)), jnp.ones((5, 2, 8))
    with pytest.raises(ValueError, match="kind='crms' is unknown; expected one of"):
        pallas_kernels.qk_norm(q, k, kind="crms")
    with pytest.raises(ValueError, match=r"\(\.\.\., heads, features\), of as many, got \(5, 4, 8\) and \(5, 2, 4\)"):
        pallas_kernels.qk_norm(q, k[..., :4])
    with pytest.raises(ValueError, match=r"scale must have the shape \(8,\) .* got \(4, 8\)"):
        pallas_kernels.qk_norm(q, k, jnp.ones((4, 8)))
    with pytest.raises(ValueError, match="added to a scale, but scale is None; pass zeros"):
        pallas_kernels.qk_norm(q, k, jnp.ones(8), scale_offset=1.0)
    with pytest.raises(NotImplementedError, match="takes float32, bfloat16 and computes in float32, got float16"):
        pallas_kernels.qk_norm(q.astype(jnp.float16), k, implementation="mosaic_tpu")
