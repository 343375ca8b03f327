"""Plans written by hand: linen trees, boxes, stacks, convolutions, dtypes, and every refusal."""

import dataclasses
import functools
import itertools
import os

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import normjax as nj
from normjax import fold
from normjax.fold import Edge, Layer, NormAt, Plan

NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
EPS32 = float(np.finfo(np.float32).eps)


def normal(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def moved(tree, seed=0):
    """The tree with random values; variances positive."""
    rng = np.random.default_rng(seed)
    draw = lambda path, leaf: jnp.asarray(
        np.exp(rng.standard_normal(leaf.shape))
        if "var" in jax.tree_util.keystr(path)
        else rng.standard_normal(leaf.shape),
        leaf.dtype,
    )
    return jax.tree_util.tree_map_with_path(draw, tree)


class Net(nn.Module):
    """Batch norm on both sides of a convolution, RepBN, a layer norm with two readers, attention."""

    use_bias: bool = False

    @nn.compact
    def __call__(self, x):
        x = nj.linen.Norm(nj.batch_norm(epsilon=1e-3), use_running_average=True, name="first")(x)
        x = nn.Conv(4, (2, 2), strides=2, padding="VALID", name="conv")(x)
        x = nj.linen.Norm(nj.rep_batch_norm(), use_running_average=True, name="second")(x)
        x = nn.relu(x).reshape(x.shape[0], -1, 4)
        y = nn.LayerNorm(name="norm")(x)
        y = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias, name="attention")(y) + nn.Dense(4, name="skip")(
            y
        )
        return nj.linen.Norm(nj.dyt(), name="last")(y) @ self.param("head", nn.initializers.normal(1), (4, 3))


HEADS = {"in_axes": (-3,), "out_axes": (-2, -1)}
READERS = (*(Layer(f"params/attention/{n}", **HEADS) for n in ("query", "key", "value")), Layer("params/skip"))
PLAN = Plan(
    (
        Edge("before", (NormAt("params/first", "running", "batch_stats/first", 1e-3),), (Layer("params/conv"),)),
        Edge("after", (NormAt("params/second", "running", "batch_stats/second"),), (Layer("params/conv"),)),
        Edge("before", (NormAt("params/norm"),), READERS),
        Edge("before", (NormAt("params/last"),), (Layer("params", kernel="head", takes_bias=False),)),
    )
)


@pytest.fixture(scope="module")
def net():
    x = jnp.asarray(normal(2, 4, 4, 3))
    variables = moved(jax.eval_shape(Net().init, jax.random.key(0), x))
    # The head is a plain matrix: it can take a gain and no shift.
    variables["params"]["last"]["bias"] *= 0
    return Net(), variables, x


def test_a_linen_network(net):
    module, variables, x = net
    folded, report = fold.apply(variables, PLAN)
    assert report.needs_bias == folded.needs_bias == tuple(f"params/attention/{n}" for n in ("query", "key", "value"))
    assert [edge.name for edge in report.applied] == ["params/first", "params/second", "params/norm", "params/last"]
    params = folded.params["params"]
    np.testing.assert_array_equal(params["norm"]["scale"], 1)
    np.testing.assert_array_equal(params["second"]["alpha"], 0)
    assert params["last"]["alpha"] == variables["params"]["last"]["alpha"], "DyT's alpha stays inside of its tanh"
    assert set(params["attention"]["query"]) == {"kernel", "bias"}
    assert params["attention"]["query"]["bias"].shape == (2, 2), "DenseGeneral's bias has both output axes"

    params["attention"]["out"]["bias"] = jnp.zeros(4)
    calls = [functools.partial(jax.jit(m.apply), v) for m, v in ((module, variables), (Net(True), folded.params))]
    result = fold.verify(*calls, x, tolerance=1e-5)
    assert result.passed, result
    again, second = fold.apply(folded, PLAN)
    assert not second.needs_bias
    jax.tree.map(np.testing.assert_array_equal, again.params, folded.params)


