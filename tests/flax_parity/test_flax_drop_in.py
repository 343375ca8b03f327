"""Every drop-in against Flax's own module over its arguments: same variables, same numbers, same gradients."""

import math

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from tests.flax_parity.parity import BF16, F16, F32, SHAPE, assert_near, assert_same_tree, flax_rules, full_mask, normal

RANDOM = {"scale_init": fnn.initializers.normal(1.0)}
RANDOM_BOTH = {**RANDOM, "bias_init": fnn.initializers.uniform(2.0)}
# Arguments that every norm takes, each with the dtype of the input.
COMMON = [
    ({}, F32),
    ({}, BF16),
    ({"param_dtype": BF16}, BF16),
    ({"dtype": BF16}, F32),
    ({"dtype": F32, "param_dtype": F16}, F16),
    ({"use_scale": False, "epsilon": 0.1, "use_fast_variance": False}, F32),
]
WITH_BIAS = [({"use_bias": False, **RANDOM}, F32), (RANDOM_BOTH, F32), ({"use_scale": False, "use_bias": False}, BF16)]
AXES = [
    {"reduction_axes": 1},
    {"reduction_axes": (1, 2), "feature_axes": -1},
    {"reduction_axes": (-2, -1), "feature_axes": (-2, -1)},
    {"reduction_axes": [2, -1, 3], "feature_axes": (3, 1)},
]
OWN = {
    "LayerNorm": [*WITH_BIAS, *(({**axes, **RANDOM_BOTH}, F32) for axes in AXES)],
    "RMSNorm": [(RANDOM, F32), *(({**axes, **RANDOM}, F32) for axes in AXES)],
    "GroupNorm": [
        *WITH_BIAS,
        ({"num_groups": None, "group_size": 2, **RANDOM_BOTH}, F32),
        ({"num_groups": 6}, F32),
        ({"num_groups": 1, "reduction_axes": (1, 2, -1)}, F32),
    ],
    "InstanceNorm": [*WITH_BIAS, ({"feature_axes": 1, **RANDOM_BOTH}, F32), ({"feature_axes": (1, -1)}, F32)],
    "BatchNorm": [*WITH_BIAS, ({"axis": 1, "momentum": 0.5, **RANDOM_BOTH}, F32), ({"momentum": 0.0}, F32)],
}
LINEN_ONLY = {
    "LayerNorm": [({"force_float32_reductions": False}, BF16), ({"force_float32_reductions": False}, F32)],
    "RMSNorm": [({"force_float32_reductions": False, "param_dtype": BF16}, BF16)],
    "GroupNorm": [({"reduction_axes": (2, 3)}, F32), ({"reduction_axes": (0, 1, 3)}, F32)],
    "InstanceNorm": [({"force_float32_reductions": False, "dtype": BF16}, BF16)],
    "BatchNorm": [({"force_float32_reductions": False}, BF16), ({"axis": (1, -1), **RANDOM_BOTH}, F32)],
}


def cases(*tables):
    return [
        pytest.param(name, keywords, dtype, id=f"{name}-{dtype.__name__}-{'-'.join(keywords)}")
        for name in OWN
        for table in tables
        for keywords, dtype in (table if isinstance(table, list) else table[name])
    ]


def arguments(name, keywords):
    given = {"use_running_average": False} if name == "BatchNorm" else {}
    if name == "GroupNorm" and "num_groups" not in keywords:
        given["num_groups"] = 2
    return given | keywords


def narrow(keywords, dtype):
    """The dtypes on the way from input to output that may round."""
    return [d for d in (dtype, keywords.get("dtype"), keywords.get("param_dtype")) if d not in (None, F32)]


SIZE = math.prod(SHAPE)


@pytest.mark.parametrize(("name", "keywords", "dtype"), cases(COMMON, OWN, LINEN_ONLY))
def test_linen_module_equals_flax(name, keywords, dtype):
    keywords = arguments(name, keywords)
    x, mask, key = normal(dtype=dtype), full_mask(), jax.random.key(3)
    theirs, ours = getattr(fnn, name)(**keywords), getattr(nj.linen, name)(**keywords)
    with flax_rules():
        expected = theirs.init(key, x)
    variables = ours.init(key, x)
    assert_same_tree(variables, expected)
    rounds = narrow(keywords, dtype)
    for m in (None, mask):
        # A few masked values may lie close together, where Flax's fast variance is wrong; that is measured elsewhere.
        theirs = theirs.clone(use_fast_variance=m is None and keywords.get("force_float32_reductions", True))
        with flax_rules():
            y, updates = theirs.apply(expected, x, mask=m, mutable=["batch_stats"])
        z, moved = ours.apply(variables, x, mask=m, mutable=["batch_stats"])
        assert_near(z, y, SIZE, *rounds)
        # Flax's force_float32_reductions=False takes the statistics themselves in bfloat16.
        for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(updates), strict=True):
            assert_near(a, b, SIZE, *rounds)


