"""One battery over every transform of `normjax.optim`: whatever they do, they behave as optax transforms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from normjax import optim

HIDDEN = optim.hidden_weights(readout=("head",))
SCHEDULE = optax.linear_schedule(0.2, 0.05, 5)


def relaxed(inner):
    """Optax's own arithmetic promotes dtypes (`b1**count`); strict mode is for ours."""

    def update(updates, state, params=None):
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


TRANSFORMS = {
    "project": lambda: optim.project_weights(),
    "project_every_3": lambda: optim.project_weights(every_k=3, mask=HIDDEN),
    "project_axes": lambda: optim.project_weights(2.0, axes={"block/kernel": (1, 2)}),
    "decay": lambda: optim.decay_towards_init(0.1),
    "decay_schedule": lambda: optim.decay_towards_init(SCHEDULE, target={"scale": 1.0, "bias": 0.0}),
    "track": lambda: optim.track_effective_lr(0.1),
    "track_every_2": lambda: optim.track_effective_lr(SCHEDULE, every_k=2, axes={"block/kernel": (1, 2)}),
    "clip": lambda: optim.clip_weights(1.5, axes={"block/kernel": (1, 2)}),
    "hyperball": lambda: optim.hyperball(SCHEDULE),
    "rotate": lambda: optim.rotate_weights(0.1, decay=0.9, axes={"block/kernel": (1, 2)}),
    "tangent": lambda: optim.project_updates(relaxed(optax.trace(0.9)), threshold=0.1, axes={"dense/kernel": 0}),
    "effective": lambda: optim.scale_by_effective_lr(0.1, like="sgd"),
    "implicit": lambda: optim.implicit_schedule(),
    "shrink_and_perturb": lambda: optim.shrink_and_perturb(jax.random.key(0), 0.9, 0.1, every_k=2),
    "nap_sgd": lambda: optim.nap(relaxed(optax.sgd(0.1)), learning_rate=0.1),
    "nap_adam_decay": lambda: optim.nap(
        relaxed(optax.adam(0.1)),
        axes={"block/kernel": (1, 2)},
        scale_offset="decay",
        rate=SCHEDULE,
        track_every=2,
    ),
    "nap_adam_joint": lambda: optim.nap(
        relaxed(optax.adam(0.1)),
        scale_offset="joint",
        every_k=2,
        rescale_moments=True,
        learning_rate=SCHEDULE,
    ),
}
every_transform = pytest.mark.parametrize("make", TRANSFORMS.values(), ids=TRANSFORMS.keys())
every_name = pytest.mark.parametrize("name", TRANSFORMS)


def make_params(dtype=jnp.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "block": {"kernel": jnp.asarray(rng.normal(size=(3, 4, 4)), dtype)},
        "dense": {"kernel": jnp.asarray(rng.normal(size=(4, 4)), dtype), "bias": jnp.zeros(4, dtype)},
        "norm": {"scale": jnp.ones(4, dtype), "bias": jnp.asarray(rng.normal(size=4), dtype)},
        "head": {"kernel": jnp.asarray(rng.normal(size=(4, 2)), dtype)},
    }


def make_grads(params, step):
    """Arbitrary gradients without a random generator, whose compilation would dominate these tests."""

    def grad(p):
        if isinstance(step, int):
            return jax.device_put(np.asarray(np.cos(np.arange(p.size).reshape(p.shape) * 1.7 + step), p.dtype))
        phase = jnp.asarray(np.arange(p.size).reshape(p.shape) * 1.7, p.dtype)
        return jnp.cos(phase + jnp.asarray(step, p.dtype))

    return jax.tree.map(grad, params)


def apply(params, updates):
    # optax adds bfloat16 parameters and float32 updates by promotion, which strict mode forbids.
    with jax.numpy_dtype_promotion("standard"):
        return optax.apply_updates(params, updates)


def step_fn(tx):
    def step(carry, index):
        params, state = carry
        updates, state = tx.update(make_grads(params, index), state, params)
        return (apply(params, updates), state), updates

    return step


@functools.cache
def compiled_step(name):
    """A jitted step that takes its buffers over, and a list with one entry for each time that it was traced."""
    step, traces = step_fn(TRANSFORMS[name]()), []

    @functools.partial(jax.jit, donate_argnums=0)
    def run(carry, index):
        traces.append(1)
        return step(carry, index)[0]

    return run, traces


@functools.cache
def scanned(name):
    """Four steps from `init` on, and the same for a stack of parameters."""
    tx = TRANSFORMS[name]()

    def run(params):
        return jax.lax.scan(step_fn(tx), (params, tx.init(params)), jnp.arange(4))[0]

    return jax.jit(run), jax.jit(jax.vmap(run))


def stacked(*trees):
    return jax.tree.map(lambda *x: jax.device_put(np.stack(x)), *trees)


def avals(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype, getattr(x, "weak_type", False)), tree)


def close(a, b, ulps=64):
    """Same operations fused differently: a few roundings of the largest entry."""

    def check(x, y):
        x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
        np.testing.assert_allclose(x, y, rtol=0, atol=ulps * 2.0**-23 * max(1.0, np.abs(y).max(initial=0)))

    jax.tree.map(check, a, b)


