r"""Spectral normalization (Miyato et al. 2018): the kernel divided by its largest singular value, by power iteration.

$$u \leftarrow \frac{W^\top v}{\|W^\top v\|},\quad v \leftarrow \frac{W u}{\|W u\|},\quad
\hat W = g\, \frac{W}{v^\top W u}$$

$W$ is the kernel as a matrix (fan-in, output units), `u` lives on its units and `v` on its fan-in; both are state and
constants of the derivative. This is torch's order; its evaluation uses the stored vectors. Flax updates $v$ first,
stores `u` and `sigma` only, and iterates in evaluation too, without storing. A learned $g$ makes it σReparam (Zhai et
al. 2023). The kernel's own scale does not matter, jointly for all units. A zero kernel stays zero and leaves the
vectors as they were: the published code stores zeros and never recovers from them. In evaluation the effective kernel
replaces the stored one (`bake`).
"""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from normjax import _checks
from normjax._method import method
from normjax.norms._affine import Initializer, affine, default_init
from normjax.precision import TORCH, EpsilonMode, Precision, statistics_dtype
from normjax.reductions import prepare
from normjax.weights._power_iteration import contract, iterate, unit_vector
from normjax.weights._transform import WeightTransform
from normjax.weights._units import Axes, unit_axes

Order = Literal["torch", "flax"]


