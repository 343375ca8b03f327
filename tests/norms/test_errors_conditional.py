"""Bad input to norms that read a condition, to GDN and to layer masking: each call raises and says what to do."""

import jax
import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))
C = jnp.ones((2, 5))


def apply(norm, x=X, at_init=None, **context):
    params, state = norm.init(jax.random.key(0), X, **(at_init or {k: v for k, v in context.items() if k != "mask"}))
    return norm.apply(params, state, x, train=True, **context)


CALLS = {
    "no time": (lambda: nj.time_dependent_layer_norm().init(None, X), ValueError, "time_dependent_layer_norm.*time="),
    "no time in apply": (lambda: apply(nj.time_dependent_rms_norm(), at_init={"time": 0.5}), ValueError, "got none"),
    "times of another batch": (
        lambda: apply(nj.time_dependent_layer_norm(), time=jnp.ones(3)),
        ValueError,
        r"time.*\(3,\).*\(2, 3\)",
    ),
    "too many times": (lambda: apply(nj.time_dependent_rms_norm(), time=jnp.ones((2, 3, 4))), ValueError, "each token"),
    "time-dependent integers": (
        lambda: apply(nj.time_dependent_layer_norm(), x=jnp.ones((2, 3, 4), jnp.int32), time=jnp.ones(2)),
        TypeError,
        "int32",
    ),
    "negative epsilon": (lambda: nj.time_dependent_rms_norm(epsilon=-1.0), ValueError, "-1.0"),
    "no condition": (lambda: nj.ada_layer_norm().init(None, X), ValueError, "condition="),
    "condition of another width": (
        lambda: apply(nj.ada_layer_norm(), at_init={"condition": C}, condition=jnp.ones((2, 6))),
        ValueError,
        r"\(2, 6\).*\(5, 8\).*5 features",
    ),
    "condition of another batch": (
        lambda: apply(nj.ada_layer_norm(), condition=jnp.ones((3, 5))),
        ValueError,
        r"\(3,\)",
    ),
    "unknown chunk": (lambda: nj.ada_layer_norm(chunks=("shift", "skale")), ValueError, "skale.*ada_modulation"),
    "chunk twice": (lambda: nj.ada_layer_norm(chunks=("shift", "scale") * 2), ValueError, "distinct"),
    "only a gate": (lambda: nj.ada_layer_norm(chunks=("gate",)), ValueError, "shift or a scale"),
    "no gate": (
        lambda: nj.ada_gate(nj.ada_layer_norm().init(None, X, condition=C)[0], X, C, chunks=("shift", "scale")),
        ValueError,
        "no gate",
    ),
    "chunks do not divide": (lambda: nj.ada_modulation(C, jnp.ones((5, 8)), None, chunks=3), ValueError, "chunks=3.*8"),
    "ada rms without condition": (lambda: nj.ada_rms_norm().init(None, X), ValueError, "ada_rms_norm"),
    "no depth": (
        lambda: nj.ada_time_depth_norm().init(jax.random.key(0), X, time=jnp.ones(2)),
        ValueError,
        "depth=",
    ),
    "time and depth": (
        lambda: apply(nj.ada_time_depth_norm(), time=jnp.ones(2), depth=jnp.ones(3)),
        ValueError,
        r"\(2,\).*\(3,\)",
    ),
    "random weights without a key": (
        lambda: nj.ada_time_depth_norm().init(None, X, time=jnp.ones(2), depth=1),
        ValueError,
        "rng=None",
    ),
    "odd embedding": (lambda: nj.sinusoidal_embedding(jnp.ones(2), 5), ValueError, "even.*5"),
    "self-modulation without a key": (lambda: nj.self_modulation().init(None, X), ValueError, "self_modulation.*key"),
    "scale without rank": (lambda: nj.modulate(X, jnp.ones(4), None), ValueError, r"\(4,\).*\(2, 3, 4\)"),
    "shift too wide": (lambda: nj.modulate(X, None, jnp.ones((5, 2, 3, 4))), ValueError, "shift"),
    "gamma of another shape": (lambda: nj.gdn_normalize(X, jnp.ones(4), jnp.ones(4)), ValueError, r"gamma.*\(4, 4\)"),
    "beta_min": (lambda: nj.gdn(beta_min=0.0), ValueError, "beta_min=0.0"),
    "integers to GDN": (lambda: nj.gdn_normalize(jnp.ones(4, jnp.int32), jnp.ones(4), jnp.eye(4)), TypeError, "int32"),
    "bound of integers": (lambda: nj.lower_bound(jnp.ones(2, jnp.int32), 1.0), TypeError, "int32"),
    "weights": (lambda: nj.fixed_scale(X, jnp.ones(3)), ValueError, r"weights.*\(3,\).*\(4,\)"),
    "mask of another shape": (lambda: apply(nj.mask_carrying_norm(), mask=jnp.ones((2, 3))), ValueError, r"\(2, 3\)"),
    "even window": (
        lambda: nj.fill_holes(X, jnp.ones((2, 3, 1)), rounds=1, spatial_axes=1, window=2),
        ValueError,
        "window=2",
    ),
    "mask of lower rank": (lambda: nj.fill_holes(X, jnp.ones(4), rounds=1, spatial_axes=1), ValueError, r"\(4,\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
