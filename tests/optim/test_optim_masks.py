"""Which weights are selected, and what wrong options are told."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim
from normjax.optim._paths import flatten


def kernel(*shape):
    return jnp.ones(shape or (3, 3))


def layer(*shape):
    return {"kernel": kernel(*shape), "bias": jnp.ones(3)}


def chosen(mask, params):
    return sorted(path for path, value in flatten(mask(params)).leaves.items() if value)


def projected(params, **options):
    return sorted(optim.project_weights(**options).init(params).radii)


@pytest.mark.parametrize(
    "name",
    [
        "head",
        "lm_head",
        "PolicyHead_0",
        "value",
        "q_values",
        "Readout",
        "logits",
        "actor",
        "critic_1",
        "unembed",
    ],
)
def test_recognised_readouts_are_not_projected(name):
    assert projected({"Dense_0": layer(), name: layer()}) == ["Dense_0/kernel"]


@pytest.mark.parametrize(
    "name", ["Dense_1", "MultiHeadDotProductAttention_0", "multi_head_attention", "out", "heading"]
)
def test_an_unnamed_readout_raises_instead_of_being_projected(name):
    with pytest.raises(ValueError, match=r"No readout is recognised.*hidden_weights\(readout="):
        projected({"Dense_0": layer(), name: layer()})


def test_attention_value_projection_is_neither_a_readout_nor_evidence_of_one():
    attention = {name: layer(3, 2, 2) for name in ("query", "key", "value", "out")}
    params = {"attention": attention, "head": layer()}
    expected = [f"attention/{name}/kernel" for name in ("key", "out", "query", "value")]
    assert projected(params) == expected
    with pytest.raises(ValueError, match="No readout"):
        projected({"attention": attention, "Dense_0": layer()})


def test_biases_scales_and_embeddings_are_left_out_whatever_their_shape():
    stack = {"kernel": kernel(4, 3, 3), "bias": kernel(4, 3), "scale": kernel(4, 3)}
    params = {
        "layers": stack,
        "embed": {"embedding": kernel(10, 3)},
        "norm": {"scale": jnp.ones(3)},
        "head": layer(),
    }
    assert projected(params) == ["layers/kernel"]
    with_embedding = optim.hidden_weights(embeddings=True)
    assert chosen(with_embedding, params) == ["embed/embedding", "layers/kernel"]


def test_declared_readouts():
    params = {"net": {"Dense_0": layer(), "Dense_1": layer()}, "Dense_1": layer()}
    assert chosen(optim.hidden_weights(("Dense_1",)), params) == ["net/Dense_0/kernel"]
    assert chosen(optim.hidden_weights(("net/Dense_1",)), params) == ["Dense_1/kernel", "net/Dense_0/kernel"]
    assert len(chosen(optim.hidden_weights(()), params)) == 3
    with pytest.raises(ValueError, match=r"readout names \['Dense_9'\], but the weights are .*net/Dense_0"):
        projected(params, mask=optim.hidden_weights(("Dense_9",)))
    with pytest.raises(TypeError, match="write \\('Dense_1',\\)"):
        optim.hidden_weights("Dense_1")


def test_masks_as_trees_prefixes_paths_and_functions():
    params = {"a": layer(), "b": layer()}
    expected = ["a/kernel"]
    assert projected(params, mask={"a": {"kernel": True, "bias": False}, "b": False}) == expected
    assert projected(params, mask={"a/kernel": True, "bias": False, "b": False}) == expected
    assert projected(params, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p) | {"b": False}) == expected
    assert len(projected(params, mask=True)) == 4


PARAMS = {"a": layer(), "b": layer()}

WRONG = {
    "mask selects nothing": ({"mask": False}, ValueError, r"selects none of the parameters.*'a/bias'"),
    "mask function selects nothing": (
        {"mask": lambda params: jax.tree.map(lambda leaf: leaf.ndim > 2, params)},
        ValueError,
        r"selects none of the parameters \['a/bias', 'a/kernel', 'b/bias', 'b/kernel'\].*at least one leaf",
    ),
    "mask is incomplete": ({"mask": {"a": True}}, ValueError, r"mask says nothing about .*'b/kernel'"),
    "mask of other parameters": (
        {"mask": {"c": True}},
        ValueError,
        r"mask names \['c'\], which are not parameters",
    ),
    "mask is no boolean": ({"mask": {"a": 1.0, "b": True}}, TypeError, r"booleans, got 1.0 for 'a/bias'"),
    "mask is ambiguous": (
        {"mask": {"a": True, "kernel": False, "b": True}},
        ValueError,
        "ambiguous for 'a/kernel'",
    ),
    "negative radius": ({"mask": True, "radius": -1.0}, ValueError, r"positive and finite, got -1.0"),
    "zero radius": ({"mask": True, "radius": {"a": 0.0, "b": 1.0}}, ValueError, r"got 0.0 for 'a/bias'"),
    "nan radius": ({"mask": True, "radius": float("nan")}, ValueError, "got nan"),
    "radius name": ({"mask": True, "radius": "fan_in"}, ValueError, "got 'fan_in'"),
    "radius is incomplete": (
        {"mask": True, "radius": {"a": 1.0}},
        ValueError,
        r"gives none for .*'b/kernel'",
    ),
    "radius of others": ({"mask": True, "radius": {"a": 1.0, "c": 1.0}}, ValueError, r"radius names \['c'\]"),
    "radius shape": (
        {"mask": {"a/kernel": True, "b": False, "a/bias": False}, "radius": jnp.ones(2), "axes": 0},
        ValueError,
        r"shape \(2,\); expected a scalar or one number per slice, \(3,\)",
    ),
    "axes out of range": (
        {"mask": True, "axes": (0, 1)},
        ValueError,
        r"'a/bias' must name .*shape \(3,\), got \(0, 1\)",
    ),
    "no axes": ({"mask": True, "axes": ()}, ValueError, r"at least one axis.*got \(\)"),
    "overlapping axes": ({"mask": True, "axes": {"kernel": (0, -2)}}, ValueError, r"twice: \(0, -2\)"),
    "axes of others": ({"mask": True, "axes": {"c": 0}}, ValueError, r"axes names \['c'\]"),
    "axes type": ({"mask": True, "axes": lambda path, leaf: 0.5}, TypeError, "got 0.5"),
    "every_k zero": ({"mask": True, "every_k": 0}, ValueError, "at least 1, got 0"),
    "every_k fraction": ({"mask": True, "every_k": 1.5}, TypeError, "integer, got 1.5"),
    "every_k flag": ({"mask": True, "every_k": True}, ValueError, "got True"),
}


@pytest.mark.parametrize(("options", "error", "message"), WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("make", [optim.project_weights, lambda **o: optim.nap(optax.sgd(0.1), **o)], ids=["p", "nap"])
def test_wrong_options_say_what_came_and_what_was_expected(make, options, error, message):
    with pytest.raises(error, match=message):
        make(**options).init(PARAMS)


NORM = {"norm": {"scale": jnp.ones(3), "bias": jnp.zeros(3)}}

WRONG_CALLS = {
    "rate above one": (lambda: optim.decay_towards_init(1.5), ValueError, "got 1.5"),
    "negative rate": (lambda: optim.decay_towards_init(-0.1), ValueError, "got -0.1"),
    "target name": (lambda: optim.decay_towards_init(0.1, target="zero"), ValueError, "got 'zero'"),
    "target incomplete": (
        lambda: optim.decay_towards_init(0.1, mask=True, target={"a": 0.0}).init(PARAMS),
        ValueError,
        r"target gives no value for .*'b/bias'",
    ),
    "target shape": (
        lambda: optim.decay_towards_init(0.1, target={"a/kernel": jnp.ones(2)}).init(PARAMS),
        ValueError,
        r"shape \(2,\); expected a scalar or \(3, 3\)",
    ),
    "integer leaf": (
        lambda: optim.project_weights(mask=True).init({"steps": jnp.int32(1)}),
        TypeError,
        r"floating-point leaves.*'steps' is int32",
    ),
    "negative learning rate": (lambda: optim.track_effective_lr(-1.0), ValueError, "got -1.0"),
    "tracking interval": (lambda: optim.nap(optax.sgd(0.1), track_every=0), ValueError, "track_every.*got 0"),
    "policy": (lambda: optim.nap(optax.sgd(0.1), scale_offset="drop"), ValueError, "got 'drop'"),
    "policy without rate": (
        lambda: optim.nap(optax.sgd(0.1), scale_offset="decay"),
        ValueError,
        "needs rate=",
    ),
    "rate without policy": (lambda: optim.nap(optax.sgd(0.1), rate=0.1), ValueError, "rate=0.1 is for"),
    "policy without pairs": (
        lambda: optim.nap(optax.sgd(0.1), mask=True, scale_offset="joint").init(PARAMS),
        ValueError,
        "own only leaves called .*'scale'.*have none",
    ),
    "policy on projected": (
        lambda: optim.nap(optax.sgd(0.1), mask=True, scale_offset="joint").init(NORM),
        ValueError,
        r"projects \['norm/bias', 'norm/scale'\]",
    ),
    "no moments": (
        lambda: optim.nap(optax.sgd(0.1), mask=True, rescale_moments=True).init(PARAMS),
        ValueError,
        "found none of .*'mu', 'nu'.*Plain SGD",
    ),
    "path collision": (
        lambda: optim.project_weights(mask=True).init({"a/b": kernel(), "a": {"b": kernel()}}),
        ValueError,
        "share the path 'a/b'",
    ),
    "negative step": (lambda: optim.norm_growth_schedule(0.1, -1.0), ValueError, "got -1.0"),
    "no tracker": (
        lambda: optim.effective_learning_rates(optax.adam(0.1).init(PARAMS)),
        ValueError,
        r"No tracker in the optimizer state \(a tuple\).*nap\(...\) or track_effective_lr",
    ),
    "unknown rate": (
        lambda: optim.effective_learning_rates(optim.track_effective_lr().init(PARAMS)),
        ValueError,
        "learning rate is not known.*learning_rate=",
    ),
    "unknown rule": (lambda: optim.effective_learning_rates((), like="lion"), ValueError, "got 'lion'"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_wrong_calls_say_what_came_and_what_was_expected(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_state_of_another_width_raises():
    tx = optim.project_weights(mask=True, axes=0)
    state = tx.init({"w": kernel(3, 4)})
    params = {"w": kernel(3, 5)}
    with pytest.raises(
        ValueError, match=r"shape \(4,\), but leaf shape \(3, 5\) reduced over axes \(0,\) needs \(5,\)"
    ):
        tx.update(params, state, params)


def test_two_trackers_of_one_weight_are_ambiguous():
    tx = optax.chain(optim.track_effective_lr(0.1), optim.track_effective_lr(0.1))
    with pytest.raises(ValueError, match=r"Several trackers .*'w'"):
        optim.weight_motion(tx.init({"w": kernel()}))


def test_a_tree_of_one_array_and_sequences_have_paths():
    tx = optim.project_weights(mask=True)
    assert list(tx.init(kernel()).radii) == ["."]
    assert sorted(tx.init([kernel(), (kernel(),)]).radii) == ["0", "1/0"]
    updates, _ = tx.update(kernel(), tx.init(kernel()), kernel())
    np.testing.assert_allclose(updates, np.zeros((3, 3)), atol=2.0**-22)
