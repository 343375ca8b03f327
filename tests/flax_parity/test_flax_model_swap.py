"""Whole models, checkpoints and Flax's own tools around the drop-ins."""

import functools

import flax.linen as fnn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from tests.flax_parity.parity import BF16, assert_near, assert_same_tree, flax_rules, normal

LINEN_MODEL = """
import flax.linen as nn
{imports}

class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (3, 3))(x)
        x = BatchNorm(use_running_average=not train, momentum=0.9)(x)
        x = GroupNorm(num_groups=4)(nn.relu(x))
        x = InstanceNorm()(nn.Conv(8, (1, 1))(x))
        x = LayerNorm()(x.reshape(x.shape[0], -1))
        return nn.Dense(3)(RMSNorm()(x))
"""
NNX_MODEL = """
from flax import nnx
{imports}

class Net(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(2, 8, (3, 3), rngs=rngs)
        self.batch = BatchNorm(8, momentum=0.9, rngs=rngs)
        self.group = GroupNorm(8, num_groups=4, rngs=rngs)
        self.instance = InstanceNorm(8, rngs=rngs)
        self.layer = LayerNorm(8 * 16, rngs=rngs)
        self.rms = RMSNorm(8 * 16, scale_init=nnx.initializers.normal(1.0), rngs=rngs)
        self.head = nnx.Linear(8 * 16, 3, rngs=rngs)

    def __call__(self, x):
        x = self.instance(self.group(nnx.relu(self.batch(self.conv(x)))))
        return self.head(self.rms(self.layer(x.reshape(x.shape[0], -1))))
"""
NAMES = "BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm"
IMAGES = (5, 4, 4, 2)
# Every output depends on sums over at most this many values, one norm after the other.
DEPTH = 5 * 5 * 16 * 8


def build(source, package):
    namespace = {}
    exec(source.format(imports=f"from {package} import {NAMES}"), namespace)
    return namespace["Net"]


@functools.partial(jax.jit, static_argnums=0)
def train_step(model, variables, x):
    return model.apply(variables, x, True, mutable=["batch_stats"])


@pytest.fixture(scope="module")
def linen_pair():
    x, key = normal(IMAGES), jax.random.key(7)
    theirs, ours = build(LINEN_MODEL, "flax.linen")(), build(LINEN_MODEL, "normjax.linen")()
    with flax_rules():
        expected, variables = (jax.jit(m.init, static_argnums=2)(key, x, True) for m in (theirs, ours))
        y = train_step(theirs, expected, x)
    return theirs, ours, expected, variables, x, y


def test_only_the_import_line_changes_in_linen(linen_pair):
    _, ours, expected, variables, x, (y, updates) = linen_pair
    assert_same_tree(variables, expected)
    with flax_rules():
        z, moved = train_step(ours, variables, x)
    assert_near(z, y, DEPTH)
    jax.tree.map(lambda a, b: assert_near(a, b, DEPTH), moved, updates)


def test_linen_checkpoints_go_both_ways(linen_pair):
    theirs, ours, expected, variables, x, (_, updates) = linen_pair
    trained = {**jax.tree.map(lambda a: a + 0.25, expected), **updates}
    stored = flax.serialization.to_bytes(trained)
    restored = flax.serialization.from_bytes(variables, stored)
    assert_same_tree(restored, trained)
    back = flax.serialization.from_bytes(expected, flax.serialization.to_bytes(restored))
    assert_same_tree(back, trained)
    with flax_rules():
        y, z = theirs.apply(back, x, False), ours.apply(restored, x, False)
    assert_near(z, y, DEPTH)


def test_bind_lazy_init_and_capture(linen_pair):
    _, ours, _, variables, x, _ = linen_pair
    with flax_rules():
        lazy = ours.lazy_init(jax.random.key(7), jax.ShapeDtypeStruct(x.shape, x.dtype), True)
        assert_same_tree(lazy, variables)
        bound = ours.bind(variables)
        _, captured = ours.apply(variables, x, False, capture_intermediates=True)
        assert_near(bound(x, False), captured["intermediates"]["__call__"][0], 1)
    layer = nj.linen.LayerNorm().bind({"params": variables["params"]["LayerNorm_0"]})
    assert_near(layer(normal((2, 128))), nj.layer_normalize(normal((2, 128))), 128)


