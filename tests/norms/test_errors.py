"""Bad input: each call raises, and the message states what came and what was expected."""

import jax
import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))


def apply(norm, x=X, **kwargs):
    params, state = norm.init(None, X)
    return norm.apply(params, state, x, train=True, **kwargs)


CALLS = {
    "integer input": (lambda: nj.layer_normalize(jnp.ones(3, jnp.int32)), TypeError, "int32"),
    "complex input": (lambda: nj.rms_normalize(jnp.ones(3, jnp.complex64)), TypeError, "complex64"),
    "axis out of range": (lambda: nj.layer_normalize(X, axis=3), ValueError, r"axis=3.*rank 3"),
    "axis twice": (lambda: nj.layer_normalize(X, axis=(2, -1)), ValueError, r"\(2, -1\).*twice"),
    "no axis": (lambda: nj.layer_normalize(X, axis=()), ValueError, "no axis"),
    "axis not an int": (lambda: nj.layer_normalize(X, axis=(1.0,)), TypeError, "1.0"),
    "negative epsilon": (lambda: nj.rms_norm(epsilon=-1e-6), ValueError, "-1e-06"),
    "infinite epsilon": (lambda: nj.batch_norm(epsilon=float("inf")), ValueError, "inf"),
    "nan epsilon": (lambda: nj.group_norm(epsilon=float("nan")), ValueError, "nan"),
    "mask too short": (lambda: apply(nj.layer_norm(), mask=jnp.ones((2, 3))), ValueError, r"\(2, 3\).*\(2, 3, 4\)"),
    "mask too wide": (lambda: apply(nj.layer_norm(), mask=jnp.ones((5, 2, 3, 4))), ValueError, r"\(5, 2, 3, 4\)"),
    "mask of groups": (lambda: apply(nj.group_norm(num_groups=2), mask=jnp.ones((2, 2))), ValueError, r"\(2, 2\)"),
    "groups do not divide": (
        lambda: nj.group_norm(num_groups=3).init(None, X),
        ValueError,
        r"num_groups=3.*4.*\[1, 2, 4\]",
    ),
    "group size": (lambda: nj.rms_normalize(X, group_size=3), ValueError, r"group_size=3.*4"),
    "both group counts": (lambda: nj.group_normalize(X, num_groups=2, group_size=2), ValueError, "exactly one"),
    "empty batch": (lambda: nj.batch_normalize(jnp.ones((0, 3))), ValueError, r"\(0, 3\)"),
    "empty features": (lambda: nj.layer_normalize(jnp.ones((3, 0))), ValueError, r"\(3, 0\)"),
    "no batch axis": (lambda: nj.batch_norm().init(None, jnp.ones(3)), ValueError, "rank 1"),
    "no spatial axis": (lambda: nj.instance_norm().init(None, jnp.ones((2, 3))), ValueError, "rank 2"),
    "scale of another shape": (lambda: nj.layer_normalize(X, jnp.ones(3)), ValueError, r"scale.*\(3,\).*\(4,\)"),
    "bias of another shape": (lambda: nj.layer_normalize(X, bias=jnp.ones(3)), ValueError, r"bias.*\(3,\)"),
    "momentum": (lambda: nj.batch_norm(momentum=1.5), ValueError, "1.5"),
    "debias without momentum": (lambda: nj.batch_norm(momentum=None, debias=True), ValueError, "momentum"),
    "groups without axis name": (lambda: nj.layer_normalize(X, axis_index_groups=[[0]]), ValueError, "axis_name"),
    "empty chain": (nj.chain, ValueError, "at least one"),
    "factory instead of transform": (lambda: nj.chain(nj.rms_norm), TypeError, "must be called"),
    "split sizes": (lambda: nj.split([nj.rms_norm()], sizes=[1, 2]), ValueError, r"1 transforms.*2 sizes"),
    "split of too few": (lambda: nj.split([nj.rms_norm()] * 5).init(None, X), ValueError, "length 4"),
    "split mask": (lambda: apply(nj.split([nj.rms_norm()] * 2), mask=jnp.ones((2, 3, 4))), ValueError, "size 1"),
    "blend weights": (lambda: nj.blend([nj.rms_norm()], [0.5, 0.5]), ValueError, r"1 transforms.*2 weights"),
    "blend weight shape": (
        lambda: apply(nj.blend([nj.rms_norm()], nj.stateless(lambda p, x, *, mask: jnp.ones(3)))),
        ValueError,
        r"\(1,\).*\(3,\)",
    ),
    "unknown cast order": (lambda: nj.Precision(cast_order="never"), ValueError, "never"),
    "unknown output": (lambda: nj.Precision(output="bfloat"), ValueError, "bfloat"),
    "integer statistics": (lambda: nj.Precision(statistics=jnp.int32), TypeError, "int32"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()


def test_errors_come_from_shapes_alone():
    with pytest.raises(ValueError, match="rank 3"):
        jax.eval_shape(lambda x: nj.layer_normalize(x, axis=7), X)
