"""Cases of norms modulated by vectors, and divisive normalization."""

import math

import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case


def _wide(tree):
    return {k: _wide(v) if isinstance(v, dict) else np.asarray(v, np.float64) for k, v in tree.items()}


def _sigmoid(v):
    return 1 / (1 + np.exp(-v))


def _silu(v):
    return v * _sigmoid(v)


def _erf(v):
    return np.vectorize(math.erf)(v)


def _spread(vectors, ndim):
    """(batch, features) between the axes of an array of rank `ndim`."""
    return vectors.reshape(*vectors.shape[:-1], *[1] * (ndim - vectors.ndim), vectors.shape[-1])


def _at_time(p, time):
    slope = _sigmoid((p["u"] + 1) * np.asarray(time, np.float64)[..., None] / 4 + p["b"])
    return p["p1"] + slope * (p["p0"] - p["p1"])


def _time_dependent(epsilon, **options):
    def expected(params, x, mask, time):
        params = _wide(params)
        y, *_ = oracle.standardize(x, (x.ndim - 1,), mask=mask, epsilon=epsilon, **options)
        y = y * _spread(_at_time(params["scale"], time), x.ndim)
        return y + _spread(_at_time(params["bias"], time), x.ndim) if "bias" in params else y

    return expected


def _layer(x, mask):
    return oracle.standardize(x, (x.ndim - 1,), mask=mask, epsilon=1e-6)[0]


def _ada_zero(params, x, mask, condition):
    params = _wide(params)
    shift, scale, _ = np.split(_silu(np.asarray(condition, np.float64)) @ params["kernel"] + params["bias"], 3, axis=-1)
    return _layer(x, mask) * (1 + _spread(scale, x.ndim)) + _spread(shift, x.ndim)


def _shifted_instance(params, x, mask, condition):
    shift = np.asarray(condition, np.float64) @ np.asarray(params["kernel"], np.float64)
    return oracle.standardize(x, (1,), mask=mask, epsilon=1e-5)[0] + shift


def _ada_rms(params, x, mask, condition):
    scale = np.asarray(condition, np.float64) @ np.asarray(params["kernel"], np.float64)
    y, *_ = oracle.standardize(x, (x.ndim - 1,), mask=mask, epsilon=1e-6, centre=False)
    return y * (1 + _spread(scale, x.ndim))