def test_only_the_import_line_changes_in_nnx():
    x = normal(IMAGES)
    with flax_rules():
        theirs, ours = (build(NNX_MODEL, p)(nnx.Rngs(3)) for p in ("flax.nnx", "normjax.nnx"))
        assert_same_tree(nnx.state(ours), nnx.state(theirs))
        assert_near(ours(x), theirs(x), DEPTH)
        for a, b in zip(*(jax.tree.leaves(nnx.state(m, nnx.BatchStat)) for m in (ours, theirs)), strict=True):
            assert_near(a, b, DEPTH)
        # train() and eval() reach the batch norm; evaluation leaves its statistics alone.
        ours.eval()
        theirs.eval()
        assert ours.batch.use_running_average
        before = jax.tree.map(jnp.array, nnx.state(ours, nnx.BatchStat))
        assert_near(ours(x), theirs(x), DEPTH)
        assert_same_tree(nnx.state(ours, nnx.BatchStat), before)
        ours.train()
        assert not ours.batch.use_running_average
        view = nnx.view(ours, use_running_average=True)
        theirs.eval()
        assert_near(view(x), theirs(x), DEPTH)
        assert not ours.batch.use_running_average
        # A checkpoint of Flax's model goes into ours as a plain dictionary, and ours through split and merge.
        theirs.train()
        theirs(x)
        stored = flax.serialization.to_bytes(nnx.to_pure_dict(nnx.state(theirs)))
        graph, state = nnx.split(ours)
        pure = flax.serialization.from_bytes(nnx.to_pure_dict(state), stored)
        nnx.replace_by_pure_dict(state, pure)
        merged = nnx.merge(graph, state)
        assert_same_tree(nnx.state(merged), nnx.state(theirs))
        merged.eval()
        theirs.eval()
        assert_near(merged(x), theirs(x), DEPTH)


@pytest.mark.parametrize("name", NAMES.split(", "))
def test_bridges_between_linen_and_nnx(name):
    x = normal((2, 3, 4, 6))
    more = {"num_groups": 2} if name == "GroupNorm" else {}
    train = {"use_running_average": False} if name == "BatchNorm" else {}
    step = {"mutable": ["batch_stats"]} if name == "BatchNorm" else {}
    results = []
    for linen, other in ((fnn, nnx), (nj.linen, nj.nnx)):
        with flax_rules():
            wrapped = nnx.bridge.ToNNX(getattr(linen, name)(**more, **train), rngs=nnx.Rngs(0)).lazy_init(x)
            module = nnx.bridge.ToLinen(getattr(other, name), args=(6,), kwargs=more)
            variables = module.init(jax.random.key(0), x)
            y, _ = module.apply(variables, x, mutable=True)
            z = wrapped(x, **step)
            results.append((z, nnx.state(wrapped, nnx.Any(nnx.Param, nnx.BatchStat)), y, variables))
    (a, state, b, variables), (c, own_state, d, own_variables) = results
    assert_near(c, a, x.size)
    assert_near(d, b, x.size)
    # One step of the bridge's batch norm has been taken; its statistics agree to rounding.
    for p, q in zip(jax.tree.leaves(own_state), jax.tree.leaves(state), strict=True):
        assert_near(p, q, x.size)
    without_graph = [{k: v for k, v in vs.items() if k != "nnx"} for vs in (own_variables, variables)]
    assert_same_tree(*without_graph)


def test_nnx_modules_jit_and_differentiate_as_flax_s_do():
    x = normal((4, 6))
    results = []
    for library in (nnx, nj.nnx):
        with flax_rules():
            layer = library.BatchNorm(6, dtype=BF16, rngs=nnx.Rngs(0), scale_init=nnx.initializers.normal(1.0))

            @nnx.jit
            def step(m, x):
                return nnx.value_and_grad(lambda m: (m(x).astype(jnp.float32) ** 3).sum())(m)

            results.append((*step(layer, x), nnx.state(layer, nnx.BatchStat)))
    (loss, gradient, stats), (own_loss, own_gradient, own_stats) = results
    # Flax rounds the input to bfloat16 first; cubes of outputs up to 3 are summed.
    size = 3 * float(np.abs(np.asarray(loss))) + 81
    for a, b in zip(jax.tree.leaves((own_loss, own_gradient)), jax.tree.leaves((loss, gradient)), strict=True):
        assert_near(a, b, x.size, BF16, inputs=size)
    for a, b in zip(jax.tree.leaves(own_stats), jax.tree.leaves(stats), strict=True):
        assert_near(a, b, x.size, BF16)


def test_batch_norm_without_a_mode_says_what_to_do():
    layer = nj.nnx.BatchNorm(3, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="No `use_running_average` argument was provided"):
        layer(normal((2, 3)))
    assert layer(normal((2, 3)), use_running_average=True).shape == (2, 3)