def test_a_plan_survives_json_and_prints(net):
    _, variables, _ = net
    plan = dataclasses.replace(PLAN, refusals=(fold.Refusal("params/other", "it stays."),))
    assert Plan.from_json(plan.to_json()) == plan
    _, report = fold.apply(variables, plan)
    assert plan.table().row_count == report.table().row_count == 5
    with pytest.raises(ValueError, match="no plan"):
        Plan.from_json("{}")


def one_edge(**layer):
    return Plan((Edge("before", (NormAt("norm"),), (Layer("dense", **layer),)),))


def pair(bias=True, **extra):
    tree = {"norm": {"scale": normal(3), "bias": normal(3, seed=1)}, "dense": {"kernel": normal(3, 2, seed=2)}}
    return {"norm": tree["norm"], "dense": tree["dense"] | ({"bias": normal(2, seed=3)} if bias else {})} | extra


CENTRED = Plan((Edge("center", (), (Layer("dense"),)),))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rule", ["before", "center"])
def test_stacks_are_folded_layer_by_layer(rule, bias):
    plan = CENTRED if rule == "center" else one_edge()
    single = [pair(bias), jax.tree.map(lambda a: a + 1, pair(bias))]
    stack = jax.tree.map(lambda *leaves: np.stack(leaves), *single)
    edge = dataclasses.replace(plan.edges[0], stacked=1)
    folded, _ = fold.apply(stack, Plan((edge,)))
    each = [fold.apply(tree, plan)[0].params for tree in single]
    jax.tree.map(np.testing.assert_array_equal, folded.params, jax.tree.map(lambda *leaves: np.stack(leaves), *each))


def test_rounded_once_to_each_leafs_dtype():
    """From bfloat16 leaves: every result is the rounding of the float64 one."""
    low = jax.tree.map(lambda a: jnp.asarray(a, jnp.bfloat16), pair())
    wide = jax.tree.map(lambda a: np.asarray(a, np.float64), low)
    folded, exact = (fold.apply(tree, one_edge())[0].params for tree in (low, wide))
    same = lambda a, b: np.testing.assert_array_equal(np.asarray(a), b.astype(jnp.bfloat16))
    jax.tree.map(same, folded, exact)
    kept, _ = fold.apply(low, one_edge(), dtype="float32", keep_dtype=False)
    assert kept.params["dense"]["kernel"].dtype == jnp.float32


class Convolutions(nn.Module):
    """A convolution between two batch norms."""

    strides: int
    padding: str
    groups: int
    use_bias: bool

    @nn.compact
    def __call__(self, x):
        norm = lambda name: nj.linen.Norm(nj.batch_norm(), use_running_average=True, name=name)
        options = {"strides": self.strides, "padding": self.padding, "feature_group_count": self.groups}
        y = nn.Conv(8, (3, 3), **options, use_bias=self.use_bias, name="conv")(norm("first")(x))
        return norm("second")(y)


CONVOLUTIONS = list(itertools.product([1, 2], ["VALID", "SAME"], [1, 2, 4]))
SOME = [(1, "SAME", 1), (2, "SAME", 2), (2, "VALID", 4)]


@pytest.mark.parametrize(("strides", "padding", "groups"), CONVOLUTIONS if NIGHTLY else SOME)
def test_convolutions_of_flax(strides, padding, groups):
    """Both sides of what Flax computes; the norm before one that pads stays, or goes with the value to pad with."""
    module, x = Convolutions(strides, padding, groups, use_bias=(groups + strides) % 2 == 0), normal(2, 5, 5, 4)
    variables = moved(jax.eval_shape(module.init, jax.random.key(0), x))
    layer = Layer("params/conv", groups=groups, padded=padding == "SAME")
    edges = [
        Edge(rule, (NormAt(f"params/{name}", "running", f"batch_stats/{name}"),), (layer,))
        for rule, name in (("before", "first"), ("after", "second"))
    ]
    folded, report = fold.apply(variables, Plan(tuple(edges)), strict=False)
    assert len(report.refusals) == (padding == "SAME")
    assert report.needs_bias == (() if module.use_bias else ("params/conv",))
    expected, biased = jax.jit(module.apply)(variables, x), dataclasses.replace(module, use_bias=True)
    largest = 64 * EPS32 * float(jnp.abs(expected).max())
    np.testing.assert_allclose(jax.jit(biased.apply)(folded.params, x), expected, rtol=0, atol=largest)
    if padding == "VALID":
        return
    # By hand: the border is what the norm takes to 0, and the convolution pads nothing.
    whole, _ = fold.apply(
        folded, Plan((dataclasses.replace(edges[0], layers=(dataclasses.replace(layer, padded=False),)),))
    )
    own, given = ({**variables[c]["first"]} for c in ("params", "batch_stats"))
    value = fold.conv_pad_value(*fold.running_affine(own["scale"], own["bias"], given["mean"], given["var"], 1e-5))
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    inside = jnp.pad(jnp.ones_like(x), border)
    around = jnp.where(inside == 1, jnp.pad(x, border), value.reshape(1, 1, 1, -1))
    valid = dataclasses.replace(biased, padding="VALID")
    atol = largest * max(1.0, float(jnp.abs(value).max()))
    np.testing.assert_allclose(jax.jit(valid.apply)(whole.params, around), expected, rtol=0, atol=atol)


