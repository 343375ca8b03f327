"""Bad input to the per-token norms: each call raises, and the message states what came and what was expected."""

import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))
Q = jnp.ones((2, 4, 3, 8))


def apply(norm, x=X, **context):
    params, state = norm.init(None, x)
    return norm.apply(params, state, x, train=True, **context)


def identity(x):
    return x


CALLS = {
    "l2 of integers": (lambda: nj.l2_normalize(jnp.ones(3, jnp.int32)), TypeError, "int32"),
    "l2 epsilon": (lambda: nj.l2_norm(epsilon=-1.0), ValueError, "-1.0"),
    "epsilon mode": (lambda: nj.l2_normalize(X, epsilon_mode="beside"), ValueError, r"beside.*clamp"),
    "l2 scale": (lambda: nj.l2_normalize(X, jnp.ones(3)), ValueError, r"scale.*\(3,\).*\(4,\)"),
    "scale norm's scale": (lambda: nj.scale_normalize(X, jnp.ones(4)), ValueError, r"scalar.*\(4,\).*l2_normalize"),
    "crms over two axes": (lambda: nj.crms_normalize(X, axis=(1, 2)), TypeError, r"\(1, 2\)"),
    "no partial feature": (lambda: nj.partial_rms_normalize(X, fraction=0.1), ValueError, r"0\.1.*4 features.*1/4"),
    "fraction": (lambda: nj.partial_rms_norm(fraction=1.5), ValueError, r"1\.5"),
    "no gate": (lambda: apply(nj.gated_rms_norm()), ValueError, "gate=.*none"),
    "gate shape": (lambda: nj.gated_rms_normalize(X, jnp.ones(4)), ValueError, r"\(4,\).*\(2, 3, 4\)"),
    "gate dtype": (lambda: nj.gated_rms_normalize(X, X.astype(jnp.int32)), TypeError, "int32"),
    "gate cast order": (
        lambda: nj.gated_rms_normalize(X, X, precision=nj.Precision(cast_order="cast_then_multiply")),
        ValueError,
        "cast_then_multiply",
    ),
    "gate groups": (lambda: nj.gated_rms_normalize(X, X, group_size=3), ValueError, r"group_size=3.*4"),
    "input scale": (lambda: nj.input_scaled_rms_normalize(X, jnp.ones(3)), ValueError, r"\(3,\).*\(4,\)"),
    "qk order": (lambda: nj.qk_norm(nj.rms_norm(), order="both"), ValueError, r"both.*rotate_then_normalize"),
    "qk of one array": (lambda: nj.qk_norm(nj.rms_norm()).init(None, X), ValueError, r"\(q, k\)"),
    "qk without values": (
        lambda: nj.qk_norm(nj.rms_norm(), value=nj.rms_norm()).init(None, (Q, Q)),
        ValueError,
        r"\(q, k, v\).*2 arrays",
    ),
    "norm of no values": (
        lambda: nj.qk_normalize(Q, Q, query=identity, key=identity, value=identity),
        ValueError,
        "no values",
    ),
    "clamp": (lambda: nj.learned_temperature(jnp.ones(2), clamp="never"), ValueError, r"never.*parameter"),
    "maximum": (lambda: nj.learned_temperature(jnp.ones(2), maximum=-1.0), ValueError, r"-1\.0"),
    "initial": (lambda: nj.attention_temperature(head_axis=1, initial=200.0), ValueError, r"100\.0.*200\.0"),
    "head axis": (lambda: nj.attention_temperature(head_axis=4).init(None, Q), ValueError, r"head_axis.*rank 4"),
    "ssmax without counts": (lambda: apply(nj.ssmax(head_axis=1), Q), ValueError, "visible=.*none"),
    "ssmax counts": (
        lambda: nj.ssmax_scale(Q, jnp.ones(4), jnp.ones(5), head_axis=1),
        ValueError,
        r"\(5,\).*\(2, 4, 3, 8\)",
    ),
    "ssmax scale": (lambda: nj.ssmax_scale(Q, jnp.ones(2), jnp.ones(()), head_axis=1), ValueError, r"\(2,\).*\(4,\)"),
    "softmax mask": (
        lambda: nj.scalable_softmax(Q, jnp.ones(4), mask=jnp.ones((3, 3))),
        ValueError,
        r"\(3, 3\).*\(2, 4, 3, 8\)",
    ),
    "base scale": (lambda: nj.ngpt_norm(base_scale=0.0), ValueError, r"0\.0"),
    "no update": (lambda: apply(nj.ngpt_interpolation()), ValueError, "update=.*none"),
    "update shape": (lambda: nj.ngpt_interpolate(X, X[:1], jnp.ones(4)), ValueError, r"\(1, 3, 4\).*\(2, 3, 4\)"),
    "alpha shape": (lambda: nj.ngpt_interpolate(X, X, jnp.ones(3)), ValueError, r"alpha.*\(3,\).*\(4,\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
