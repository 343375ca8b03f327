"""The scale-invariance test against theory: norms, heads, stacked layers, zeros, sharded weights."""

import functools
import os
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import normjax as nj
from normjax._method import methods
from normjax.diagnostics import gradient_cosines, scale_invariance
from tests.norms.cases import CASES

METHODS = {name: m for name, m in methods(vars(nj)).items() if m.family != "weight"}
DAILY = ("batch_norm", "layer_norm", "group_norm", "dyt")
NAMES = METHODS if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else DAILY
EPS32 = float(np.finfo(np.float32).eps)


def normal(rng, *shape):
    return jax.device_put(np.asarray(rng.standard_normal(shape), jnp.float32))


# The derivative is local, and is what the backward pass makes it: batch renorm's corrections and learned regions are
# constants to it, and Unified Normalization's takes out a running mean of the radial part: a tenth of it in step one.
LOCALLY = {"batch_renorm": "per unit", "learned_region_norm": "per unit", "unified_norm": None}


@pytest.mark.parametrize("name", NAMES)
def test_weights_before_every_norm_are_as_its_metadata_says(name, rng):
    case = next(c for c in CASES if c.factory.__name__ == name)
    context = case.context(np.random.default_rng(1), case.shape)
    norm_params, state = case.norm.init(jax.random.key(0), jax.ShapeDtypeStruct(case.shape, jnp.float32), **context)
    stated = METHODS[name].scale_invariance
    # A spread of 30 makes an epsilon of 1e-3 a share of 1e-6; what saturates there is not to look invariant.
    spread = 1 if stated == "none" else 30
    x, cotangent = spread * normal(rng, *case.shape[:-1], 5), normal(rng, *case.shape)
    params = {"kernel": normal(rng, 5, case.shape[-1])}

    def loss(params, x, norm_params, state, context):
        y, _ = case.norm.apply(norm_params, state, x @ params["kernel"], train=True, **context)
        return jnp.sum(jnp.sin(y) * cotangent.astype(y.dtype))

    found = scale_invariance(loss, params, x, norm_params, state, context, dtype=jnp.float64)
    expected = LOCALLY.get(name, {"none": None, "per group": "joint"}.get(stated, stated))
    assert found.granularity("kernel") == expected, str(found)


def network(params, x):
    """Layer norm, batch norm and a norm of two heads, each after a weight of its own, and a readout of all."""
    joint = nj.layer_normalize(x @ params["joint"])
    unit = nj.batch_normalize(x @ params["unit"])[0]
    head = nj.rms_normalize((x @ params["head"]).reshape(-1, 2, 4)).reshape(-1, 8)
    own_axis = nj.rms_normalize(jnp.einsum("bi,ihd->bhd", x, params["own_axis"]), epsilon=0.0).reshape(-1, 8)
    return jnp.sum(jnp.sin((joint + unit + jnp.tanh(head) * own_axis) @ params["readout"] + params["bias"][None]))


@functools.cache
def inputs():
    rng = np.random.default_rng(0)
    shapes = {"joint": (6, 8), "unit": (6, 8), "head": (6, 8), "own_axis": (6, 2, 4), "readout": (8, 4)}
    params = {name: normal(rng, *shape) for name, shape in shapes.items()} | {"bias": jnp.zeros(4)}
    return params, normal(rng, 16, 6)


HEADS = {"heads": {"head": 2}, "head_axes": {"own_axis": 1}}
TRACES = []


def counted(params, x):
    TRACES.append(x)
    return network(params, x)


@functools.cache
def measured():
    return scale_invariance(counted, *inputs(), **HEADS)


def test_granularities_mask_and_axes():
    params, found = inputs()[0], measured()
    granularity = {path: found.granularity(path) for path in params}
    assert granularity == {
        "joint": "joint",
        "unit": "per unit",
        "head": "per head",
        "own_axis": "per head",
        "readout": None,
        "bias": None,
    }
    assert found.mask() == {path: g is not None for path, g in granularity.items()}
    assert found.mask("per unit") == {path: g == "per unit" for path, g in granularity.items()}
    assert found.axes() == {"joint": (0, 1), "unit": (0, 1), "head": (0, 1), "own_axis": (0, 1, 2)}
    assert found.axes("per unit") == {"unit": (0,)}
    with pytest.raises(ValueError, match=r"'head' of shape \(6, 8\) has no axis for granularity 'per head'"):
        found.axes("per head")
    printed = str(found)
    assert all(path in printed for path in found.weights)
    assert re.search(r"unit .* per unit ", printed)
    assert re.search(r"readout .* no ", printed)


