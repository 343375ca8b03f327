r"""Adaptive layer normalization on time and depth (LucidFlux, Fei et al. 2025): embeddings of both are summed.

$$y = (1 + s) \odot \mathrm{LN}(x) + t,\quad (t, s) = \mathrm{SiLU}(e)\,W + w_0,\quad
e = E_1(\phi(1000\,t)) + E_2(\phi(\ell)),\quad E_i(v) = \mathrm{SiLU}(v A_i + a_i) B_i + b_i$$

$\phi$ is the sinusoidal embedding, $\ell$ the index of the layer. Order shift, scale; nothing starts at zero: all
linear layers are drawn as torch draws them. No state; scale invariance is that of the norm inside, nothing folds.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from normjax import _checks
from normjax._method import method
from normjax.norms._context import require
from normjax.norms._modulate import at_least, linear, linear_init
from normjax.norms.ada_layer_norm import ada_layer_norm
from normjax.norms.sinusoidal_embedding import sinusoidal_embedding
from normjax.precision import TORCH, Precision, statistics_dtype
from normjax.transform import NormTransform


@method(
    "Adaptive layer normalization on time and depth",
    "Fei et al. 2025",
    "2509.22414",
    "conditional",
    context=("time", "depth"),
    scale_invariance="joint",
)
def ada_time_depth_norm(
    norm: NormTransform | None = None,
    *,
    feature_axis: int = -1,
    embedding_features: int = 256,
    time_scale: float = 1000.0,
    max_period: float = 10000.0,
    flip_sin_to_cos: bool = True,
    downscale_freq_shift: float = 0.0,
    precision: Precision = TORCH,
) -> NormTransform:
    """A norm modulated by time and depth; context `time=` and `depth=`, numbers or arrays that broadcast together.

    Parameters: those of `ada_layer_norm`, and `{"time", "depth"}`, each two linear layers `{"hidden", "out"}`.

    Args:
      norm: The norm inside, without scale and bias of its own; `None` is layer normalization with epsilon 1e-6.
      feature_axis: Where the features of `x` are.
      embedding_features: Length of the sinusoidal embeddings.
      time_scale: Multiplies the time (in [0, 1]) before its embedding; the depth enters as it is.
      max_period, flip_sin_to_cos, downscale_freq_shift: As in `sinusoidal_embedding`.
      precision: Dtype of the parameters.

    Returns:
      The transform; `init` needs a key.

    Raises:
      ValueError: If time or depth are missing or do not broadcast, or `init` gets no key.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> norm, x = nj.ada_time_depth_norm(), jnp.ones((2, 5, 3))
      >>> params, _ = norm.init(jax.random.key(0), x, time=jnp.zeros(2), depth=4)
      >>> sorted(params), params["time"]["hidden"]["kernel"].shape
      (['bias', 'depth', 'kernel', 'norm', 'time'], (256, 3))

    References:
      Fei et al. 2025, [LucidFlux](https://arxiv.org/abs/2509.22414).
    """
    name = "ada_time_depth_norm"
    inside = ada_layer_norm(norm, feature_axis=feature_axis, precision=precision)
    options: dict[str, Any] = {"max_period": max_period, "flip_sin_to_cos": flip_sin_to_cos}
    options |= {"downscale_freq_shift": downscale_freq_shift}

    def both(time, depth):
        expected = "one number, or one for each sample"
        return require(time, name, "time", expected), require(depth, name, "depth", expected)

    def init(rng, x, time=None, depth=None, **context):
        both(time, depth)
        width = x.shape[_checks.canonical_axes(feature_axis, x.ndim, "feature_axis")[0]]
        rngs = (None,) * 6 if rng is None else jax.random.split(rng, 6)
        make = functools.partial(linear_init, dtype=precision.parameters, name=name)
        embedders = {
            which: {"hidden": make(rngs[i], embedding_features, width), "out": make(rngs[i + 1], width, width)}
            for which, i in (("time", 0), ("depth", 2))
        }
        condition = jax.ShapeDtypeStruct((width,), precision.parameters)
        params, state = inside.init(rngs[4], x, condition=condition, **context)
        return params | make(rngs[5], width, 2 * width) | embedders, state

    def embed(params, positions):
        embedded = sinusoidal_embedding(positions, embedding_features, **options)
        hidden = linear(embedded, **params["hidden"], name="embedding")
        return linear(jax.nn.silu(hidden), **params["out"], name="embedding")

    def apply(params, state, x, *, train, mask=None, time=None, depth=None, **context):
        time, depth = (at_least(value, x) for value in both(time, depth))
        try:
            shape = np.broadcast_shapes(time.shape, depth.shape)
        except ValueError as error:
            raise ValueError(
                f"time of shape {time.shape} and depth of shape {depth.shape} do not broadcast together; give one "
                "number or one entry for each sample."
            ) from error
        time, depth = (jnp.broadcast_to(v.astype(statistics_dtype(v.dtype)), shape) for v in (time, depth))
        condition = embed(params["time"], time_scale * time) + embed(params["depth"], depth)
        return inside.apply(params, state, x, train=train, mask=mask, condition=condition, **context)

    return NormTransform(init, apply)
