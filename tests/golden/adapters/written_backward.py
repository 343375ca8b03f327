"""Adapters of Unified Normalization, PowerNorm and the masked batch norms published beside it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from normjax.backward_state import OVERWRITE_WITH_GRADIENT
from normjax.moments import standardize
from normjax.norms._affine import affine
from normjax.norms._running_statistics import update_running
from normjax.reductions import prepare, standardization
from tests.golden.adapters._kinds import Adapter, Stepwise, valid_mask
from tests.golden.adapters.plain import affine_parameters, recorded_states
from tests.golden.comparison import assert_close, is_close
from tests.golden.vectors import Vector


def _written(vector: Vector, *names: str) -> dict[str, str]:
    paths = {name: f"{OVERWRITE_WITH_GRADIENT}/{name}" for name in names}
    return recorded_states(vector, **paths)


def _unified(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    window = hyper["window_size"]
    norm = nj.unified_norm(
        window=window if isinstance(window, int) else tuple(window),
        warmup=hyper["warmup_iters"],
        momentum=hyper["momentum"],
        epsilon=hyper["eps"],
        outlier_filtration=hyper["outlier_filtration"],
    )
    states = recorded_states(vector, running_var="var", buffer_x2="buffer_x2", iters="count", skip_counter="skipped")
    return Stepwise(norm, affine_parameters(vector), states, _written(vector, "ema_gz", "buffer_gz"))


def _time_first(vector: Vector) -> Callable[[np.ndarray], np.ndarray]:
    """Their masks are (batch, time) where the data are (time, batch, features)."""
    transposed = vector.sidecar["layout"].replace(" ", "").startswith("(T,B")
    return lambda pad_mask: valid_mask(pad_mask.T if transposed else pad_mask)


def _power(vector: Vector) -> Stepwise:
    hyper = vector.hyper
    norm = nj.power_norm(
        num_groups=hyper["group_num"],
        warmup=hyper["warmup_iters"],
        momentum=hyper["alpha_fwd"],
        backward_momentum=hyper["alpha_bkw"],
        epsilon=hyper["eps"],
    )
    states = recorded_states(vector, running_phi="var", iters="count")
    return Stepwise(norm, affine_parameters(vector), states, _written(vector, "ema_gz"), _time_first(vector))


def _batch_norm(vector: Vector) -> nj.NormTransform:
    return nj.batch_norm(momentum=1 - vector.hyper["momentum"], epsilon=vector.hyper["eps"], unbiased=True)


def _clamped(vector: Vector) -> Stepwise:
    """MaskBatchNorm: the variance is clamped instead of shifted; the defect is that evaluation is training."""

    def apply(params, state, x, *, train, mask=None, **context):
        del train, context
        # max(variance, eps) is the square of max(root, sqrt(eps)).
        root = vector.hyper["eps"] ** 0.5
        spec = standardization(x, tuple(range(x.ndim - 1)), epsilon=root, epsilon_mode="clamp")
        values, mask = prepare(x, mask)
        normalized, moments = standardize(values, mask, spec)
        y = affine(normalized, x, params["scale"], params["bias"], (x.ndim - 1,), nj.Precision())
        return y, update_running(state, moments, 1 - vector.hyper["momentum"], unbiased=True)

    norm = nj.NormTransform(_batch_norm(vector).init, apply)
    states = {"running_mean": "mean", "running_var": "var"}
    return Stepwise(norm, affine_parameters(vector), states, mask=_time_first(vector), beside=_beside_clamped)


def _beside_clamped(vector: Vector) -> None:
    """The masked batch norm has the same running statistics, and uses them in evaluation."""
    a, norm = vector.arrays(), _batch_norm(vector)
    with jax.enable_x64(True):
        params, state = _recorded(a, 0)
        train = jax.jit(functools.partial(norm.apply, train=True))
        for t in range(vector.sidecar["steps"]):
            _, state = train(params, state, a["x"][t].astype(float), mask=_mask(vector, a, t))
            for name, value in state.items():
                assert_close(value, a[f"state_running_{name}"][t + 1], _tolerance(vector), f"{name} after step {t}")
        params = {ours: a[f"eval_param_{theirs}"].astype(float) for theirs, ours in affine_parameters(vector).items()}
        y, _ = jax.jit(functools.partial(norm.apply, train=False))(params, state, a["eval_x"].astype(float))
        assert not is_close(y, a["eval_y"], 1e-3), "the recorded evaluation used running statistics"


def _filled(vector: Vector) -> Stepwise:
    """MaskSyncBatchNorm: the defect is that padding, set to the mean of the valid rows, enters the variance."""

    def fill(params, x, *, mask):
        del params
        return (
            x if mask is None else jnp.where(mask, x, nj.compute_moments(x, tuple(range(x.ndim - 1)), mask=mask).mean)
        )

    inner = _batch_norm(vector)

    def apply(params, state, x, *, train, mask=None):
        del mask
        return inner.apply(params, state, x, train=train)

    scaling = nj.rms_norm(use_scale=False, epsilon=1e-5)
    norm = nj.chain(scaling, nj.stateless(fill), nj.NormTransform(inner.init, apply))
    parameters = {theirs: f"2/{ours}" for theirs, ours in affine_parameters(vector).items()}
    states = {"running_mean": "2/mean", "running_var": "2/var"}
    return Stepwise(norm, parameters, states, mask=_time_first(vector), beside=_beside_filled)


def _beside_filled(vector: Vector) -> None:
    """The masked batch norm has the same running mean; of the same sum of squares its variance is the larger one."""
    a, norm = vector.arrays(), nj.chain(nj.rms_norm(use_scale=False, epsilon=1e-5), _batch_norm(vector))
    momentum = vector.hyper["momentum"]
    with jax.enable_x64(True):
        train = jax.jit(functools.partial(norm.apply, train=True))
        for t in range(vector.sidecar["steps"]):
            params, before = _recorded(a, t)
            mask = _mask(vector, a, t)
            x, state = a["x"][t].astype(float), {"0": {}, "1": before}
            _, after = train({"0": {}, "1": params}, state, x, mask=mask)
            recorded = {name: a[f"state_running_{name}"][t + 1] for name in before}
            assert_close(after["1"]["mean"], recorded["mean"], _tolerance(vector), f"mean after step {t}")
            valid, rows = (np.count_nonzero(mask), mask.size) if mask is not None else (1, 1)
            moved = {
                name: np.asarray(value) - (1 - momentum) * before["var"]
                for name, value in (("own", after["1"]["var"]), ("theirs", recorded["var"]))
            }
            shrunk = moved["own"] * ((valid - 1) / (rows - 1)) if rows > 1 else moved["own"]
            # The difference of two running variances loses the digits that the momentum leaves to the batch.
            assert_close(shrunk, moved["theirs"], _tolerance(vector) / momentum, f"variance of step {t}")


def _recorded(a: dict[str, np.ndarray], t: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    params = {ours: a[f"param_{theirs}"][t].astype(float) for theirs, ours in (("weight", "scale"), ("bias", "bias"))}
    return params, {name: a[f"state_running_{name}"][t].astype(float) for name in ("mean", "var")}


def _mask(vector: Vector, a: dict[str, np.ndarray], t: int) -> np.ndarray | None:
    return _time_first(vector)(a["pad_mask"][t]) if "pad_mask" in a else None


def _tolerance(vector: Vector) -> float:
    return 1e-12 if vector.sidecar["compute_dtype"] == "float64" else 64 * float(np.finfo(np.float32).eps)


ADAPTERS: dict[str, Callable[[Vector], Adapter]] = {
    r"un_.*": _unified,
    r"powernorm_.*": _power,
    r"maskbatchnorm_.*": _clamped,
    r"masksyncbn_.*": _filled,
}