def test_nap_takes_mask_and_axes():
    (params, x), found = inputs(), measured()
    tx = nj.nap(optax.sgd(0.1), mask=found.mask("per unit"), axes=found.axes("per unit"))

    @jax.jit
    def step(params):
        updates, _ = tx.update(jax.grad(network)(params, x), tx.init(params), params)
        return optax.apply_updates(params, updates)

    norms = [np.linalg.norm(p["unit"], axis=0) for p in (params, step(params))]
    np.testing.assert_allclose(norms[1], norms[0], rtol=8 * EPS32)


def test_float64_removes_the_rounding_and_epsilon_stays():
    params, x = inputs()
    left = [measured().weights["own_axis"].alignment("joint")]
    for epsilon, dtype in ((0.0, jnp.float64), (1e-3, jnp.float64)):
        fixed = lambda p, x, epsilon=epsilon: jnp.sum(jnp.sin(nj.layer_normalize(x @ p["joint"], epsilon=epsilon)))
        found = scale_invariance(fixed, {"joint": params["joint"]}, x, dtype=dtype)
        left.append(found.weights["joint"].alignment("joint"))
    assert left[0] < 32 * EPS32
    assert left[1] < 32 * np.finfo(np.float64).eps
    assert 1e-5 < left[2] < 1e-2


def test_zero_biases_do_not_hide_what_they_will_break(rng):
    params = {"w": normal(rng, 6, 8), "v": normal(rng, 8, 8), "bias": jnp.zeros(8)}
    loss = lambda p, x: jnp.sum(jnp.sin(nj.layer_normalize(jax.nn.relu(x @ p["w"]) @ p["v"] + p["bias"][None])))
    x = normal(rng, 16, 6)
    assert scale_invariance(loss, params, x, zeros=0).granularity("w") == "joint"
    assert scale_invariance(loss, params, x).granularity("w") is None
    assert not params["bias"].any()


def test_stacked_layers_are_measured_alone(rng):
    params = {"stack": {"kernel": normal(rng, 2, 8, 8)}, "head": normal(rng, 8, 3)}

    def loss(params, x, normalized):
        def layer(h, each):
            kernel, on = each
            y = h @ kernel
            return jnp.tanh(jnp.where(on, nj.layer_normalize(y), y)), None

        h, _ = jax.lax.scan(layer, x, (params["stack"]["kernel"], normalized))
        return jnp.sum(jnp.sin(h @ params["head"]))

    x = normal(rng, 16, 8)
    every = scale_invariance(loss, params, x, jnp.array([True, True]), stacked={"stack": 1})
    one = scale_invariance(loss, params, x, jnp.array([True, False]), stacked={"stack": 1})
    assert every.mask() == {"stack": {"kernel": True}, "head": False}
    assert every.axes() == {"stack/kernel": (1, 2)}
    assert one.granularity("stack/kernel") is None
    cosines = one.weights["stack/kernel"].cosines["joint"]
    assert cosines.shape == (2,)
    assert cosines[0] < 1e-5 < cosines[1]


def test_silent_weights_are_not_projected(rng):
    params = {"dead": normal(rng, 6, 4), "unused": normal(rng, 3, 3), "live": normal(rng, 6, 4)}

    def loss(params, x):
        h = nj.batch_normalize(x @ params["dead"])[0] * jnp.array([[1.0, 0.0, 1.0, 1.0]])
        return jnp.sum(jnp.sin(h + jnp.tanh(x @ params["live"])))

    found = scale_invariance(loss, params, normal(rng, 16, 6))
    assert found.granularity("dead") == "per unit"
    assert found.weights["dead"].silent["per unit"] == 0.25
    assert found.granularity("unused") is None
    assert "no gradient" in str(found)


