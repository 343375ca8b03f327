"""Adapters of norms fused with an activation, point functions, and gates."""

import re
from collections.abc import Callable

import jax

import normjax as nj
from normjax.precision import Precision
from tests.golden.adapters._kinds import Adapter, Pointwise, Stepwise
from tests.golden.adapters.plain import feature_axis, recorded_states
from tests.golden.vectors import Vector

_THEIRS = {"weight": "scale", "bias": "bias", "gamma": "scale", "beta": "bias", "v": "v", "tau": "tau"}


def _recorded_parameters(vector: Vector) -> dict[str, str]:
    return {theirs: ours for theirs, ours in _THEIRS.items() if f"param_{theirs}" in vector.sidecar["keys"]}


def _evonorm(vector: Vector) -> Stepwise:
    """timm's layers by class name, the authors' by layer name; what the sidecar does not say is their default."""
    hyper, tensorflow = vector.hyper, "layer" in vector.hyper
    named = hyper["layer"] if tensorflow else hyper["cls"]
    variant = named.removeprefix("evonorm_").removeprefix("EvoNorm2d")
    variant = variant[0].upper() + variant[1:]
    active = hyper.get("nonlinearity", hyper.get("apply_act", True))
    options = {"feature_axis": feature_axis(vector), "epsilon": hyper["eps"], "apply_activation": active}
    if variant.startswith("S"):
        size = hyper.get("group_size")
        groups = hyper.get("num_groups_requested") or hyper.get("groups") or 32
        norm = nj.evo_norm_s(
            variant=variant,
            num_groups=None if size else groups,
            group_size=size or None,
            fit_groups=tensorflow,
            **options,
        )
        return Stepwise(norm, _recorded_parameters(vector), {})
    momentum = hyper.get("decay", 0.9) if tensorflow else 1 - hyper["momentum"]
    norm = nj.evo_norm_b(variant=variant, momentum=momentum, unbiased=not tensorflow, **options)
    states = recorded_states(vector, running_var="var", moving_variance="var") if active else {}
    return Stepwise(norm, _recorded_parameters(vector), states)


def _filter_response(vector: Vector) -> Stepwise:
    parameters = _recorded_parameters(vector)
    norm = nj.filter_response_norm(
        feature_axis=feature_axis(vector), epsilon=vector.hyper["eps"], use_threshold="tau" in parameters
    )
    return Stepwise(norm, parameters, {})


def _point(call: Callable[..., jax.Array], names: tuple[str, ...]) -> Callable[[Vector], Pointwise]:
    def make(vector: Vector) -> Pointwise:
        layout = re.sub(r"\W", "", vector.sidecar.get("layout", ""))
        axes = 1 if layout == "NCHW" else -1

        def normalize(inputs, params, epsilon):
            # The authors' code rounds after each step to the dtype in which it computes.
            x, named = inputs["x"], (params.get(name) for name in names)
            return call(x, *named, feature_axes=axes, precision=Precision(statistics=x.dtype))

        return Pointwise(normalize)

    return make


def _point_function(vector: Vector) -> Pointwise:
    function = nj.point_functions.FUNCTIONS[re.sub(r"^pointfn_|(_[a-z])?$", "", vector.name)]
    call = lambda x, *named, **options: nj.point_normalize(x, function, *named, **options)
    return _point(call, _POINT)(vector)


def _layer_scale(vector: Vector) -> Pointwise:
    return Pointwise(lambda inputs, params, epsilon: nj.scale_features(inputs["x"], params["lambda1"]))


_POINT = ("alpha", "shift", "weight", "bias")

ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"evonorm_.*": _evonorm,
    r"frn_.*": _filter_response,
    r"dyt_.*": _point(nj.dynamic_tanh, ("alpha", "weight", "bias")),
    r"derf_.*": _point(nj.dynamic_erf, _POINT),
    r"pointfn_.*": _point_function,
    r"layerscale_.*": _layer_scale,
}
