"""Optimizer states through orbax: a restored run is the run that was saved, and nothing else is taken for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from normjax import optim
from tests.optim.test_optim_wrappers import EPS, HIDDEN, Model, make_params, norms, run


@pytest.fixture(autouse=True)
def _promotion():
    # Optax and Flax promote dtypes themselves; strictness of our own code is the battery's subject.
    with jax.numpy_dtype_promotion("standard"):
        yield


def norm_params():
    """As `make_params`, with a norm's scale and offset away from (1, 0)."""
    return make_params() | {"norm": {"scale": jnp.asarray([2.0] * 6), "bias": jnp.asarray([-0.5] * 6)}}


STORED = {
    "free": lambda: optim.nap(
        optax.adam(0.1), mask=HIDDEN, learning_rate=0.1, every_k=2, rescale_moments=True, track_every=2
    ),
    "decay": lambda: optim.nap(optax.adam(0.1), mask=HIDDEN, scale_offset="decay", rate=0.1),
    "joint": lambda: optim.nap(optax.adam(0.1), mask=HIDDEN, scale_offset="joint"),
    "per_slice": lambda: optim.nap(optax.adam(0.1), mask=HIDDEN, axes=0, rescale_moments=True),
    "chain": lambda: optax.chain(
        optax.inject_hyperparams(optax.adam)(0.1),
        optim.decay_towards_init(0.1, mask={"norm": True, "a": False, "b": False, "head": True}),
        optim.project_weights(mask=HIDDEN, every_k=2),
        optim.track_effective_lr(every_k=2),
    ),
    "accumulated": lambda: optax.MultiSteps(optim.nap(optax.adam(0.1), mask=HIDDEN), 2),
}


def through_disk(folder, tree, template):
    """`tree` after a round trip through orbax, restored into `template` as a new process would."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder, tree)
        checkpointer.wait_until_finished()
        return checkpointer.restore(folder, jax.tree.map(ocp.utils.to_shape_dtype_struct, template))


@pytest.mark.parametrize("name", STORED)
def test_orbax_round_trip_continues_bit_for_bit(name, tmp_path):
    tx = STORED[name]()

    @jax.jit
    def step(params, state, index):
        grads = jax.tree.map(lambda p: jnp.cos(5 * p + index), params)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    def train(params, state, first, last):
        for index in range(first, last):
            params, state = step(params, state, jnp.float32(index))
        return params, state

    # On a device by name, as what orbax restores is: one program takes both.
    saved = train(*jax.device_put((norm_params(), tx.init(norm_params())), jax.devices()[0]), 0, 3)
    # Other values of the same shapes: nothing of the restored state may come from the template.
    fresh = jax.tree.map(lambda p: jnp.asarray(7 * np.asarray(p)), norm_params())
    restored = through_disk(tmp_path / "state", saved, (fresh, tx.init(fresh)))
    assert jax.tree.structure(restored) == jax.tree.structure(saved)
    jax.tree.map(np.testing.assert_array_equal, restored, saved)
    jax.tree.map(np.testing.assert_array_equal, train(*restored, 3, 6), train(*saved, 3, 6))


def test_a_checkpoint_of_another_architecture_raises_instead_of_starting_new_radii(tmp_path):
    tx = optim.nap(optax.adam(0.1), mask=HIDDEN, learning_rate=0.1)
    params = make_params()
    trained, state = run(tx, params, 3)
    restored = through_disk(tmp_path / "state", state, tx.init(params))
    np.testing.assert_allclose(restored.radii["a"], norms(params)["a"], rtol=8 * EPS)
    grown = {**trained, "c": jnp.ones((2, 2))}
    stale = restored._replace(inner_state=tx.init(grown).inner_state)
    with pytest.raises(ValueError, match=r"missing \['c'\].*restore the matching checkpoint"):
        tx.update(grown, stale, grown)
    wider = {**trained, "a": jnp.ones((4, 8)), "b": jnp.ones((8, 6))}
    per_slice = optim.nap(optax.adam(0.1), mask=HIDDEN, axes=0)
    narrow = per_slice.init(trained)._replace(inner_state=per_slice.init(wider).inner_state)
    with pytest.raises(ValueError, match=r"shape \(6,\), but leaf shape \(4, 8\).*needs \(8,\)"):
        per_slice.update(wider, narrow, wider)


def test_orbax_round_trip_of_an_nnx_optimizer(tmp_path):
    x = jnp.linspace(-1, 1, 12).reshape(3, 4)

    @nnx.jit(static_argnums=0)
    def make(seed):
        model = Model(nnx.Rngs(seed))
        tx = optim.nap(optax.adam(0.1), scale_offset="decay", rate=0.1, rescale_moments=True, learning_rate=0.1)
        return model, nnx.Optimizer(model, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(lambda m: jnp.sum(m(x) ** 2))(model))

    def train(model, optimizer):
        for _ in range(3):
            step(model, optimizer)
        return nnx.to_pure_dict(nnx.state((model, optimizer)))

    saved = train(*(pair := make(0)))
    other = make(1)
    restored = through_disk(tmp_path / "state", saved, nnx.to_pure_dict(nnx.state(other)))
    state = nnx.state(other)
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(other, state)
    jax.tree.map(np.testing.assert_array_equal, train(*other), train(*pair))
