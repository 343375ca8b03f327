"""Cases of per-token norms, QK-norm, temperatures and interpolations."""

import jax
import jax.numpy as jnp
import numpy as np

import normjax as nj
from tests.norms import oracle
from tests.norms.cases._case import Case


def _valid(x, mask):
    x = np.asarray(x, np.float64)
    return x, np.ones(x.shape, bool) if mask is None else np.broadcast_to(np.asarray(mask) != 0, x.shape)


def _wide(params, name):
    return np.asarray(params[name], np.float64)


def _length(x, mask, epsilon=0.0, mode="clamp"):
    """The norm over the last axis, 1 for an empty set."""
    x, valid = _valid(x, mask)
    squares = np.where(valid, x, 0.0) ** 2
    squares = np.where(valid.any(-1, keepdims=True), squares.sum(-1, keepdims=True), 1.0)
    roots = {"clamp": np.maximum(np.sqrt(squares), epsilon), "inside": np.sqrt(squares + epsilon)}
    return roots.get(mode, np.sqrt(squares) + epsilon)


def _unit(x, mask, epsilon=0.0, mode="clamp"):
    length = _length(x, mask, epsilon, mode)
    return np.divide(x, length, out=np.zeros(np.shape(x)), where=length > 0)


def _l2(epsilon, mode):
    return lambda params, x, mask: _unit(x, mask, epsilon, mode)


def _scale_norm(params, x, mask):
    return _wide(params, "scale") * _unit(x, mask, 1e-5)


def _crms(params, x, mask):
    del params
    x, valid = _valid(x, mask)
    kept = np.where(valid, x, 0.0)
    whole = np.concatenate([kept, -kept.sum(-1, keepdims=True)], axis=-1)
    square = (whole**2).sum(-1, keepdims=True) / (valid.sum(-1, keepdims=True) + 1)
    square = np.where(valid.any(-1, keepdims=True), square, 1.0)
    return x / np.sqrt(square + 1e-5)


def _partial(size, epsilon, mode="outside"):
    def expected(params, x, mask):
        first = None if mask is None else np.broadcast_to(mask, x.shape)[..., :size]
        _, _, square, _ = oracle.standardize(
            x[..., :size], (x.ndim - 1,), mask=first, epsilon=0.0, centre=False, mode=mode
        )
        root = np.sqrt(square) + epsilon if mode == "outside" else np.sqrt(square + epsilon)
        normalized = np.divide(x, root, out=np.zeros(np.shape(x)), where=root > 0)
        return oracle.affine(normalized, params, (x.ndim - 1,))

    return expected


def _rms(params, x, mask, groups=1):
    cut, cut_mask, _ = oracle.grouped(x, mask, groups)
    normalized, *_ = oracle.standardize(cut, (cut.ndim - 1,), mask=cut_mask, epsilon=1e-6, centre=False)
    return oracle.affine(normalized.reshape(np.shape(x)), params, (np.ndim(x) - 1,))


def _sigmoid(z):
    return 1 / (1 + np.exp(-np.asarray(z, np.float64)))


def _gated_last(params, x, mask, gate):
    return _rms(params, x, mask) * _sigmoid(gate)


def _gated_first(params, x, mask, gate):
    return _rms(params, np.asarray(x, np.float64) * gate * _sigmoid(gate), mask, groups=4)


def _gate(rng, shape):
    return {"gate": rng.standard_normal(shape).astype(np.float32)}


def _input_scaled(params, x, mask):
    return _rms({}, np.asarray(x, np.float64) * (1 + _wide(params, "scale")), mask)


def _temperature(power, gain):
    def expected(params, x, mask):
        del mask
        temperature = gain * np.exp(power * np.minimum(_wide(params, "log_temperature"), np.log(100.0)))
        return np.asarray(x, np.float64) * temperature[:, None, None]

    return expected


def _ssmax(params, x, mask, visible):
    del mask
    return np.asarray(x, np.float64) * _wide(params, "scale")[:, None, None] * np.log(np.maximum(visible, 1))


def _visible(rng, shape):
    del rng
    return {"visible": np.arange(shape[-2], dtype=np.int32)[:, None]}


def _ngpt_norm(params, x, mask):
    used = _wide(params, "scale") * 2.0 * 8**0.5
    return _unit(x, mask) * used


def _ngpt_interpolation(params, x, mask, update):
    step = np.abs(_wide(params, "alpha") * (0.05 * 16**0.5))
    start = _unit(x, mask)
    return _unit(start + step * (_unit(update, mask) - start), mask)


def _update(rng, shape):
    return {"update": rng.standard_normal(shape).astype(np.float32)}


QUERY_HEADS = 2