def _embedded(params, positions):
    angles = np.asarray(positions, np.float64)[..., None] * 100.0 ** (-np.arange(4) / 4)
    v = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    hidden = _silu(v @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def _time_depth(params, x, mask, time, depth):
    params = _wide(params)
    e = _embedded(params["time"], 2.0 * np.asarray(time, np.float64)) + _embedded(params["depth"], depth)
    shift, scale = np.split(_silu(e) @ params["kernel"] + params["bias"], 2, axis=-1)
    return _layer(x, mask) * (1 + _spread(scale, x.ndim)) + _spread(shift, x.ndim)


def _self_modulated(params, x, mask):
    params, x = _wide(params), np.asarray(x, np.float64)
    h = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    h = 0.5 * h * (1 + _erf(h / np.sqrt(2)))
    s, b = np.split(h @ params["out"]["kernel"] + params["out"]["bias"], 2, axis=-1)
    return x * (1 + s) + b


def _divided(inverse=False, absolute=False):
    def expected(params, x, mask):
        x = np.asarray(x, np.float64)
        raw = {k: np.asarray(v, np.float64) for k, v in params.items()}
        beta = np.maximum(raw["beta"] ** 2 - 2.0**-36, 1e-6)
        gamma = np.maximum(raw["gamma"], 2.0**-18) ** 2 - 2.0**-36
        beta = np.where(raw["beta"] > 0, beta, 1e-6)
        entering = x if mask is None else np.where(np.broadcast_to(mask != 0, x.shape), x, 0)
        pool = beta + (np.abs(entering) if absolute else entering**2) @ gamma.T
        root = pool if absolute else np.sqrt(pool)
        return x * root if inverse else x / root

    return expected


def _carried(params, x, mask):
    y, *_ = oracle.standardize(x, (0, 1), mask=mask, epsilon=1e-5)
    y = oracle.affine(y, params, (2,))
    return y if mask is None else np.where(np.broadcast_to(np.asarray(mask) != 0, x.shape), y, 0)


def _samples(name, features=None, scale=1.0):
    def context(rng, shape):
        size = (shape[0],) if features is None else (shape[0], features)
        return {name: (scale * rng.standard_normal(size)).astype(np.float32)}

    return context


def _one_condition(rng, shape):
    return {"condition": rng.standard_normal(3).astype(np.float32)}


def _time_and_depth(rng, shape):
    return {"time": rng.random(shape[0]).astype(np.float32), "depth": np.asarray(7, np.int32)}


def _constant(value):
    return lambda rng, shape, dtype: jnp.full(shape, value, dtype)


# Above their bounds by five times the noise that the battery adds: there the reverse rule is the derivative. Beta is
# large beside epsilons because it is no epsilon: the norm is not scale-invariant.
_ABOVE = {"beta_init": _constant(100.0), "gamma_init": _constant(2.25)}

CASES: list[Case] = [
    Case(
        "time-dependent layer",
        nj.time_dependent_layer_norm,
        nj.time_dependent_layer_norm(),
        (4, 3, 8),
        _time_dependent(1e-5),
        (2,),
        context=_samples("time", scale=4.0),
        channels_first=nj.time_dependent_layer_norm(axis=1),
    ),
    Case(
        "time-dependent rms",
        nj.time_dependent_rms_norm,
        nj.time_dependent_rms_norm(),
        (4, 8),
        _time_dependent(1e-8, centre=False, mode="outside"),
        (1,),
        context=_samples("time", scale=4.0),
    ),
    Case(
        "time-dependent rms with bias",
        nj.time_dependent_rms_norm,
        nj.time_dependent_rms_norm(use_bias=True, epsilon=1e-3, epsilon_mode="inside"),
        (4, 3, 8),
        _time_dependent(1e-3, centre=False),
        (2,),
        context=_samples("time", scale=4.0),
    ),
    Case(
        "adaLN-Zero",
        nj.ada_layer_norm,
        nj.ada_layer_norm(chunks=("shift", "scale", "gate")),
        (4, 3, 8),
        _ada_zero,
        (2,),
        context=_samples("condition", 5),
        channels_first=nj.ada_layer_norm(chunks=("shift", "scale", "gate"), feature_axis=1),
    ),
    Case(
        "ada instance, one condition for all",
        nj.ada_layer_norm,
        nj.ada_layer_norm(
            nj.instance_norm(epsilon=1e-5, use_scale=False, use_bias=False),
            chunks=("shift",),
            activation=None,
            use_bias=False,
        ),
        (4, 3, 8),
        _shifted_instance,
        (1,),
        context=_one_condition,
    ),
    Case(
        "ada rms",
        nj.ada_rms_norm,
        nj.ada_rms_norm(),
        (4, 3, 8),
        _ada_rms,
        (2,),
        context=_samples("condition", 5),
        channels_first=nj.ada_rms_norm(axis=1),
    ),
    Case(
        "ada rms, published cast order",
        nj.ada_rms_norm,
        nj.ada_rms_norm(precision=nj.Precision(cast_order="cast_then_multiply")),
        (4, 8),
        _ada_rms,
        (1,),
        context=_samples("condition", 5),
    ),
    Case(
        "ada on time and depth",
        nj.ada_time_depth_norm,
        nj.ada_time_depth_norm(embedding_features=8, time_scale=2.0, max_period=100.0),
        (4, 3, 8),
        _time_depth,
        (2,),
        context=_time_and_depth,
        channels_first=nj.ada_time_depth_norm(feature_axis=1, embedding_features=8, time_scale=2.0, max_period=100.0),
    ),
    Case(
        "self-modulation",
        nj.self_modulation,
        nj.self_modulation(),
        (4, 3, 3, 5),
        _self_modulated,
        (),
        channels_first=nj.self_modulation(feature_axis=1),
    ),
    Case(
        "gdn",
        nj.gdn,
        nj.gdn(**_ABOVE),
        (4, 3, 3, 5),
        _divided(),
        (3,),
        channels_first=nj.gdn(feature_axis=1, **_ABOVE),
    ),
    Case("gdn1, inverse", nj.gdn, nj.gdn(absolute=True, inverse=True, **_ABOVE), (4, 5), _divided(True, True), (1,)),
    # Half of gamma starts at its bound: the reverse rule differs from the derivative there, by design.
    Case("gdn at its bound", nj.gdn, nj.gdn(), (4, 5), _divided(), (1,), exact_derivative=False),
    Case(
        "mask-carrying batch",
        nj.mask_carrying_norm,
        nj.mask_carrying_norm(),
        (8, 3, 4),
        _carried,
        (0, 1),
        channels_first=nj.mask_carrying_norm(nj.batch_norm(feature_axes=1)),
    ),
]
