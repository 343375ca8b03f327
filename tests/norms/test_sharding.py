"""Eight devices: sharded equals replicated, with exactly the collectives that the statistics need."""

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import normjax as nj
from pallas_kernels import count_collectives
from tests.norms.cases import FIRST, of_each_family

EPS32 = float(np.finfo(np.float32).eps)
BATCH = 16
NIGHTLY = hypothesis.settings.get_current_profile_name() == "nightly"

MODES = (AxisType.Auto, AxisType.Explicit)


def make_mesh(mode):
    return jax.make_mesh((8,), ("data",), axis_types=(mode,))


@pytest.fixture(params=MODES, ids=["auto", "explicit"])
def mesh(request):
    return make_mesh(request.param)


def place(mesh, tree, spec):
    return jax.tree.map(lambda a: jax.device_put(a, NamedSharding(mesh, spec)), tree)


def assert_trees_close(a, b, scale=1.0):
    compare = lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=32 * EPS32 * scale)
    jax.tree.map(compare, jax.device_get(a), jax.device_get(b))


def unequal_mask(rng, shape):
    """Counts differ from device to device, and the second device has nothing at all."""
    mask = rng.random((*shape[:-1], 1)) < np.linspace(0.3, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    mask[2:4] = False
    return mask


def over_the_batch(case):
    return case.across_batch or getattr(getattr(case.factory, "method", None), "family", "batch") == "batch"


# Statistics of one example stay where it is, by the same reductions in every method of a family.
@pytest.mark.parametrize(
    "case",
    [c for c in FIRST if NIGHTLY or over_the_batch(c) or c in of_each_family(FIRST)],
    ids=lambda c: c.name,
)
def test_under_jit_sharded_equals_replicated(case, rng):
    shape = (BATCH, *case.shape[1:])
    x = rng.standard_normal(shape).astype(np.float32)
    context = case.context(np.random.default_rng(1), shape)
    params, state = case.norm.init(jax.random.key(0), x, **context)

    @jax.jit
    def step(params, state, x, context):
        def loss(params, x):
            y, new_state = case.norm.apply(params, state, x, train=True, **context)
            return jnp.sum(y**3), (y, new_state)

        return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(params, x)

    alone = step(params, state, x, context)
    batched = {k: P("data") if np.ndim(v) and np.shape(v)[0] == BATCH else P() for k, v in context.items()}
    size = float(np.abs(alone[0][0])) + BATCH * np.prod(shape[1:-1]) ** 0.5
    # The methods of a family share its collectives: the first and last are asked in both modes, the others in one.
    for mode in MODES if NIGHTLY or case in of_each_family(FIRST) else MODES[FIRST.index(case) % 2 :][:1]:
        mesh = make_mesh(mode)
        placed = {k: place(mesh, v, batched[k]) for k, v in context.items()}
        sharded = step(place(mesh, params, P()), place(mesh, state, P()), place(mesh, x, P("data")), placed)
        assert_trees_close(sharded, alone, scale=case.condition * size)
        assert sharded[0][1][0].sharding.spec[0] == "data", "the output left its devices"
        for leaf in jax.tree.leaves(sharded[0][1][1]):
            assert leaf.sharding.is_fully_replicated, "running statistics must be the same everywhere"


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("factory", [nj.batch_norm, nj.instance_norm, nj.layer_norm, nj.rms_norm, nj.group_norm])
def test_axis_name_merges_by_counts(factory, masked, rng):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    options = {"num_groups": 2} if factory is nj.group_norm else {}
    # Batch statistics with the batch sharded; the others with the axis they reduce sharded.
    sharded_axis = 0 if factory is nj.batch_norm else {nj.layer_norm: 2, nj.rms_norm: 2}.get(factory, 1)
    if factory in (nj.layer_norm, nj.rms_norm):
        options |= {"use_scale": False, "use_bias": False} if factory is nj.layer_norm else {"use_scale": False}
    x = (3 + rng.standard_normal((BATCH, 16, 8))).astype(np.float32)
    spec = P(*["data" if a == sharded_axis else None for a in range(3)])
    mask = rng.random((BATCH, 16, 1)) < 0.6 if masked else np.ones((1, 1, 1), bool)
    if masked and sharded_axis == 0:
        mask = unequal_mask(rng, x.shape)
    mask_spec = P(*["data" if a == sharded_axis and mask.shape[a] > 1 else None for a in range(3)])
    whole, merged = factory(**options), factory(axis_name="data", **options)
    params, state = whole.init(None, x)
    expected = whole.apply(params, state, x, train=True, mask=mask)

    def apply(params, state, x, mask):
        return merged.apply(params, state, x, train=True, mask=mask)

    mapped = jax.jit(jax.shard_map(apply, mesh=mesh, in_specs=(P(), P(), spec, mask_spec), out_specs=(spec, P())))
    assert_trees_close(mapped(params, state, x, mask), expected, scale=8.0)


def collectives(mesh, f, *args):
    return count_collectives(jax.jit(f).lower(*args).compile())


def test_collectives_are_counted(mesh, rng):
    x = place(mesh, rng.standard_normal((BATCH, 8)).astype(np.float32), P("data"))
    batch, layer = nj.batch_norm(), nj.layer_norm()
    params, state = place(mesh, batch.init(None, x), P())

    def forward(norm):
        return lambda params, x: norm.apply(params, state, x, train=True)[0]

    def gradient(norm):
        return jax.grad(lambda params, x: jnp.sum(forward(norm)(params, x) ** 3), argnums=(0, 1))

    # The mean, then what it lacks together with the variance.
    assert collectives(mesh, forward(batch), params, x) == {"all-reduce": 2}
    # One more carries both means of the cotangent and the gradients of scale and bias.
    assert collectives(mesh, gradient(batch), params, x) == {"all-reduce": 3}
    assert collectives(mesh, forward(layer), params, x) == {}
    # Gradients of scale and bias are sums over tokens.
    assert collectives(mesh, gradient(layer), params, x) == {"all-reduce": 1}
    evaluate = lambda params, x: batch.apply(params, state, x, train=False)[0]
    assert collectives(mesh, evaluate, params, x) == {}


def test_index_groups_are_merged_separately(rng):
    x = rng.standard_normal((4, 5, 3)).astype(np.float32)
    norm = nj.batch_norm(axis_name="i", axis_index_groups=[[0, 1], [2, 3]])
    params, state = norm.init(None, x[0])
    mapped = jax.pmap(lambda x: norm.apply(params, state, x, train=True)[0], axis_name="i")
    whole = nj.batch_norm()
    for pair in ([0, 1], [2, 3]):
        expected, _ = whole.apply(params, state, x[pair].reshape(10, 3), train=True)
        np.testing.assert_allclose(mapped(x)[np.array(pair)].reshape(10, 3), expected, rtol=0, atol=32 * EPS32)