@pytest.mark.parametrize(("name", "keywords", "dtype"), cases(COMMON, OWN))
def test_nnx_module_equals_flax(name, keywords, dtype):
    keywords = arguments(name, keywords)
    axes = keywords.get("feature_axes", keywords.get("axis", -1))
    features = math.prod(SHAPE[a] for a in ([axes] if isinstance(axes, int) else axes))
    x, mask = normal(dtype=dtype), full_mask()
    theirs = getattr(nnx, name)(features, **keywords, rngs=nnx.Rngs(3))
    ours = getattr(nj.nnx, name)(features, **keywords, rngs=nnx.Rngs(3))
    assert_same_tree(nnx.state(ours), nnx.state(theirs))
    public = {k for k in vars(theirs) if not k.startswith("_")}
    assert public <= set(vars(ours))
    rounds = narrow(keywords, dtype)
    for m in (None, mask):
        theirs.use_fast_variance = m is None
        with flax_rules():
            y = theirs(x, mask=m)
        assert_near(ours(x, mask=m), y, SIZE, *rounds, inputs=float(jnp.abs(x).max()))
    before, after = nnx.state(theirs, nnx.BatchStat), nnx.state(ours, nnx.BatchStat)
    for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(before), strict=True):
        assert_near(a, b, SIZE, *rounds, inputs=float(jnp.abs(x).max()))


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("masked", [False, True])
def test_gradients_equal_flax(name, masked):
    keywords = arguments(name, RANDOM if name == "RMSNorm" else RANDOM_BOTH)
    x, weights = normal(), normal(seed=5, mean=0.0)
    mask = full_mask() if masked else None
    key = jax.random.key(0)

    def gradients(module):
        variables = module.init(key, x)

        def loss(params, x):
            y, _ = module.apply({**variables, "params": params}, x, mask=mask, mutable=["batch_stats"])
            return (y * weights).sum()

        return jax.jit(jax.grad(loss, (0, 1)))(variables["params"], x)

    with flax_rules():
        expected = gradients(getattr(fnn, name)(**keywords, use_fast_variance=not masked))
    actual = gradients(getattr(nj.linen, name)(**keywords))
    # A gradient entry is a sum of up to SIZE products of rounded outputs with weights of size up to 4.
    jax.tree.map(lambda a, b: assert_near(a, b, SIZE, inputs=4.0), actual, expected)


@pytest.mark.parametrize("axis", [-1, 1])
def test_evaluation_uses_the_same_running_statistics(axis):
    x = normal()
    keywords = {"axis": axis, "use_running_average": True}
    shape = (SHAPE[axis],)
    stats = {"mean": normal(shape, seed=2), "var": 1 + normal(shape, seed=3) ** 2}
    params = {"scale": normal(shape, seed=4), "bias": normal(shape, seed=5)}
    with flax_rules():
        y = fnn.BatchNorm(**keywords).apply({"params": params, "batch_stats": stats}, x)
    z, updates = nj.linen.BatchNorm(**keywords).apply({"params": params, "batch_stats": stats}, x, mutable=True)
    assert_near(z, y, 1)
    assert_same_tree(updates["batch_stats"], stats)
    layers = []
    for library in (nnx, nj.nnx):
        layer = library.BatchNorm(SHAPE[axis], axis=axis, rngs=nnx.Rngs(0))
        for name, value in {**stats, **params}.items():
            getattr(layer, name)[...] = value
        layer.eval()
        with flax_rules():
            layers.append(layer(x))
    assert_near(layers[1], layers[0], 1)
    assert_near(layers[1], z, 1)


@pytest.mark.parametrize("average", [False, True])
def test_a_custom_promote_dtype_gets_flax_s_tuple(average):
    seen = []

    def promote(values, dtype):
        seen.append([None if v is None else v.shape for v in values])
        return tuple(v if v is None else v.astype(F32) for v in values)

    x = normal(dtype=BF16)
    outputs = []
    for library in (nnx, nj.nnx):
        with flax_rules():
            layer = library.BatchNorm(6, use_running_average=average, promote_dtype=promote, rngs=nnx.Rngs(0))
            norm = library.RMSNorm(6, promote_dtype=promote, rngs=nnx.Rngs(0))
            outputs.append((layer(x), norm(x)))
    assert seen[:2] == seen[2:]
    for a, b in zip(*outputs, strict=True):
        assert_near(a, b, SIZE)