AFTER = Plan((Edge("after", (NormAt("norm", "running"),), (Layer("dense"),)),))


@pytest.mark.parametrize("rule", ["before", "after", "center"])
def test_shardings_are_kept(rule):
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    features = 16 if rule == "after" else 8
    norm = {"scale": normal(features), "bias": normal(features)}
    norm |= {"mean": normal(features), "var": np.exp(normal(features))} if rule == "after" else {}
    tree = {"norm": norm, "dense": {"kernel": normal(8, 16), "bias": normal(16, seed=3)}}
    sharding = NamedSharding(mesh, PartitionSpec("data", "model"))
    placed = {**tree, "dense": tree["dense"] | {"kernel": jax.device_put(tree["dense"]["kernel"], sharding)}}
    plan = {"before": one_edge(), "after": AFTER, "center": CENTRED}[rule]
    expected = fold.apply(tree, plan)[0].params["dense"]
    for dtype in ("float64", "float32"):
        new = fold.apply(placed, plan, dtype=dtype)[0].params["dense"]
        assert new["kernel"].sharding == sharding
        for name in ("kernel", "bias"):
            np.testing.assert_allclose(new[name], expected[name], rtol=4 * EPS32, atol=16 * EPS32)


def test_folding_traces_in_float32():
    tree = jax.tree.map(jnp.asarray, pair(bias=False))
    traced = jax.jit(lambda tree: fold.apply(tree, one_edge(), dtype="float32")[0])(tree)
    assert isinstance(traced, fold.Folded)
    assert traced.needs_bias == ("dense",)
    expected = fold.apply(tree, one_edge())[0]
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=8 * EPS32, atol=8 * EPS32)
    jax.tree.map(close, traced, expected)
    gains = {"q": {"scale": jnp.ones(2)}, "k": {"scale": jnp.ones(2)}}
    plan = Plan((Edge("query-key", (NormAt("q"), NormAt("k")), rotated=2),))
    with pytest.raises(ValueError, match="only known outside of jit"):
        jax.jit(lambda tree: fold.apply(tree, plan, dtype="float32")[0])(gains)


def test_boxes_stay_around_their_arrays():
    boxed = pair(bias=False)
    boxed["dense"]["kernel"] = nn.Partitioned(jnp.asarray(boxed["dense"]["kernel"]), ("in", "out"))
    folded, _ = fold.apply(boxed, one_edge())
    assert folded.params["dense"]["kernel"].names == ("in", "out")


