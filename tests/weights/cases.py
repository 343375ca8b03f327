"""The one list of cases that the battery of weights runs over, each with its equation once more in float64 NumPy."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import normjax as nj

Expected = Callable[[dict[str, Any], dict[str, Any], np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Case:
    """One reparametrization in one setting.

    Attributes:
      name: Shown as the test's id.
      factory: The exported factory it belongs to.
      options: Its arguments.
      shape: Shape of a kernel.
      expected: `expected(params, state, kernel, axes) -> effective` in float64, for a training step.
      constant_vectors: Whether the derivative takes the state's new vectors for constants, so that finite differences
        of the whole step are another derivative.
    """

    name: str
    factory: Callable[..., nj.WeightTransform]
    options: dict[str, Any]
    shape: tuple[int, ...]
    expected: Callable[..., np.ndarray]
    constant_vectors: bool = False

    @property
    def transform(self) -> nj.WeightTransform:
        return self.factory(**self.options)

    @property
    def axes(self) -> Any:
        return self.options.get("feature_axes", -1)


def drawn(case, rng, dtype=np.float32, size=1.0):
    """A kernel, and parameters and a state that no `init` made: scales around 1, vectors of norm 1."""
    # Put on the device as it is: an array that JAX converts or copies first is a program for each shape.
    kernel = jax.device_put(np.asarray(size * (0.5 + rng.standard_normal(case.shape)), dtype))
    params, state = jax.eval_shape(case.transform.init, jax.random.key(0), kernel)

    def vector(leaf):
        values = rng.standard_normal(leaf.shape)
        return np.asarray(values / np.linalg.norm(values), leaf.dtype)

    scale = lambda leaf: np.asarray(1 + 0.3 * rng.standard_normal(leaf.shape), leaf.dtype)
    return kernel, *jax.device_put((jax.tree.map(scale, params), jax.tree.map(vector, state)))


def units(kernel, axes):
    """The kernel as a (fan-in, units) matrix in float64, and what puts such a matrix back."""
    kernel = np.asarray(kernel, np.float64)
    axes = (axes,) if isinstance(axes, int) else tuple(axes)
    kept = [a % kernel.ndim for a in axes]
    order = [a for a in range(kernel.ndim) if a not in kept] + sorted(kept)
    moved = kernel.transpose(order)
    count = int(np.prod([kernel.shape[a] for a in kept]))
    return moved.reshape(-1, count), lambda matrix: matrix.reshape(moved.shape).transpose(np.argsort(order))


def by_units(size, *, centre=True, gain=1.0):
    """`g c / size(c)` for every unit."""

    def expected(params, state, kernel, axes):
        matrix, back = units(kernel, axes)
        c = matrix - matrix.mean(0) if centre else matrix
        divisor = size(c)
        g = np.asarray(params.get("scale", 1.0 if "scale" in params else gain), np.float64).reshape(-1)
        return back(g * c / np.where(divisor > 0, divisor, 1))

    return expected


def norm(c):
    return np.sqrt((c**2).sum(0))


def std(c, ddof):
    return np.sqrt((c**2).sum(0) / (len(c) - ddof))


def spectral(order, n_steps=1):
    def unit(a, epsilon):
        size = np.sqrt((a**2).sum())
        return a / (np.maximum(size, epsilon) if order == "torch" else np.sqrt(size**2 + epsilon))

    def expected(params, state, kernel, axes):
        matrix, back = units(kernel, axes)
        u = np.asarray(state["u"], np.float64).reshape(-1)
        v = np.asarray(state["v"], np.float64).reshape(-1) if order == "torch" else None
        for _ in range(n_steps):
            if order == "torch":
                u = unit(matrix.T @ v, 1e-12)
                v = unit(matrix @ u, 1e-12)
            else:
                v = unit(matrix @ u, 1e-12)
                u = unit(matrix.T @ v, 1e-12)
        sigma = v @ matrix @ u
        return back(np.float64(params.get("scale", 1.0)) * matrix / (sigma if sigma else 1.0))

    return expected


CONV = (3, 2, 4, 6)
CASES = [
    Case("weight norm", nj.weight_norm, {}, (5, 4), by_units(norm, centre=False)),
    Case(
        "weight norm as in flax",
        nj.weight_norm,
        {"epsilon": 1e-2, "scale_init": lambda rng, shape, dtype: np.ones(shape, dtype)},
        CONV,
        by_units(lambda c: np.sqrt((c**2).sum(0) + 1e-2), centre=False),
    ),
    Case(
        "weight norm of embeddings, without scale",
        nj.weight_norm,
        {"feature_axes": 0, "use_scale": False, "epsilon": 0.1, "epsilon_mode": "outside"},
        (7, 3),
        by_units(lambda c: norm(c) + 0.1, centre=False),
    ),
    Case(
        "weight norm of heads",
        nj.weight_norm,
        {"feature_axes": (-2, -1), "epsilon": 0.5, "epsilon_mode": "clamp"},
        (6, 2, 3),
        by_units(lambda c: np.maximum(norm(c), 0.5), centre=False),
    ),
    Case("weight norm of the whole kernel", nj.weight_norm, {"feature_axes": ()}, (4, 3), by_units(norm, centre=False)),
    Case(
        "centred",
        nj.centred_weight_norm,
        {},
        (6, 4),
        by_units(lambda c: norm(c) + 1e-5, gain=1.414),
    ),
    Case(
        "centred, learned length",
        nj.centred_weight_norm,
        {"use_scale": True, "epsilon": 0.01, "feature_axes": 0},
        (4, 3, 5),
        by_units(lambda c: norm(c) + 0.01),
    ),
    Case("standardized (readme, torch)", nj.weight_standardization, {}, CONV, by_units(lambda c: std(c, 1) + 1e-5)),
    Case(
        "standardized (readme, tensorflow)",
        nj.weight_standardization,
        {"unbiased": False, "epsilon": 0.1},
        (5, 3),
        by_units(lambda c: std(c, 0) + 0.1),
    ),
    Case(
        "standardized (batch-channel)",
        nj.weight_standardization,
        {"epsilon_mode": "inside", "epsilon": 0.1, "feature_axes": 0},
        (4, 3, 2),
        by_units(lambda c: np.sqrt(std(c, 1) ** 2 + 0.1)),
    ),
    Case(
        "standardized (timm)",
        nj.weight_standardization,
        {"unbiased": False, "epsilon": 1e-6, "epsilon_mode": "inside"},
        (5, 3),
        by_units(lambda c: np.sqrt(std(c, 0) ** 2 + 1e-6)),
    ),
    Case(
        "scaled (timm)",
        nj.scaled_weight_standardization,
        {"gamma": 1.7},
        CONV,
        by_units(lambda c: np.sqrt(len(c) * (std(c, 0) ** 2 + 1e-6)) / 1.7),
    ),
    Case(
        "scaled (nf-nets)",
        nj.scaled_weight_standardization,
        {"epsilon_rule": "max", "feature_axes": (-2, -1)},
        (6, 2, 2),
        by_units(lambda c: np.sqrt(np.maximum(len(c) * std(c, 0) ** 2, 1e-4))),
    ),
    Case(
        "scaled (nf-nets) below its bound, without scale",
        nj.scaled_weight_standardization,
        {"epsilon_rule": "max", "epsilon": 100.0, "use_scale": False},
        (5, 3),
        by_units(lambda c: np.sqrt(np.maximum(len(c) * std(c, 0) ** 2, 100.0))),
    ),
    Case("spectral (torch)", nj.spectral_norm, {}, (5, 4), spectral("torch"), constant_vectors=True),
    Case(
        "spectral (torch), three steps and a scale",
        nj.spectral_norm,
        {"n_steps": 3, "use_scale": True, "feature_axes": 0, "init_steps": 0},
        CONV,
        spectral("torch", 3),
        constant_vectors=True,
    ),
    Case(
        "spectral (flax), two steps",
        nj.spectral_norm,
        {"order": "flax", "n_steps": 2},
        CONV,
        spectral("flax", 2),
        constant_vectors=True,
    ),
]
