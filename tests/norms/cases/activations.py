"""Cases of norms fused with an activation, point functions, and gates."""

import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case


def _second_moment(x, axes, mask, centre=True):
    """Variance or mean square over the valid positions of `axes`; 1 where there are none."""
    return oracle.standardize(x, axes, mask=mask, epsilon=0.0, centre=centre)[2]


def _sigmoid(x):
    return 0.5 * (1 + np.tanh(x / 2))


def _v(params, ndim, axis=-1):
    shape = [1] * ndim
    shape[axis] = -1
    return np.asarray(params["v"], np.float64).reshape(shape)


def _evo_b(variant, epsilon):
    def expected(params, x, mask):
        x = np.asarray(x, np.float64)
        left = np.sqrt(_second_moment(x, (0, 1, 2), mask) + epsilon)
        if variant == "B0":
            right = _v(params, x.ndim) * x + np.sqrt(_second_moment(x, (1, 2), mask) + epsilon)
        else:
            rms = np.sqrt(_second_moment(x, (1, 2), mask, centre=False) + epsilon)
            right = (x + 1) * rms if variant == "B1" else rms - x
        return oracle.affine(x / np.maximum(left, right), params, (3,))

    return expected


def _evo_s(variant, groups, epsilon):
    def expected(params, x, mask):
        cut, cut_mask, axes = oracle.grouped(x, mask, groups)
        root = np.sqrt(_second_moment(cut, axes, cut_mask, centre=variant != "S2") + epsilon)
        x = np.asarray(x, np.float64)
        gate = _sigmoid(_v(params, x.ndim) * x if variant == "S0" else x)
        return oracle.affine((cut / root).reshape(x.shape) * gate, params, (x.ndim - 1,))

    return expected


def _affine_only(params, x, mask):
    return oracle.affine(np.asarray(x, np.float64), params, (3,))


def _divided_only(groups, epsilon):
    def expected(params, x, mask):
        cut, cut_mask, axes = oracle.grouped(x, mask, groups)
        root = np.sqrt(_second_moment(cut, axes, cut_mask) + epsilon)
        return oracle.affine((cut / root).reshape(x.shape), params, (x.ndim - 1,))

    return expected


def _filter_response(params, x, mask):
    x = np.asarray(x, np.float64)
    epsilon = 1e-6 + np.abs(np.asarray(params.get("epsilon", 0.0), np.float64))
    y = x / np.sqrt(_second_moment(x, (1, 2), mask, centre=False) + epsilon)
    y = oracle.affine(y, params, (3,))
    return np.maximum(y, np.asarray(params["tau"], np.float64)) if "tau" in params else y


def _point(function):
    def expected(params, x, mask):
        alpha, shift = (float(params.get(name, 0.0)) for name in ("alpha", "shift"))
        return oracle.affine(function(alpha * np.asarray(x, np.float64) + shift), params, (x.ndim - 1,))

    return expected


def _erf(z):
    """By its Taylor series where it converges without cancellation, 1 minus a continued fraction beyond."""
    a = np.abs(z)
    small, term = np.minimum(a, 2.0), np.minimum(a, 2.0)
    series = term.copy()
    for n in range(1, 60):
        term = -term * small**2 / n
        series = series + term / (2 * n + 1)
    large = np.maximum(a, 2.0)
    fraction = large.copy()
    for n in range(80, 0, -1):
        fraction = large + (n / 2) / fraction
    tail = 1 - np.exp(-(large**2)) / (np.sqrt(np.pi) * fraction)
    return np.sign(z) * np.where(a < 2, 2 / np.sqrt(np.pi) * series, tail)


def _layer_scale(params, x, mask):
    return oracle.affine(np.asarray(x, np.float64), params, (x.ndim - 1,))


CASES: list[Case] = [
    Case(
        "evonorm b0",
        nj.evo_norm_b,
        nj.evo_norm_b(),
        (8, 2, 3, 4),
        _evo_b("B0", 1e-5),
        (0, 1, 2),
        channels_first=nj.evo_norm_b(feature_axis=1),
    ),
    Case(
        "evonorm b1, timm's",
        nj.evo_norm_b,
        nj.evo_norm_b(variant="B1", unbiased=True),
        (8, 2, 2, 3),
        _evo_b("B1", 1e-5),
        (0, 1, 2),
    ),
    Case("evonorm b2", nj.evo_norm_b, nj.evo_norm_b(variant="B2"), (8, 3, 2, 3), _evo_b("B2", 1e-5), (0, 1, 2)),
    Case(
        "evonorm b without activation",
        nj.evo_norm_b,
        nj.evo_norm_b(apply_activation=False),
        (8, 2, 2, 3),
        _affine_only,
        (),
    ),
    Case(
        "evonorm s0",
        nj.evo_norm_s,
        nj.evo_norm_s(num_groups=2),
        (4, 2, 3, 8),
        _evo_s("S0", 2, 1e-5),
        (1, 2, 3),
        channels_first=nj.evo_norm_s(num_groups=2, feature_axis=1),
    ),
    Case(
        "evonorm s1, groups fitted",
        nj.evo_norm_s,
        nj.evo_norm_s(variant="S1", fit_groups=True, num_groups=5),
        (4, 3, 6),
        _evo_s("S1", 3, 1e-5),
        (1, 2),
    ),
    Case(
        "evonorm s2a",
        nj.evo_norm_s,
        nj.evo_norm_s(variant="S2a", num_groups=None, group_size=2),
        (4, 2, 2, 4),
        _evo_s("S2", 2, 1e-3),
        (1, 2, 3),
    ),
    Case(
        "evonorm s0a without activation",
        nj.evo_norm_s,
        nj.evo_norm_s(variant="S0a", num_groups=2, apply_activation=False),
        (4, 2, 2, 4),
        _divided_only(2, 1e-3),
        (1, 2, 3),
    ),
    Case(
        "filter response",
        nj.filter_response_norm,
        nj.filter_response_norm(),
        (4, 2, 3, 5),
        _filter_response,
        (1, 2),
        channels_first=nj.filter_response_norm(feature_axis=1),
    ),
    Case(
        "filter response, 1x1 maps",
        nj.filter_response_norm,
        # From 1e-4 the smoothed sign is so steep that its gradients are 1e4 times the roundings of its input.
        nj.filter_response_norm(
            learn_epsilon=True,
            use_threshold=False,
            epsilon_init=lambda rng, shape, dtype: jnp.full(shape, 0.1, dtype),
        ),
        (4, 1, 1, 5),
        _filter_response,
        (1, 2),
    ),
    Case("dyt", nj.dyt, nj.dyt(), (4, 3, 8), _point(np.tanh), (), channels_first=nj.dyt(feature_axes=1)),
    Case("derf", nj.derf, nj.derf(use_bias=False), (4, 8), _point(_erf), ()),
    Case(
        "point function",
        nj.point_norm,
        nj.point_norm(nj.point_functions.isru, shift_init=0.1),
        (4, 8),
        _point(lambda z: z / np.sqrt(1 + z**2)),
        (),
    ),
    Case(
        "layer scale",
        nj.layer_scale,
        nj.layer_scale(init_value=0.1),
        (4, 3, 8),
        _layer_scale,
        (),
        channels_first=nj.layer_scale(feature_axes=1),
    ),
]