@pytest.mark.parametrize("library", ["linen", "nnx"])
@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6)])
def test_batch_norm_of_single_examples_syncs_over_a_vmapped_axis(library, shape):
    # Inside vmap a dense model's BatchNorm sees one vector: all its statistics come from the mapped axis.
    x = normal(shape)
    outputs = []
    for source in ("flax", "ours"):
        with flax_rules():
            if library == "linen":
                layer = (fnn if source == "flax" else nj.linen).BatchNorm(use_running_average=False, axis_name="batch")
                variables = layer.init(jax.random.key(0), x[0])
                run = jax.vmap(
                    lambda e, layer=layer, v=variables: layer.apply(v, e, mutable=["batch_stats"]),
                    axis_name="batch",
                    out_axes=(0, None),
                )
            else:
                layer = (nnx if source == "flax" else nj.nnx).BatchNorm(6, axis_name="batch", rngs=nnx.Rngs(0))
                mapped = nnx.vmap(lambda m, e: m(e), in_axes=(nnx.StateAxes({...: None}), 0), axis_name="batch")

                def run(x, layer=layer, mapped=mapped):
                    return mapped(layer, x), nnx.state(layer, nnx.BatchStat)

            outputs.append(run(x))
    (y, expected), (z, updates) = outputs
    assert_near(z, y, x.size)
    jax.tree.map(lambda a, b: assert_near(a, b, x.size), updates, expected)


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm", "GroupNorm"])
def test_sharded_features_sync_over_a_vmapped_axis(name):
    # The feature axis cut into 2: statistics over the whole, parameters of the part.
    x = normal((3, 2, 4, 6)).transpose(1, 0, 2, 3)
    keywords = arguments(name, {"axis_name": "part", "use_scale": False})
    variables = {} if name == "RMSNorm" else {"params": {"bias": normal((6,))}}
    outputs = []
    for library in (fnn, nj.linen):
        layer = getattr(library, name)(**keywords)
        with flax_rules():
            outputs.append(jax.vmap(lambda e, m=layer: m.apply(variables, e), axis_name="part")(x))
    assert_near(outputs[1], outputs[0], x.size)


@pytest.mark.skipif(
    jax.device_count() < 4, reason="needs 4 devices: XLA_FLAGS=--xla_force_host_platform_device_count=8"
)
@pytest.mark.parametrize("library", ["linen", "nnx"])
def test_groups_of_devices_sync_among_themselves(library):
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:4]), ("d",))
    spec = jax.sharding.PartitionSpec("d")
    x = normal((8, 3, 6))
    groups = [[0, 1], [2, 3]]
    keywords = {"axis_name": "d", "axis_index_groups": groups, "use_running_average": False}

    def run(source):
        def part(x):
            if library == "linen":
                layer = (fnn if source == "flax" else nj.linen).BatchNorm(**keywords)
                return layer.apply({"params": params, "batch_stats": stats}, x, mutable=["batch_stats"])[0]
            return (nnx if source == "flax" else nj.nnx).BatchNorm(6, **keywords, rngs=nnx.Rngs(0))(x)

        params = {"scale": jnp.ones(6), "bias": jnp.zeros(6)}
        stats = {"mean": jnp.zeros(6), "var": jnp.ones(6)}
        return jax.jit(jax.shard_map(part, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))(x)

    with flax_rules():
        y = run("flax")
    z = run("ours")
    assert_near(z, y, x.size)
    halves = [np.asarray(z, np.float64)[i : i + 4].mean((0, 1)) for i in (0, 4)]
    np.testing.assert_allclose(halves, np.zeros((2, 6)), atol=x.size * np.finfo(np.float32).eps)


def test_partition_boxes_are_the_same():
    x = normal()
    for name in OWN:
        keywords = arguments(name, {"scale_init": fnn.with_partitioning(fnn.initializers.ones, ("embed",))})
        with flax_rules():
            expected = getattr(fnn, name)(**keywords).init(jax.random.key(0), x)
        actual = getattr(nj.linen, name)(**keywords).init(jax.random.key(0), x)
        assert isinstance(actual["params"]["scale"], fnn.Partitioned)
        assert_same_tree(actual, expected)
        assert fnn.get_partition_spec(actual) == fnn.get_partition_spec(expected)


@pytest.mark.parametrize("name", OWN)
def test_nnx_metadata_is_the_same(name):
    keywords = arguments(name, {"scale_metadata": {"owner": "head", "rate": 0.5}})
    if name != "RMSNorm":
        keywords["bias_metadata"] = {"owner": "tail"}
    theirs, ours = (getattr(m, name)(6, **keywords, rngs=nnx.Rngs(0)) for m in (nnx, nj.nnx))
    for parameter in ("scale", "bias")[: 1 if name == "RMSNorm" else 2]:
        a, b = (getattr(m, parameter).get_metadata() for m in (ours, theirs))
        assert a == b
        assert a["owner"] in ("head", "tail")


@pytest.mark.parametrize("name", OWN)
def test_both_signatures_accept_flax_s_arguments_in_flax_s_order(name):
    import inspect

    def described(function):
        return [(p.name, p.kind) for p in inspect.signature(function).parameters.values()]

    assert described(getattr(nj.nnx, name)) == described(getattr(nnx, name))
    assert described(getattr(nj.linen, name)) == described(getattr(fnn, name))
    assert described(getattr(nj.nnx, name).__call__) == described(getattr(nnx, name).__call__)
    assert described(getattr(nj.linen, name).__call__) == described(getattr(fnn, name).__call__)

    def defaults(function):
        simple = (int, float, str, bool, type(None), type)
        values = {p.name: p.default for p in inspect.signature(function).parameters.values()}
        return {k: v for k, v in values.items() if isinstance(v, simple)}

    assert defaults(getattr(nj.nnx, name)) == defaults(getattr(nnx, name))
    assert defaults(getattr(nj.linen, name)) == defaults(getattr(fnn, name))
