"""Adapters of weight reparametrizations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.golden.adapters._kinds import Adapter, Check, Stepwise
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector

EPS32 = float(np.finfo(np.float32).eps)

# torch's kernels have the output units first.
README = {"feature_axes": 0}
TENSORFLOW = README | {"unbiased": False}
CHANNELS = README | {"epsilon_mode": "inside"}
TIMM = CHANNELS | {"unbiased": False, "epsilon": 1e-6}


def _convolution(x, kernel, groups=1, padding=None):
    """torch's conv of NCHW inputs and OIHW kernels, stride 1, `k // 2` of padding on each side."""
    pads = [(k // 2, k // 2) if padding is None else (padding, padding) for k in kernel.shape[2:]]
    spatial = "DHW"[-(kernel.ndim - 2) :]
    names = (f"NC{spatial}", f"OI{spatial}", f"NC{spatial}")
    ones = (1,) * len(pads)
    return jax.lax.conv_general_dilated(x, kernel, ones, pads, dimension_numbers=names, feature_group_count=groups)


def _layer(effective: Callable[[dict[str, Any], dict[str, Any]], jax.Array]) -> Callable[[Vector], Stepwise]:
    """A recorded convolution with effective kernels, as a transform of its input."""

    def make(vector: Vector) -> Stepwise:
        names = [key.removeprefix("param_") for key in vector.sidecar["keys"] if key.startswith("param_")]
        shapes = {name: tuple(vector.sidecar["keys"][f"param_{name}"][0][1:]) for name in names}

        def init_params(rng, x):
            return {name: jnp.zeros(shape) for name, shape in shapes.items()}

        def fn(params, x, *, mask):
            kernel = effective(params, vector.hyper)
            y = _convolution(x, kernel, vector.hyper.get("groups", 1), vector.hyper.get("padding"))
            bias = params.get("bias")
            return y if bias is None else y + bias.reshape(-1, *[1] * (kernel.ndim - 2))

        return Stepwise(nj.stateless(fn, init_params), {name: name for name in names}, {})

    return make


def _standardized(**options: Any) -> Callable[[Vector], Stepwise]:
    def effective(params, hyper):
        epsilon = {"epsilon": hyper["eps"]} if "eps" in hyper else {}
        return nj.weight_standardize(params["weight"], **options | epsilon)

    return _layer(effective)


def _scaled(params, hyper):
    gain = params["gain"].reshape(-1) if "gain" in params else None
    gamma, epsilon = hyper.get("gamma", 1.0), hyper.get("eps", 1e-6)
    return nj.scaled_weight_standardize(params["weight"], gain, feature_axes=0, gamma=gamma, epsilon=epsilon)


def nfnets_port(kernel, gain):
    """The published torch port of NF-Nets: its variance is the unbiased one, its bound that of n times it."""
    count = kernel[0].size
    bounded = {"epsilon": 1e-2 / count**0.5, "epsilon_mode": "clamp", "unbiased": True}
    return nj.weight_standardize(kernel, gain / count**0.5, feature_axes=0, **bounded)


KERNELS = {
    "ws_official": lambda w, gain: nj.weight_standardize(w, **README),
    "ws_timm": lambda w, gain: nj.weight_standardize(w, **TIMM),
    "sws_timm": lambda w, gain: nj.scaled_weight_standardize(w, gain, feature_axes=0),
    "sws_deepmind": lambda w, gain: nj.scaled_weight_standardize(w, gain, feature_axes=0, epsilon_rule="max"),
    "sws_nfnets_port": nfnets_port,
    "cwn": lambda w, gain: nj.centred_weight_normalize(w, feature_axes=0),
    "weightnorm": lambda w, gain: nj.weight_normalize(w, gain, feature_axes=0),
}
GRADIENTS = {"gW": 0, "gv": 0, "ggain": 1, "gg": 1}
INPUTS = {"W", "x", "gain", "cotangent"}


def _check_kernels(vector: Vector) -> None:
    """Effective kernels, outputs and gradients of every method that was recorded for one kernel."""
    a = vector.arrays()
    kernel, gain, cotangent = (jnp.asarray(a[name]) for name in ("W", "gain", "cotangent"))
    gain, checked = gain.reshape(-1), set(INPUTS)

    @jax.jit
    def compared(kernel, gain, cotangent, x):
        found = {}
        for name, effective in KERNELS.items():
            if f"{name}_w" in a:
                value, pullback = jax.vjp(effective, kernel, gain)
                gradients = pullback(cotangent)
                found[name] = {"w": value, "y": _convolution(x, value, padding=0)}
                found[name] |= {key: gradients[index] for key, index in GRADIENTS.items()}
        return found

    for name, found in compared(kernel, gain, cotangent, a["x"]).items():
        for key, actual in found.items():
            if f"{name}_{key}" in a:
                _assert_units_close(actual, a[f"{name}_{key}"], key, f"{name} {key}")
                checked.add(f"{name}_{key}")
    if "spectral_w" in a:
        checked |= _check_spectral(a, kernel, cotangent)
    if "sws_nfnets_port_w" in a:
        _check_that_the_port_is_wrong(kernel, gain, a["sws_nfnets_port_w"])
    assert checked == set(a), f"recorded and not compared: {sorted(set(a) - checked)}"


def _assert_units_close(actual, expected, key, what):
    """The card's: 1e-5; gradients 1e-4, and 1e-3 for the first unit, 1e-3 times smaller and so epsilon-dominated."""
    actual = np.asarray(actual).reshape(expected.shape)
    if key == "y" or expected.ndim < 2:
        return assert_close(actual, expected, 1e-5 if key in ("w", "y") else 1e-4, what)
    for unit, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        tolerance = 1e-5 if key == "w" else (1e-4 if unit else 1e-3)
        assert_close(ours, theirs, tolerance, f"{what}, unit {unit}")
    return None


def _check_spectral(a, kernel, cotangent) -> set[str]:
    matrix, cotangent = (value.reshape(value.shape[0], -1) for value in (kernel, cotangent))
    transform = nj.spectral_norm(feature_axes=0)
    state = {"u": jnp.asarray(a["spectral_u0"]), "v": jnp.asarray(a["spectral_v0"])}

    def effective(matrix):
        return transform.apply({}, state, matrix, train=True)

    (value, new), pullback = jax.vjp(effective, matrix)
    (gradient,) = pullback((cotangent, jax.tree.map(jnp.zeros_like, new)))
    _, _, _, sigma = nj.spectral_normalize(matrix, new["u"], new["v"], feature_axes=0, n_steps=0)
    for name, actual in {"w": value, "u1": new["u"], "v1": new["v"], "sigma": sigma}.items():
        assert_close(actual, a[f"spectral_{name}"], 1e-5, f"spectral {name}")
    assert_close(gradient, a["spectral_gW"], 1e-4, "spectral gradient")
    return {key for key in a if key.startswith("spectral_")}


def _check_that_the_port_is_wrong(kernel, gain, recorded):
    """Above the bound, the unbiased variance makes every unit smaller by sqrt((n - 1) / n) than the paper has it."""
    count = kernel[0].size
    right = nj.scaled_weight_standardize(kernel, gain, feature_axes=0, epsilon_rule="max")
    above = np.asarray(kernel).reshape(len(kernel), -1).var(1) * count > 1e-4
    assert above.any()
    shrunk = np.asarray(right)[above] * np.float32(np.sqrt((count - 1) / count))
    assert_close(shrunk, recorded[above], 64 * EPS32, "the port's unbiased variance")
    assert np.max(np.abs(np.asarray(right)[above] - recorded[above])) > 64 * EPS32 * np.max(np.abs(recorded))


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"ws_conv_readme_tf.*": _standardized(**TENSORFLOW),
    r"ws_conv_readme_.*": _standardized(**README),
    r"ws_conv_bcnrepo_.*": _standardized(**CHANNELS),
    r"ws_conv_timmscaled_.*": _layer(_scaled),
    r"ws_conv_timm_.*": _standardized(**TIMM),
    r"weight_reparam_.*": lambda vector: Check(_check_kernels),
}
