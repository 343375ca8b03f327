"""Bad input to the norms with state that the backward pass writes."""

import jax
import jax.numpy as jnp
import optax
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))


def apply(norm, train=True, drop=(), **kwargs):
    params, state = norm.init(None, X)
    return norm.apply({k: v for k, v in params.items() if k not in drop}, state, X, train=train, **kwargs)


WRITTEN = "_overwrite_with_gradient"
CALLS = {
    "window": (lambda: nj.unified_norm(window=0), ValueError, "window.*0"),
    "backward window": (lambda: nj.unified_norm(window=(4, -1)), ValueError, "window.*-1"),
    "three windows": (lambda: nj.unified_norm(window=(1, 2, 3)), ValueError, r"\(1, 2, 3\)"),
    "window not an int": (lambda: nj.unified_norm(window=(4, 2.0)), TypeError, "2.0"),
    "warm-up": (lambda: nj.power_norm(warmup=-1), ValueError, "warmup.*-1"),
    "warm-up not an int": (lambda: nj.unified_norm(warmup=1.5), TypeError, "1.5"),
    "momentum": (lambda: nj.unified_norm(momentum=1.1), ValueError, "1.1"),
    "backward momentum": (lambda: nj.power_norm(backward_momentum=-0.1), ValueError, "backward_momentum.*-0.1"),
    "guard of nothing": (lambda: nj.unified_norm(max_skips=2), ValueError, "outlier_filtration"),
    "guard": (lambda: nj.unified_norm(outlier_filtration=True, max_skips=0), ValueError, "max_skips.*0"),
    "groups": (lambda: nj.power_norm(num_groups=3).init(None, X), ValueError, r"num_groups=3.*\(4,\)"),
    "groups of two axes": (
        lambda: nj.power_norm(feature_axes=(1, 2)).init(None, X),
        ValueError,
        r"num_groups=1.*\(3, 4\)",
    ),
    "mask of features": (
        lambda: apply(nj.power_norm(), mask=jnp.ones(4)),
        ValueError,
        r"size 1 on axis 2.*\(1, 1, 4\)",
    ),
    "mask": (lambda: apply(nj.unified_norm(), mask=jnp.ones((2, 3))), ValueError, r"\(2, 3\).*\(2, 3, 4\)"),
    "state left out": (lambda: apply(nj.unified_norm(), drop=(WRITTEN,)), ValueError, "buffer_gz.*train=False"),
    "no batch axis": (lambda: nj.power_norm().init(None, jnp.ones(4)), ValueError, "rank 1"),
    "no params": (lambda: nj.overwrite_with_gradient(optax.identity()).update({}, {}), ValueError, "params=None"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()


def test_forward_mode_says_that_it_does_not_exist():
    norm = nj.power_norm()
    params, state = norm.init(None, X)
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: norm.apply(params, state, x, train=True)[0], (X,), (X,))
