"""What a framework with plain norms makes of each kernel: the same formulas, fused or not as it sees fit."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple


class NotApplicableError(Exception):
    """The peer has no such function."""


class Framework(NamedTuple):
    """The plain functions of a framework, over the last axis; `None` for absent parameters.

    Attributes:
      layer: `layer(x, scale, bias)`.
      rms: `rms(x, scale)`.
      silu: The activation.
      group: `group(x, scale, bias, groups)`, channels last, or `None` where the framework has none.
    """

    layer: Callable
    rms: Callable
    silu: Callable
    group: Callable | None = None


def composed(framework: Framework, kernel: str, shape: Any) -> Callable:
    """The function of a kernel's arrays, in its order, on a named shape."""
    if kernel in _GROUPS and framework.group is not None:
        groups = shape.num_groups if kernel == "group_norm" else shape.shape[-1]
        return functools.partial(framework.group, groups=groups)
    if kernel not in _COMPOSED:
        raise NotApplicableError(f"no plain functions make {kernel}")
    return functools.partial(_COMPOSED[kernel], framework)


def _add_rms_norm(f: Framework, x, residual, scale):
    total = x + residual
    return total, f.rms(total, scale)


def _add_layer_norm(f: Framework, x, residual, scale, bias):
    total = x + residual
    return total, f.layer(total, scale, bias)


def _norm_add(f: Framework, x, residual, scale):
    return residual + f.rms(x, scale)


def _norm_add_norm(f: Framework, x, residual, scale_out, scale_in):
    h = residual + f.rms(x, scale_out)
    return h, f.rms(h, scale_in)


def _gated(f: Framework, x, gate, scale):
    return f.rms(x, scale) * f.silu(gate)


def _modulated(f: Framework, x, shift, scale):
    return f.layer(x, None, None) * (1 + scale[:, None]) + shift[:, None]


def _qk_norm(f: Framework, q, k, q_scale, k_scale):
    heads = lambda x, scale: f.rms(x.reshape(x.shape[0], -1, scale.shape[0]), scale).reshape(x.shape)  # noqa: E731
    return heads(q, q_scale), heads(k, k_scale)


_GROUPS = ("group_norm", "instance_norm")
_COMPOSED: dict[str, Callable] = {
    "rms_norm": lambda f, x, scale: f.rms(x, scale),
    "layer_norm": lambda f, x, scale, bias: f.layer(x, scale, bias),
    "add_rms_norm": _add_rms_norm,
    "add_layer_norm": _add_layer_norm,
    "norm_add": _norm_add,
    "norm_add_norm": _norm_add_norm,
    "gated_rms_norm": _gated,
    "modulate_layer_norm": _modulated,
    "qk_norm": _qk_norm,
}