@pytest.mark.parametrize(
    ("tree", "plan", "message"),
    [
        (pair(), Plan((Edge("before", (NormAt("norm"),), (Layer("dense"), Layer("gate"))),)), "into all its cons"),
        (pair(bias=False), one_edge(takes_bias=False), "its module takes none"),
        (pair(), one_edge(padded=True), "pads its input with zeros"),
        (
            {**pair(), "norm": {"var": np.full(3, -1.0)}},
            Plan((Edge("before", (NormAt("norm", "running"),), (Layer("dense"),)),)),
            "not positive in 3 of 3",
        ),
        (pair(), one_edge(groups=4), "groups=4 needs one input axis"),
        ({**pair(), "dense": {"kernel": np.ones((4, 2))}}, one_edge(), r"scale has shape \(3,\), expected \(4,\)"),
        (pair(), Plan((Edge("after", (NormAt("norm", "running"),), (Layer("dense"),)),)), r"has no \['norm/var'\]"),
        (
            {"q": {"scale": np.ones(2)}, "k": {"scale": np.array([1.0, 2.0])}},
            Plan((Edge("query-key", (NormAt("q"), NormAt("k")), rotated=2),)),
            "differs within 1 rotated pairs",
        ),
        (
            {"q": {"scale": np.ones(2)}, "k": {"scale": np.ones(2), "bias": np.ones(2)}},
            Plan((Edge("query-key", (NormAt("q"), NormAt("k"))),)),
            "have a bias",
        ),
    ],
)  # fmt: skip
def test_refusals(tree, plan, message):
    with pytest.raises(ValueError, match=message):
        fold.apply(tree, plan)
    folded, report = fold.apply(tree, plan, strict=False)
    assert len(report.refusals) == 1
    assert not report.applied
    jax.tree.map(np.testing.assert_array_equal, folded.params, tree)


def test_a_gain_alone_needs_neither_a_bias_nor_a_border():
    tree = pair(bias=False)
    tree["norm"]["bias"] *= 0
    folded, report = fold.apply(tree, one_edge(padded=True, takes_bias=False))
    assert not report.needs_bias
    assert set(folded.params["dense"]) == {"kernel"}


def test_plans_that_make_no_sense():
    with pytest.raises(ValueError, match="takes 1 norms and some layers"):
        Edge("before", ())
    with pytest.raises(ValueError, match="takes 2 norms and no layers"):
        Edge("query-key", (NormAt("q"),), (Layer("k"),))
    with pytest.raises(ValueError, match="is unknown"):
        NormAt("norm", "batch")
    with pytest.raises(ValueError, match="is unknown"):
        fold.apply(pair(), one_edge(), dtype="bfloat16")
    with pytest.raises(TypeError, match="tree of nested dicts"):
        fold.apply([np.ones(2)], Plan())


OPTIMIZERS = {
    "project_weights": lambda mask: nj.project_weights(mask=mask),
    "nap": lambda mask: nj.nap(optax.sgd(0.1), mask=mask),
    "track_effective_lr": lambda mask: nj.track_effective_lr(0.1, mask=mask),
    "decay_towards_init": lambda mask: nj.decay_towards_init(0.1, mask=mask),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_refuse_folded_trees(name):
    tree = jax.tree.map(jnp.asarray, pair())
    folded, _ = fold.apply(tree, one_edge())
    for tx in (OPTIMIZERS[name](None if name == "track_effective_lr" else True),):
        for params in (folded, {"model": folded}, jax.tree.map(lambda a: 2 * a, folded)):
            with pytest.raises(ValueError, match="folded \\(or baked\\) for inference"):
                tx.init(params)
        tx.init(tree)
    baked = nj.bake({"kernel": tree["dense"]["kernel"]}, {"kernel": nj.weight_standardization()})
    with pytest.raises(ValueError, match="folded \\(or baked\\)"):
        OPTIMIZERS[name](None if name == "track_effective_lr" else True).init(baked)


def test_verify_reports_each_output():
    a = {"y": np.array([[1.0, 2.0]]), "z": np.zeros(3)}
    b = {"y": np.array([[2.0, 1.0]]), "z": np.zeros(3)}
    result = fold.verify(lambda: a, lambda: b, tolerance=1e-3)
    assert not result.passed
    assert result.outputs["y"].max_error == 1
    assert result.outputs["y"].top1_agreement == 0
    assert result.outputs["z"] == fold.Comparison(0.0, 0.0, 1.0)
    assert result.table().row_count == 2
    assert not fold.verify(lambda: a, lambda: {"y": np.full((1, 2), np.nan), "z": np.zeros(3)}).passed
    with pytest.raises(ValueError, match="differ in structure"):
        fold.verify(lambda: a, lambda: {"y": a["y"]})
