"""The promise of docs/folding.md in 1024 features: folding costs nothing in rounding. `-s` prints the figures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax import fold

FEATURES = 1024


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("mean", [0.1, 10.0])
def test_a_folded_layer_is_as_exact_as_an_unfolded_one(dtype, mean):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, FEATURES)) + mean
    scale, bias = rng.uniform(0.5, 1.5, FEATURES), rng.standard_normal(FEATURES)
    kernel, offset = rng.standard_normal((FEATURES, 64)) / FEATURES**0.5, rng.standard_normal(64)
    low = lambda *arrays: [jnp.asarray(a, dtype) for a in arrays]
    # The input as it is stored; everything after it exact.
    (given,) = low(x)
    wide = np.asarray(given, np.float64)
    deviation = wide - wide.mean(-1, keepdims=True)
    exact = (deviation / np.sqrt(np.mean(deviation**2, -1, keepdims=True) + 1e-6) * scale + bias) @ kernel + offset

    @jax.jit
    def layer(x, scale, bias, kernel, offset):
        y = jnp.dot(nj.layer_normalize(x, scale, bias), kernel, preferred_element_type=jnp.float32)
        return y + offset.reshape(1, -1).astype(jnp.float32)

    error = lambda y: np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact)
    folded = fold.affine_before(kernel, offset, scale, bias)
    rounded = [np.asarray(a, np.float64) for a in low(kernel, offset, scale, bias)]
    errors = {
        "unfolded": error(layer(given, *low(scale, bias, kernel, offset))),
        "folded": error(layer(given, None, None, *low(*folded))),
        "folded from rounded parameters": error(layer(given, None, None, *low(*fold.affine_before(*rounded)))),
    }
    print(f"\n{dtype}, mean {mean}: " + ", ".join(f"{name} {value:.2e}" for name, value in errors.items()))
    assert errors["folded"] <= 1.1 * errors["unfolded"]
    assert errors["folded from rounded parameters"] <= 1.5 * errors["unfolded"]
    assert errors["folded"] < {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