def test_boxed_trees_keep_their_structure(rng):
    kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
    model = nn.Sequential([nn.Dense(8, use_bias=False, kernel_init=kernel), nn.LayerNorm(), nn.Dense(3)])
    x = normal(rng, 16, 6)
    params = jax.jit(model.init)(jax.random.key(0), x)["params"]
    linen = scale_invariance(lambda p, x: jnp.sum(jnp.sin(model.apply({"params": p}, x))), params, x)
    assert linen.granularity("layers_0/kernel") == "joint"
    nj.nap(optax.sgd(0.1), mask=linen.mask(), axes=linen.axes()).init(params)

    made = nnx.jit(lambda: nnx.Sequential(nnx.Linear(6, 8, rngs=nnx.Rngs(0)), nnx.LayerNorm(8, rngs=nnx.Rngs(0))))()
    graph, state = nnx.split(made)
    loss = lambda p, x: jnp.sum(jnp.sin(nnx.merge(graph, p)(x)))
    found = scale_invariance(loss, jax.tree.map(lambda v: v.astype(jnp.bfloat16), state), x)
    # bfloat16 weights are measured in float32: what is left is not their rounding. The bias has to move along.
    assert found.granularity("layers/0/kernel") is None
    without = scale_invariance(loss, state, x, zeros=0)
    assert without.granularity("layers/0/kernel") == "joint"
    nj.project_weights(mask=without.mask(), axes=without.axes()).init(state)


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
def test_sharded_weights_are_measured_where_they_are(axis_type):
    params, x = inputs()
    specs = dict.fromkeys(("joint", "unit", "head"), (None, "model")) | {"own_axis": (None, "model", None)}
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(axis_type,) * 2)
    expected = {path: w.cosines for path, w in measured().weights.items()}
    assert len(TRACES) == 1  # one forward pass, and hence one backward pass
    with jax.set_mesh(mesh):
        put = lambda path, leaf: jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*specs.get(path, ()))))
        spread = {path: put(path, leaf) for path, leaf in params.items()}
        batch = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
        if axis_type == AxisType.Auto:
            found = scale_invariance(network, spread, batch, **HEADS)
            close = functools.partial(np.testing.assert_allclose, atol=32 * EPS32)
            jax.tree.map(close, {path: w.cosines for path, w in found.weights.items()}, expected)
        # A few sums over devices, whatever is sharded; no weight is gathered.
        cosines = jax.jit(lambda p, g: gradient_cosines(p, g, **HEADS))
        text = cosines.lower(spread, spread).compile().as_text()
    assert "all-reduce" in text
    assert not re.search("all-gather|all-to-all|collective-permute|reduce-scatter", text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": {"joint": 3}}, r"heads=3 do not divide the last axis of 'joint', which has shape \(6, 8\)"),
        ({"heads": {"nothing": 2}}, r"heads names \['nothing'\], which are not parameters"),
        ({"heads": {"joint": 2}, "head_axes": {"joint": 1}}, "give one"),
        ({"head_axes": {"joint": 2}}, "head_axes of 'joint'=2 is out of range"),
        ({"stacked": {"joint": 2}}, "stacked=2 leaves no axis of 'joint'"),
        ({"mask": {"joint": True}}, "mask says nothing about"),
        ({"threshold": 0.0}, "threshold must be positive and finite, got 0.0"),
        ({"zeros": -1.0}, "zeros is a standard deviation, finite and not negative, got -1.0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        scale_invariance(network, *inputs(), **options)


def test_other_errors():
    params, x = inputs()
    with pytest.raises(TypeError, match="dtype must be a floating dtype"):
        scale_invariance(network, params, x, dtype=jnp.int32)
    with pytest.raises(ValueError, match=r"gradients of \['joint'\] with values that are not finite"):
        # sqrt of a zero: a finite loss with an infinite slope.
        scale_invariance(lambda p: jnp.sum(jnp.sqrt(jnp.abs(p["joint"]) * 0)), {"joint": params["joint"]})
    with pytest.raises(ValueError, match=r"differ in \['bias'\]"):
        gradient_cosines(params, {k: v for k, v in params.items() if k != "bias"})
    with pytest.raises(ValueError, match="granularity='unit' is unknown"):
        measured().mask("unit")
