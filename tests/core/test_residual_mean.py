"""The residual mean is taken out in every compiled form, not only where the compiler happens to be consistent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj


@pytest.mark.parametrize("count", [24, 100, 768, 1000])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_constant_columns_give_zero_under_jit(count, dtype):
    # Divided by a count that is not a power of two, and with an output cast, a fused multiply-add in one of two loops
    # left half an ulp of the mean (3e-5 at 1000), which 1 / sqrt(epsilon) blew up to 0.03.
    x = jnp.asarray(np.full((count, 64), 1000.3), dtype)
    precision = nj.Precision(output=jnp.bfloat16)
    y = jax.jit(lambda v: nj.batch_normalize(v, epsilon=1e-6, precision=precision)[0])(x)
    # What may remain: the mean of deviations of at most count/2 ulps, itself rounded, times 1 / sqrt(epsilon).
    bound = count / 2 * np.spacing(np.float32(1000)) * np.finfo(np.float32).eps * count * 1e3
    assert np.abs(np.asarray(y, np.float64)).max() <= bound


normalized = jax.jit(nj.layer_normalize)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_rows_stay_non_finite_and_to_themselves(bad):
    x = jnp.asarray([[bad, 1.0, 2.0], [1.0, 2.0, 3.0]], jnp.float32)
    y = np.asarray(normalized(x))
    assert np.isnan(y[0]).all()
    assert np.isfinite(y[1]).all()
