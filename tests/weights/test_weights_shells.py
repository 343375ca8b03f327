"""The linen and nnx wrappers call layers with effective kernels, and never write the stored ones."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import normjax as nj
from tests.weights.cases import CASES, drawn

EPS32 = float(np.finfo(np.float32).eps)


class LinenKernel(nn.Module):
    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        return self.param("kernel", nn.initializers.normal(1.0), self.shape)


class NnxKernel(nnx.Module):
    def __init__(self, shape, rngs):
        self.kernel = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self):
        return self.kernel[...]


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b):
    # Two programs, which the compiler may fuse and therefore round differently.
    np.testing.assert_allclose(a, b, rtol=0, atol=32 * EPS32 * max(1.0, float(np.max(np.abs(b)))))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_linen_equals_nnx_equals_pure(case, rng):
    transform, rules = case.transform, {"kernel": case.transform}
    kernel, params, state = drawn(case, rng)
    prefixed = lambda tree: {f"layer_instance/kernel/{name}": value for name, value in tree.items()}
    layer = nj.linen.Reparametrized(LinenKernel(case.shape), rules)
    variables = jax.eval_shape(layer.init, jax.random.key(0))
    assert set(variables["params"]) == {"layer_instance", *prefixed(params)}
    assert set(variables.get("batch_stats", {})) == set(prefixed(state))
    variables = {"params": {"layer_instance": {"kernel": kernel}, **prefixed(params)}, "batch_stats": prefixed(state)}

    def pure(kernel, params, state):
        effective, trained = transform.apply(params, state, kernel, train=True)
        return effective, trained, transform.apply(params, trained, kernel, train=False)[0]

    def linen(variables):
        y, updates = layer.apply(variables, mutable=True)
        return y, updates, *layer.apply(variables | updates, update_stats=False, mutable=True)

    def of_nnx(kernel, params, state):
        module = nj.nnx.Reparametrized(NnxKernel(case.shape, nnx.Rngs(0)), rules, rngs=nnx.Rngs(0))
        module.layer_instance.kernel[...] = kernel
        for held, values in ((module.scales, params), (module.batch_stats, state)):
            assert set(held) == {f"kernel/{name}" for name in values}
            for name, value in values.items():
                held[f"kernel/{name}"].set_value(value)
        y = module()
        moved = {name: module.batch_stats[f"kernel/{name}"][...] for name in state}
        module.eval()
        before = nnx.to_pure_dict(nnx.state(module))
        kept, baked = module(), module.baked().kernel[...]
        return y, moved, kept, baked, before, nnx.to_pure_dict(nnx.state(module)), module.layer_instance.kernel[...]

    @jax.jit
    def run(variables, *values):
        return pure(*values), linen(variables), of_nnx(*values)

    expected, of_linen, found = run(variables, kernel, params, state)
    effective, trained, evaluated = expected
    y, updates, kept, later = of_linen
    assert_same(updates["params"], variables["params"])
    close(y, effective)
    jax.tree.map(close, updates.get("batch_stats", {}), prefixed(trained))
    close(kept, evaluated)
    jax.tree.map(close, later.get("batch_stats", {}), prefixed(trained))

    y, moved, kept, baked, before, after, stored = found
    close(y, effective)
    jax.tree.map(close, moved, trained)
    close(kept, evaluated)
    close(baked, evaluated)
    assert_same(after, before)
    assert_same(stored, kernel)


HEADS = {"query/kernel": nj.weight_norm(feature_axes=(-2, -1)), "out/kernel": nj.spectral_norm()}
TOKENS = jax.device_put(np.asarray(np.random.default_rng(0).standard_normal((2, 3, 4)), jnp.float32))
IMAGES = jax.device_put(np.asarray(np.random.default_rng(0).standard_normal((2, 5, 5, 4)), jnp.float32))
INDICES = jnp.array([[0, 2], [1, 2]])
LINEN = {
    "dense": (lambda: nn.Dense(3), {"kernel": nj.weight_standardization()}, TOKENS),
    "conv": (lambda: nn.Conv(6, (3, 3), feature_group_count=2), {"kernel": nj.spectral_norm()}, IMAGES),
    "embed": (lambda: nn.Embed(3, 4), {"embedding": nj.weight_norm(feature_axes=0)}, INDICES),
    "attention": (lambda: nn.MultiHeadDotProductAttention(2), HEADS, TOKENS),
}
NNX = {
    "dense": (lambda r: nnx.Linear(4, 3, rngs=r), *LINEN["dense"][1:]),
    "conv": (lambda r: nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=r), *LINEN["conv"][1:]),
    "embed": (lambda r: nnx.Embed(3, 4, rngs=r), *LINEN["embed"][1:]),
    "attention": (lambda r: nnx.MultiHeadAttention(2, 4, decode=False, rngs=r), *LINEN["attention"][1:]),
}


@pytest.mark.parametrize("name", LINEN)
def test_real_linen_layers(name):
    make, rules, x = LINEN[name]
    layer = nj.linen.Reparametrized(make(), rules)
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    stored = variables["params"]["layer_instance"]

    held = {"params": variables["params"], "batch_stats": variables.get("batch_stats", {})}

    def fill(tree, where):
        return {p: {n: held[where][f"layer_instance/{p}/{n}"] for n in values} for p, values in tree.items()}

    @jax.jit
    def wrapped(variables):
        def loss(variables):
            y, updates = layer.apply(variables, x, mutable=True)
            return jnp.sum(y**2), (y, updates)

        return *jax.value_and_grad(loss, has_aux=True)(variables), layer.apply(variables, x, update_stats=False)

    @jax.jit
    def unwrapped(stored):
        own, state = jax.eval_shape(nj.by_path(rules).init, jax.random.key(1), stored)
        own, state = fill(own, "params"), fill(state, "batch_stats")
        effective, _ = nj.by_path(rules).apply(own, state, stored, train=True)
        baked = nj.bake(stored, rules, own=own, state=state)
        return make().apply({"params": effective}, x), make().apply({"params": baked.params}, x)

    (_, (y, updates)), gradients, evaluated = first = wrapped(variables)
    plain, baked = unwrapped(stored)
    close(y, plain)
    assert_same(updates["params"], variables["params"])
    assert_same(wrapped(variables), first)
    # Only what a rule names is another function of its parameter; all of it has a gradient.
    moved = {jax.tree_util.keystr(p) for p, g in jax.tree_util.tree_leaves_with_path(gradients["params"]) if np.any(g)}
    assert all(any(f"'{part}'" in m for m in moved) for rule in rules for part in rule.split("/"))
    close(baked, evaluated)


@pytest.mark.parametrize("name", NNX)
def test_real_nnx_layers(name):
    make, rules, x = NNX[name]
    module = nnx.jit(lambda: nj.nnx.Reparametrized(make(nnx.Rngs(0)), rules, rngs=nnx.Rngs(1)))()
    stored = jax.tree.map(np.array, nnx.state(module, nnx.Param))
    module.eval()
    y, baked, plain = nnx.jit(lambda m, x: (m(x), m.baked()(x), m.layer_instance(x)))(module, x)
    close(y, baked)
    assert not np.allclose(y, plain) or name == "embed"
    module.train()

    @nnx.jit
    def train(m, x):
        gradients = nnx.grad(lambda m, x: jnp.sum(m(x) ** 2))(m, x)
        m(x)
        return gradients

    gradients = train(module, x)
    assert_same(nnx.state(module, nnx.Param), stored)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
    assert all(np.any(v[...]) for v in gradients.get("scales", {}).values())


class Block(nn.Module):
    """A layer as it stands in a scanned or mapped stack."""

    @nn.compact
    def __call__(self, x, train=True):
        x = nj.linen.WeightNorm(nn.Dense(4))(x)
        return nj.linen.SpectralNorm(nn.Dense(4))(jnp.tanh(x), update_stats=train), None


def test_linen_scan_remat_and_vmap(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((2, 4)), jnp.float32))
    axes = {"params": 0, "batch_stats": 0}
    stack = nn.scan(nn.remat(Block), variable_axes=axes, split_rngs={"params": True}, length=3)()
    mapped = nn.vmap(Block, variable_axes=axes, split_rngs={"params": True}, axis_size=3, in_axes=None)()
    variables = jax.jit(stack.init)(jax.random.key(0), x)

    @jax.jit
    def run(variables):
        def loss(variables):
            (y, _), updates = stack.apply(variables, x, mutable=True)
            return jnp.sum(y**2), (y, updates)

        return jax.grad(loss, has_aux=True)(variables), mapped.apply(variables, x, mutable=True)[0][0]

    block = jax.jit(lambda variables, x: Block().apply(variables, x, mutable=True))
    (gradients, (y, updates)), ys = run(variables)
    assert_same(updates["params"], variables["params"])
    expected = x
    for i in range(3):
        one = jax.tree.map(lambda a, i=i: np.asarray(a)[i], variables)
        (expected, _), new = block(one, expected)
        jax.tree.map(close, jax.tree.map(lambda a, i=i: np.asarray(a)[i], updates["batch_stats"]), new["batch_stats"])
        if i == 1:
            close(ys[1], block(one, x)[0][0])
    close(y, expected)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients["params"]))


def test_nnx_scan_remat_and_vmap(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((2, 4)), jnp.float32))

    @nnx.jit
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        # One wrapper around another: lengths are learned first, and the result is divided by its spectral norm.
        return nj.nnx.WeightNorm(nj.nnx.SpectralNorm(nnx.Linear(4, 4, rngs=rngs), rngs=rngs), rngs=rngs)

    layers = make(nnx.Rngs(0).split(3))
    graph, state = nnx.split(layers)
    before = jax.tree.map(np.array, state)

    @nnx.jit
    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    @nnx.remat
    def forward(layer, x):
        return jnp.tanh(layer(x))

    alone_forward = nnx.jit(lambda layer, x: jnp.tanh(layer(x)))
    y = forward(layers, x)
    expected = x
    for i in range(3):
        one = nnx.merge(graph, jax.tree.map(lambda a, i=i: jnp.asarray(a[i]), before))
        expected = alone_forward(one, expected)
        inner, alone = (module.layer_instance.batch_stats[("kernel", "u")][...] for module in (layers, one))
        close(np.asarray(inner)[i], alone)
    close(y, expected)
    assert_same(nnx.state(layers, nnx.Param), nnx.filter_state(before, nnx.Param))
    ys = nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None)))(layers, x)
    assert ys.shape == (3, 2, 4)


def test_the_gain_of_nnx_weight_norm_is_trained(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((2, 4)), jnp.float32))
    module = nnx.jit(lambda: nj.nnx.WeightNorm(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1)))()
    optimizer = nnx.Optimizer(module, optax.sgd(0.1), wrt=nnx.Param)
    before, kernel = (np.array(v[...]) for v in (module.scales[("kernel",)], module.layer_instance.kernel))

    @nnx.jit
    def step(module, optimizer):
        optimizer.update(module, nnx.grad(lambda m: jnp.sum(m(x) ** 2))(module))

    step(module, optimizer)
    assert np.all(np.asarray(module.scales[("kernel",)][...]) != before)
    assert np.any(np.asarray(module.layer_instance.kernel[...]) != kernel)


def test_state_of_the_wrapped_layer_still_moves(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((4, 3)), jnp.float32))

    class Inner(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dropout(0.5, deterministic=False)(nn.BatchNorm(use_running_average=False)(nn.Dense(2)(x)))

    layer = nj.linen.Reparametrized(Inner(), {"Dense_0/kernel": nj.weight_norm()})
    with jax.numpy_rank_promotion("allow"):

        @jax.jit
        def run(x):
            variables = layer.init({"params": jax.random.key(0), "dropout": jax.random.key(1)}, x)
            return layer.apply(variables, x, rngs={"dropout": jax.random.key(2)}, mutable=["batch_stats"])

        _, updates = run(x)
    assert np.any(updates["batch_stats"]["layer_instance"]["BatchNorm_0"]["mean"])

    class Inside(nnx.Module):
        def __init__(self, rngs):
            self.linear = nnx.Linear(3, 2, rngs=rngs)
            self.norm = nj.nnx.BatchNorm(2, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            y = self.norm(self.linear(x))
            self.sow(nnx.Intermediate, "normalized", y)
            return self.dropout(y)

    rules = {"linear/kernel": nj.weight_norm()}
    module = nnx.jit(lambda: nj.nnx.Reparametrized(Inside(nnx.Rngs(0)), rules, rngs=nnx.Rngs(0)))()
    call = nnx.jit(nnx.capture(nnx.Intermediate)(lambda m, x: m(x)))
    (first, captured), (second, _) = call(module, x), call(module, x)
    assert jax.tree.leaves(captured)[0].shape == first.shape
    assert np.any(np.asarray(first) != np.asarray(second)), "the dropout's stream stood still"
    assert np.any(module.layer_instance.norm.mean[...])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nj.linen.WeightNorm(nn.Dense(16))(x))
        x = nn.relu(nj.linen.SpectralNorm(nn.Dense(16), use_scale=True)(x, update_stats=train))
        return nj.linen.Reparametrized(nn.Dense(1), {"kernel": nj.scaled_weight_standardization()})(x)


def test_a_linen_model_trains_and_its_gains_with_it(rng):
    x, target = (jax.device_put(np.asarray(rng.standard_normal((32, n)), jnp.float32)) for n in (4, 1))
    model, optimizer = Net(), optax.sgd(0.1)
    variables = jax.jit(functools.partial(model.init, train=False))(jax.random.key(0), x)
    carry = (variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))

    def step(carry, _):
        params, stats, opt_state = carry

        def loss(params):
            y, new = model.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
            return jnp.mean((y - target) ** 2), new["batch_stats"]

        (value, stats), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), stats, opt_state), value

    (params, _, _), losses = jax.jit(lambda carry: jax.lax.scan(step, carry, None, length=100))(carry)
    assert losses[-1] < 0.7 * losses[0]
    for name in ("WeightNorm_0", "SpectralNorm_0", "Reparametrized_0"):
        for before, after in zip(*map(jax.tree.leaves, (variables["params"][name], params[name])), strict=True):
            assert np.any(np.asarray(before) != np.asarray(after)), f"the gain of {name} was not trained"


def test_partitioned_boxes_pass_through(rng):
    x = jax.device_put(np.asarray(rng.standard_normal((2, 4)), jnp.float32))
    init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
    layer = nj.linen.WeightNorm(nn.Dense(3, kernel_init=init))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    assert variables["params"]["layer_instance"]["kernel"].names == ("in", "out")
    plain = jax.jit(nn.Dense(3).apply)({"params": nn.unbox(variables["params"]["layer_instance"])}, x)
    close(jax.jit(layer.apply)(variables, x), plain)


def test_the_wrapper_of_a_layer_in_a_model_keeps_the_names_of_its_checkpoint(rng):
    x = jnp.ones((1, 4))

    class Plain(nn.Module):
        wrap: bool

        @nn.compact
        def __call__(self, x):
            x = nn.Dense(3)(x)
            dense = nn.Dense(2)
            return nj.linen.WeightNorm(dense)(x) if self.wrap else dense(x)

    # In one program, so that both round alike.
    both = jax.jit(lambda key: [Plain(wrap=wrap).init(key, x) for wrap in (False, True)])
    plain, wrapped = both(jax.random.key(0))
    own = wrapped["params"].pop("WeightNorm_0")
    assert list(own) == ["Dense_1/kernel/scale"]
    assert_same(wrapped, plain)
