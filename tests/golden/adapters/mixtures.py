"""Adapters of batch norms that mix, re-estimate or blend statistics."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.golden.adapters._kinds import Adapter, Stepwise
from tests.golden.adapters.plain import affine_parameters, feature_axis, recorded_states
from tests.golden.vectors import Vector

_STATISTICS = {"running_mean": "mean", "running_var": "var"}


def _named(vector: Vector, kind: str, prefix: str, names: dict[str, str], ours: str = "") -> dict[str, str]:
    """Those of the recorded names under a prefix that exist, with our paths."""
    found = {f"{prefix}{theirs}": f"{ours}{own}" for theirs, own in names.items()}
    return {theirs: own for theirs, own in found.items() if f"{kind}_{theirs}" in vector.sidecar["keys"]}


def _affine(vector: Vector, prefix: str, ours: str = "") -> dict[str, str]:
    return _named(vector, "param", prefix, {"weight": "scale", "bias": "bias", "alpha": "alpha"}, ours)


def _running(vector: Vector, prefix: str, ours: str = "", **more: str) -> dict[str, str]:
    return _named(vector, "state", prefix, _STATISTICS | more, ours)


def _momentum(vector: Vector, name: str = "momentum", default: float = 0.1) -> float:
    return 1 - vector.hyper.get(name, default)


def _rep(vector: Vector) -> Stepwise:
    axis = feature_axis(vector)
    norm = nj.rep_batch_norm(
        feature_axes=axis, momentum=_momentum(vector, "bn_momentum"), epsilon=vector.hyper["bn_eps"]
    )
    return Stepwise(norm, _affine(vector, "") | _affine(vector, "bn."), _running(vector, "bn."))


def _prep(vector: Vector) -> Stepwise:
    hyper, axis = vector.hyper, feature_axis(vector)
    llama = "initial_num_step" in hyper
    token = nj.rms_norm(axis=axis, epsilon=hyper["eps"]) if llama else nj.layer_norm(axis=axis, epsilon=hyper["ln_eps"])
    norm = nj.prep_batch_norm(
        total_steps=hyper["step"],
        warmup_steps=hyper["warm"],
        initial_weight=hyper["r0"],
        ticks_every=16 if llama else 1,
        token_norm=token,
        pass_masked=llama,
        feature_axes=axis,
        momentum=_momentum(vector, "bn_momentum"),
        epsilon=hyper["eps" if llama else "bn_eps"],
    )
    rep = _affine(vector, "norm2.", "1/") | _affine(vector, "norm2.bn.", "1/")
    counters = {"warm": "warm", "iter": "iter", "total_step": "total", "num_step": "num_step"}
    return Stepwise(
        norm,
        _affine(vector, "norm1.", "0/") | rep,
        _running(vector, "norm2.bn.", "1/") | _named(vector, "state", "", counters, "weights/"),
        # Their mask marks valid positions.
        mask=lambda valid: valid[..., None] != 0,
        # Their RMS norm computes in float32 whatever its input is: its outputs are rounded to 1e-7 and summed.
        slack=1e6 if llama else 1.0,
    )


def _adaptive(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    norm = nj.adaptive_balance_norm(
        hyper["num_tasks"],
        kappa=hyper["kappa"],
        momentum=_momentum(vector),
        epsilon=hyper["eps"],
        feature_axes=feature_axis(vector),
    )

    def context(arrays: Any, t: int | None) -> dict[str, Any]:
        del arrays
        if t is None:
            return {}
        tasks = np.asarray(hyper["plan_sample_task_ids"][t], np.int32)
        current = {"current_task": jnp.asarray(hyper["plan_task"][t], jnp.int32)}
        # -1: their counts were not set, which is ordinary batch normalization.
        return current if np.all(tasks < 0) else {"task": tasks, **current}

    # They keep no eta for the constant and for 1/t.
    eta = {"last_eta": "eta"} if 0 < hyper["kappa"] < 1 else {}
    states = recorded_states(vector, running_mean="mean", running_var="var", cur_tasks="current_task", **eta)
    return Stepwise(
        norm,
        affine_parameters(vector) | {"task_weight": "task_weight"},
        states,
        context=context,
        loss=lambda state: hyper["lambd"] * state["auxiliary_loss"],
    )


def _continual(vector: Vector) -> Stepwise:
    norm = nj.continual_norm(
        num_groups=vector.hyper["G"],
        feature_axis=feature_axis(vector),
        epsilon=vector.hyper["eps"],
        momentum=_momentum(vector),
    )
    return Stepwise(norm, _affine(vector, "", "1/"), _running(vector, "", "1/"))


def _batch_channel(vector: Vector) -> Stepwise:
    hyper, axis = vector.hyper, feature_axis(vector)
    if hyper["estbn_moving_speed"] is None:
        batch = nj.batch_norm(
            feature_axes=axis, momentum=_momentum(vector, "bn_momentum"), epsilon=hyper["eps"], unbiased=True
        )
        prefix = "pbn."
    else:
        batch = nj.estimated_batch_norm(
            feature_axes=axis, moving_speed=hyper["estbn_moving_speed"], epsilon=hyper["eps"]
        )
        prefix = "bn."
    norm = nj.batch_channel_norm(num_groups=hyper["num_groups"], batch=batch, feature_axis=axis, epsilon=hyper["eps"])
    states = _running(vector, prefix, "0/", estbn_moving_speed="moving_speed")
    return Stepwise(norm, _affine(vector, prefix, "0/") | _affine(vector, "", "1/"), states)


def _renorm(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    norm = nj.batch_renorm(
        # Without its key a bound is not there.
        r_max=hyper.get("rmax", float("inf")),
        r_min=hyper.get("rmin", 0.0),
        d_max=hyper.get("dmax", float("inf")),
        momentum=hyper["momentum"],
        renorm_momentum=hyper.get("renorm_momentum", 0.99),
        epsilon=hyper["epsilon"],
    )
    names = {"moving_mean": "mean", "moving_variance": "var", "moving_stddev": "stddev"}
    names |= {name: name for name in ("renorm_mean", "renorm_stddev")}
    return Stepwise(norm, {"gamma": "scale", "beta": "bias"}, recorded_states(vector, **names))


def _switch(vector: Vector) -> Stepwise:
    norm = nj.switch_norm(
        feature_axis=feature_axis(vector), momentum=vector.hyper["momentum"], epsilon=vector.hyper["eps"]
    )
    logits = {"mean_weight": "mean_logits", "var_weight": "var_logits"}
    return Stepwise(norm, affine_parameters(vector) | logits, _running(vector, ""))


def _instance_batch(vector: Vector) -> Stepwise:
    norm = nj.instance_batch_norm(
        ratio=vector.hyper["ratio"],
        feature_axis=feature_axis(vector),
        epsilon=vector.hyper.get("eps", 1e-5),
        momentum=_momentum(vector),
    )
    return Stepwise(norm, _affine(vector, "IN.", "0/") | _affine(vector, "BN.", "1/"), _running(vector, "BN.", "1/"))


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"repbn_.*": _rep,
    # Folding is another matter than training.
    r"prepbn_(?!fuse).*": _prep,
    r"adab2n_.*": _adaptive,
    r"contnorm_.*": _continual,
    r"bcn_.*": _batch_channel,
    r"batchrenorm_.*": _renorm,
    r"switchnorm.*": _switch,
    r"ibn_.*": _instance_batch,
}