def spectral_normalize(
    kernel: jax.Array,
    u: jax.Array,
    v: jax.Array,
    scale: jax.Array | None = None,
    *,
    feature_axes: Axes = -1,
    n_steps: int = 1,
    epsilon: float = 1e-12,
    epsilon_mode: EpsilonMode = "clamp",
    precision: Precision = TORCH,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    r"""Spectral normalization of a kernel: $g\,W / (v^\top W u)$ after `n_steps` of power iteration, `u` first.

    Args:
      kernel: $W$, floating, e.g. `(in, out)` or `(height, width, in, out)`.
      u: Vector of the output units, of the shape of the feature axes.
      v: Vector of the fan-in, of the shape of the other axes. Both are taken to have norm 1.
      scale: $g$, a scalar, or `None` for 1.
      feature_axes: Axes that number the output units.
      n_steps: Steps of power iteration; 0 uses the vectors as they are (evaluation).
      epsilon: Non-negative number, for the norms of the vectors.
      epsilon_mode: Where it sits: lower bound of the norm (`"clamp"`, torch) or added to its square (`"inside"`, Flax).
      precision: Dtypes and cast order.

    Returns:
      `(effective, u, v, sigma)`: the effective kernel, the new vectors and the singular value it was divided by, the
      last three in float32 or wider.

    Raises:
      TypeError: If `kernel` is not floating.
      ValueError: If axes, vectors, steps or epsilon do not fit.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> kernel = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> effective, u, v, sigma = nj.spectral_normalize(kernel, jnp.ones(2), jnp.array([0.8, 0.6]), n_steps=20)
      >>> print(effective.round(3), round(float(sigma), 3))
      [[1.    0.   ]
       [0.    0.333]] 3.0

    References:
      Miyato et al. 2018, [Spectral Normalization for Generative Adversarial Networks](https://arxiv.org/abs/1802.05957).
    """
    _check_steps(n_steps)
    _checks.check_epsilon(epsilon)
    units, inputs = _sides(kernel, feature_axes)
    _checks.check_input(kernel, range(kernel.ndim))
    for name, vector, axes in (("u", u, units), ("v", v, inputs)):
        _checks.check_parameter(name, vector, kernel.shape, _shape(kernel, axes))
    values, _ = prepare(kernel, None, statistics_dtype(kernel.dtype, precision))
    constant, u, v = jax.lax.stop_gradient((values, u.astype(values.dtype), v.astype(values.dtype)))
    u, v = iterate(constant, (u, v), (units, inputs), n_steps, float(epsilon), epsilon_mode)
    # The product of the iteration's last step once more, which a compiler therefore computes once.
    sigma = jnp.sum(v * contract(values, u, units))
    effective = affine(values / jnp.where(sigma != 0, sigma, 1), kernel, scale, None, (), precision)
    kept = statistics_dtype(kernel.dtype)
    return effective, u.astype(kept), v.astype(kept), jax.lax.stop_gradient(sigma).astype(kept)


def _check_steps(*steps: int) -> None:
    if not all(isinstance(n, int) and n >= 0 for n in steps):
        raise ValueError(f"expected whole numbers of steps >= 0, got {steps!r}.")


def _sides(kernel, feature_axes: Axes) -> tuple[tuple[int, ...], tuple[int, ...]]:
    units = unit_axes(feature_axes, kernel.ndim)
    return units, _checks.other_axes(units, kernel.ndim)


def _shape(kernel, axes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(kernel.shape[a] for a in axes)


@method(
    "Spectral normalization",
    "Miyato et al. 2018",
    "1802.05957",
    "weight",
    state=("u", "(v)", "(sigma)"),
    folds="all",
    scale_invariance="joint",
)
def spectral_norm(
    *,
    feature_axes: Axes = -1,
    n_steps: int = 1,
    epsilon: float = 1e-12,
    order: Order = "torch",
    init_steps: int = 15,
    use_scale: bool = False,
    scale_init: Initializer | None = None,
    precision: Precision = TORCH,
) -> WeightTransform:
    r"""Spectral normalization as a transform; state `{"u", "v"}`, parameters `{"scale"}` if asked for.

    Args:
      feature_axes: Axes that number the output units.
      n_steps: Steps of power iteration for each training step.
      epsilon: Non-negative number, for the norms of the vectors.
      order: `"torch"` or `"flax"`, whose state is `{"u", "sigma"}`, `u` with a leading axis of 1.
      init_steps: Steps in `init`, so that sigma is right from the start: 15 in torch, 0 in Flax.
      use_scale: Whether there is a learned scalar $g$ (σReparam).
      scale_init: Its initializer; ones by default.
      precision: Dtypes and cast order. The state is float32, or float64 where the kernel is.

    Returns:
      The transform. Its `init` draws the first vectors and needs a key.

    Raises:
      ValueError: If steps or epsilon are negative or the order is unknown.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> transform = nj.spectral_norm()
      >>> kernel = jnp.array([[3.0, 0.0], [0.0, 1.0]])
      >>> params, state = transform.init(jax.random.key(0), kernel)
      >>> effective, state = transform.apply(params, state, kernel, train=True)
      >>> print(effective.round(3))
      [[1.    0.   ]
       [0.    0.333]]

    References:
      Miyato et al. 2018, [Spectral Normalization for Generative Adversarial Networks](https://arxiv.org/abs/1802.05957);
      Zhai et al. 2023, [Stabilizing Transformer Training by Preventing Attention Entropy
      Collapse](https://arxiv.org/abs/2303.06296).
    """
    if order not in get_args(Order):
        raise ValueError(f"order={order!r} is unknown; expected one of {get_args(Order)}.")
    flax = order == "flax"
    _check_steps(n_steps, init_steps)
    if flax and n_steps == 0:
        raise ValueError("order='flax' does not store v, so that nothing is left to use with n_steps=0.")
    _checks.check_epsilon(epsilon)

    def roles(kernel):
        # Flax's order is torch's on the transposed matrix: what it updates first lives on the fan-in.
        units, inputs = _sides(kernel, feature_axes)
        return (inputs, units) if flax else (units, inputs)

    def pack(first, second, sigma):
        return {"u": second.reshape(1, -1), "sigma": sigma} if flax else {"u": first, "v": second}

    def run(params, first, second, kernel, steps):
        mode = "inside" if flax else "clamp"
        options = {"feature_axes": roles(kernel)[0], "epsilon_mode": mode, "epsilon": epsilon, "precision": precision}
        effective, *new = spectral_normalize(kernel, first, second, params.get("scale"), n_steps=steps, **options)
        return effective, pack(*new)

    def init(rng, kernel):
        if rng is None:
            raise ValueError("spectral_norm draws its first vectors at random: init needs a key, got rng=None.")
        dtype = statistics_dtype(kernel.dtype)
        rngs = jax.random.split(rng, 3)
        first, second = (
            jax.random.normal(rngs[i], _shape(kernel, axes), dtype) for i, axes in enumerate(roles(kernel))
        )
        params = {"scale": default_init(scale_init, 1.0)(rngs[2], (), precision.parameters)} if use_scale else {}
        first, second = (unit_vector(vector, epsilon, "clamp", old=vector) for vector in (first, second))
        state = run({}, first, second, kernel, init_steps)[1]
        return params, state | ({"sigma": jnp.ones((), dtype)} if flax else {})

    def apply(params, state, kernel, *, train):
        first, second = (_shape(kernel, axes) for axes in roles(kernel))
        vectors = (jnp.zeros(first), state["u"].reshape(second)) if flax else (state["u"], state["v"])
        effective, new = run(params, *vectors, kernel, n_steps if train or flax else 0)
        return effective, new if train else state

    return WeightTransform(init, apply)