@every_transform
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_trees_keep_structure_shapes_and_dtypes(make, dtype):
    tx, params = make(), make_params(dtype)
    state = tx.init(params)
    # What dtypes come out is known without the numbers; outside of jit in one dtype.
    update = tx.update if dtype == jnp.float32 else functools.partial(jax.eval_shape, tx.update)
    updates, new = update(make_grads(params, 0), state, params)
    assert jax.tree.structure(updates) == jax.tree.structure(params)
    assert all(u.shape == p.shape for u, p in zip(*map(jax.tree.leaves, (updates, params)), strict=True))
    assert all(u.dtype in (dtype, jnp.float32) for u in jax.tree.leaves(updates))
    assert jax.tree.structure(state) == jax.tree.structure(new)
    assert avals(state) == avals(new)
    assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves(state))


@every_name
def test_scan_equals_loop_of_one_compilation(name):
    step, traces = compiled_step(name)
    carry = (make_params(), TRANSFORMS[name]().init(make_params()))
    for index in range(4):
        carry = step(carry, jnp.int32(index))
    assert len(traces) == 1
    assert step._cache_size() == 1
    close(scanned(name)[0](make_params()), carry)


@every_transform
def test_abstract_init(make):
    tx, params = make(), make_params()
    abstract = jax.eval_shape(tx.init, params)
    concrete = tx.init(params)
    assert jax.tree.structure(abstract) == jax.tree.structure(concrete)
    assert avals(abstract) == avals(concrete)


@every_transform
def test_params_are_required(make):
    tx, params = make(), make_params()
    with pytest.raises(ValueError, match="params=None"):
        tx.update(params, tx.init(params))


@every_transform
def test_unknown_extra_arguments_are_ignored(make):
    tx, params = make(), make_params()
    plain = tx.update(make_grads(params, 0), tx.init(params), params)
    extra = tx.update(make_grads(params, 0), tx.init(params), params, value=1.0, tag="any")
    jax.tree.map(np.testing.assert_array_equal, plain, extra)


@every_name
def test_vmapped_seeds_equal_separate_runs(name):
    seeds = [make_params(seed=seed) for seed in range(3)]
    alone, together = scanned(name)
    close(together(stacked(*seeds)), stacked(*map(alone, seeds)))


@pytest.mark.parametrize(
    ("name", "jit_init"), [(name, False) for name in TRANSFORMS] + [("nap_adam_joint", True), ("track", True)]
)
def test_donated_parameters_and_state(name, jit_init):
    """One donated step equals one outside of jit."""
    tx, params = TRANSFORMS[name](), make_params()
    expected, _ = step_fn(tx)((make_params(), tx.init(make_params())), 0)
    state = (jax.jit(tx.init) if jit_init else tx.init)(params)
    close(compiled_step(name)[0]((params, state), jnp.int32(0)), expected)


@pytest.mark.parametrize("name", ["project", "decay", "track"])
def test_leaves_without_an_update_stay(name):
    # Optax writes None for a parameter without a gradient; its own optimizers do not take it: no nap here.
    tx, params = TRANSFORMS[name](), make_params()
    grads = make_grads(params, 0)
    grads["dense"]["kernel"] = None
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["dense"]["kernel"] is None


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("tangent", "shrink_and_perturb")])
def test_state_of_other_parameters_raises(name):
    tx, params = TRANSFORMS[name](), make_params()
    other = {("other" if name == "dense" else name): value for name, value in params.items()}
    other["norm2"] = other.pop("norm")
    with pytest.raises(ValueError, match=r"do not belong to these parameters.*other"):
        tx.update(jax.tree.map(jnp.ones_like, other), _same_inner(tx, other, params), other)


def _same_inner(tx, new, old):
    """The old path-keyed state with an inner optimizer state that fits the new parameters."""
    state = tx.init(old)
    return state._replace(inner_state=tx.init(new).inner_state) if hasattr(state, "inner_state") else state


@every_transform
def test_float64_parameters_keep_float64(make):
    with jax.enable_x64(True):
        params = make_params(jnp.float64)
        tx = make()
        step = lambda grads, params: tx.update(grads, tx.init(params), params)
        updates, state = jax.eval_shape(step, make_grads(params, 0), params)
        assert {u.dtype for u in jax.tree.leaves(updates)} == {jnp.dtype(jnp.float64)}
        floats = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
        assert {x.dtype for x in floats} <= {jnp.dtype(jnp.float64)}


@pytest.mark.parametrize("name", ["project_every_3", "decay_schedule", "track_every_2", "nap_adam_joint"])
def test_inside_inject_hyperparams_masked_and_multi_steps(name):
    make = TRANSFORMS[name]
    params, grads = make_params(), make_grads(make_params(), 0)
    plain, _ = make().update(grads, make().init(params), params)

    injected = optax.inject_hyperparams(lambda unused: make())(unused=1.0)
    jax.tree.map(np.testing.assert_array_equal, injected.update(grads, injected.init(params), params)[0], plain)

    masked = optax.masked(make(), jax.tree.map(lambda _: True, params))
    jax.tree.map(np.testing.assert_array_equal, masked.update(grads, masked.init(params), params)[0], plain)

    multi = optax.MultiSteps(make(), 2)
    with jax.numpy_dtype_promotion("standard"):
        update = jax.jit(multi.update)
        first, state = update(grads, multi.init(params), params)
        second, _ = update(grads, state, params)
    assert all(not np.any(u) for u in jax.tree.leaves(first))
    close(second, plain)