def _of_one_array(norm):
    """QK-norm of an array whose axis of heads holds those of the queries and behind them those of the keys."""

    def heads(x):
        return x[:, :, :QUERY_HEADS], x[:, :, QUERY_HEADS:]

    def init(rng, x, **context):
        struct = lambda n: jax.ShapeDtypeStruct((*x.shape[:2], n, x.shape[3]), x.dtype)
        return norm.init(rng, (struct(QUERY_HEADS), struct(x.shape[2] - QUERY_HEADS)), **context)

    def apply(params, state, x, *, train, mask=None, **context):
        if mask is not None:
            mask = heads(mask) if mask.shape[2] > 1 else (mask, mask)
        turn = lambda a: jnp.concatenate([-a[..., 4:], a[..., :4]], axis=-1)
        y, state = norm.apply(params, state, heads(x), train=train, mask=mask, rotate=turn, **context)
        return jnp.concatenate(y, axis=2), state

    return nj.NormTransform(init, apply)


def _turned(x):
    return np.concatenate([-x[..., 4:], x[..., :4]], axis=-1)


def _qk(rotate_first):
    def expected(params, x, mask):
        parts = []
        for name, part in (("query", slice(None, QUERY_HEADS)), ("key", slice(QUERY_HEADS, None))):
            heads = np.asarray(x, np.float64)[:, :, part]
            seen = mask if mask is None or mask.shape[2] == 1 else mask[:, :, part]
            heads = _turned(heads) if rotate_first else heads
            heads = _rms(params[name], heads, seen)
            parts.append(heads if rotate_first else _turned(heads))
        return np.concatenate(parts, axis=2)

    return expected


CASES: list[Case] = [
    Case("l2", nj.l2_norm, nj.l2_norm(), (4, 6, 16), _l2(1e-12, "clamp"), (2,), channels_first=nj.l2_norm(axis=1)),
    Case("l2, MaxText's", nj.l2_norm, nj.l2_norm(epsilon=0.5, epsilon_mode="inside"), (4, 8), _l2(0.5, "inside"), (1,)),
    Case("l2, no epsilon", nj.l2_norm, nj.l2_norm(epsilon=0.0), (4, 8), _l2(0.0, "clamp"), (1,)),
    Case(
        "scale norm",
        nj.scale_norm,
        nj.scale_norm(),
        (4, 6, 16),
        _scale_norm,
        (2,),
        channels_first=nj.scale_norm(axis=1),
    ),
    Case("crms", nj.crms_norm, nj.crms_norm(), (4, 6, 15), _crms, (2,), channels_first=nj.crms_norm(axis=1)),
    Case(
        "partial rms",
        nj.partial_rms_norm,
        nj.partial_rms_norm(fraction=0.25),
        (4, 6, 16),
        _partial(4, 1e-8),
        (2,),
        channels_first=nj.partial_rms_norm(fraction=0.25, axis=1),
    ),
    Case(
        "partial rms, inside",
        nj.partial_rms_norm,
        nj.partial_rms_norm(fraction=0.3, epsilon=1e-2, epsilon_mode="inside", use_bias=True),
        (4, 16),
        _partial(4, 1e-2, "inside"),
        (1,),
    ),
    Case(
        "gated rms, gate last",
        nj.gated_rms_norm,
        nj.gated_rms_norm(activation=jax.nn.sigmoid),
        (4, 6, 16),
        _gated_last,
        (2,),
        context=_gate,
        channels_first=nj.gated_rms_norm(activation=jax.nn.sigmoid, axis=1),
    ),
    Case(
        "gated rms, gate first",
        nj.gated_rms_norm,
        nj.gated_rms_norm(gate_first=True, group_size=4),
        (4, 3, 16),
        _gated_first,
        (2,),
        context=_gate,
    ),
    Case(
        "input-scaled rms",
        nj.input_scaled_rms_norm,
        nj.input_scaled_rms_norm(),
        (4, 6, 16),
        _input_scaled,
        (2,),
        channels_first=nj.input_scaled_rms_norm(axis=1),
    ),
    Case("qk", nj.qk_norm, _of_one_array(nj.qk_norm(nj.rms_norm())), (4, 3, 3, 8), _qk(False), (3,)),
    Case(
        "qk, rotated first",
        nj.qk_norm,
        _of_one_array(nj.qk_norm(nj.rms_norm(), order="rotate_then_normalize")),
        (4, 3, 3, 8),
        _qk(True),
        (3,),
    ),
    Case(
        "temperature",
        nj.attention_temperature,
        nj.attention_temperature(head_axis=1, power=0.5, gain=2.0),
        (4, 2, 3, 8),
        _temperature(0.5, 2.0),
        (),
    ),
    Case("ssmax", nj.ssmax, nj.ssmax(head_axis=1), (4, 2, 5, 8), _ssmax, (), context=_visible),
    Case(
        "nGPT's unit vector",
        nj.ngpt_norm,
        nj.ngpt_norm(initial=2.0),
        (4, 6, 8),
        _ngpt_norm,
        (2,),
        channels_first=nj.ngpt_norm(initial=2.0, axis=1),
    ),
    Case(
        "nGPT's interpolation",
        nj.ngpt_interpolation,
        nj.ngpt_interpolation(),
        (4, 6, 16),
        _ngpt_interpolation,
        (2,),
        context=_update,
        channels_first=nj.ngpt_interpolation(axis=1),
    ),
]
