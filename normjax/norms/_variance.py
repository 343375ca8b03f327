"""Standardization by another variance than the biased one of the set itself."""

import jax
import jax.numpy as jnp

from normjax.moments import Moments, Standardization, variance
from normjax.precision import inverse_root


def divided_by(normalized: jax.Array, moments: Moments, var: jax.Array, spec: Standardization) -> jax.Array:
    """Turns what `standardize` returned into the same deviations, divided by the root of `var` and epsilon.

    The factor has one value per set, so the centring and its accuracy are those of `standardize`, and nothing is
    singular where there is no spread.
    """
    used = inverse_root(variance(moments), spec.epsilon, spec.epsilon_mode)
    return normalized * (inverse_root(var, spec.epsilon, spec.epsilon_mode) / jnp.where(used > 0, used, 1))
