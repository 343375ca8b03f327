"""One compiled function per arm, called once per chunk of steps, for all seeds and rates together."""

from collections.abc import Callable
from typing import Any, NamedTuple

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import normjax as nj
from experiments import data
from experiments.language_model import arms
from experiments.language_model.config import Config
from normjax import sharding

VOCABULARY = 256
# Chunks of metrics, each with a last axis of runs: all seeds at the first rate, then all at the second.
METRICS = ("loss", "validation", "gradient", "effective_lr", "growth", "rotation")
RULES: dict[str, sharding.Rules] = {
    "data": sharding.DATA,
    "fsdp": sharding.FSDP,
    "tensor": sharding.TENSOR,
    "mixed": sharding.MIXED,
}


class TrainState(NamedTuple):
    """Parameters and optimizer state; every leaf has a leading axis of runs."""

    params: Any
    opt_state: Any


class Runs(NamedTuple):
    """Seed and highest learning rate of each run, `(runs,)` int32 and float32."""

    seeds: Any
    rates: Any


class Trainer(NamedTuple):
    """Compiled functions of one arm.

    Attributes:
      init: `init(runs) -> TrainState`.
      chunk: `chunk(state, runs, batches, validation) -> (state, {metric: array})`; consumes `state`. Batches are
        `(runs, steps, batch, length + 1)` of uint8, `validation` is `(batches, batch, length + 1)`.
    """

    init: Callable[[Runs], TrainState]
    chunk: Callable[[TrainState, Runs, Any, Any], tuple[TrainState, dict[str, jax.Array]]]


class Layout(NamedTuple):
    """Where things are on a mesh; `state` is made for one arm."""

    state: Any
    batches: jax.NamedSharding
    validation: jax.NamedSharding
    whole: jax.NamedSharding


def all_runs(config: Config) -> Runs:
    """Every seed at every rate."""
    seeds = np.tile(np.arange(config.seeds, dtype=np.int32), len(config.rates))
    return Runs(jnp.asarray(seeds), jnp.asarray(np.repeat(np.asarray(config.rates, np.float32), config.seeds)))


def validation_batches(config: Config) -> int:
    """How many batches the validation windows make."""
    return max(1, config.validation_windows // config.batch_size)


def make_mesh(config: Config, devices: Any = None) -> jax.sharding.Mesh | None:
    """The mesh that the configuration asks for."""
    if config.mesh is None:
        return None
    cut = config.model_axis if config.mesh in ("tensor", "mixed") else 1
    return sharding.make_mesh(model=cut, devices=devices)


def make_trainer(arm: arms.Arm, config: Config, mesh: jax.sharding.Mesh | None = None) -> tuple[Trainer, Layout | None]:
    """Builds the functions that train all runs of one arm, and says where their arguments are if there is a mesh."""
    stream = None if mesh is None else sharding.batch_sharding(mesh)
    stack = arms.stack(arm, config, stream)

    def model(seed: jax.Array) -> nj.models.LanguageModel:
        rngs = nnx.Rngs(jax.random.key(seed))
        # The stream starts with unit variance: what its first norm does is then no matter of the embedding's size.
        embedding = {
            "embedding_scale": config.width**0.5,
            "embedding_init": nnx.initializers.normal(config.width**-0.5),
        }
        return nj.models.LanguageModel(stack, vocabulary=VOCABULARY, tied=False, **embedding, rngs=rngs)

    graph = nnx.split(jax.eval_shape(model, jnp.int32(0)))[0]

    def init(run: Runs) -> TrainState:
        params = nnx.state(model(run.seeds), nnx.Param)
        return TrainState(params, arms.optimizer(arm, config, run.rates).init(params))

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        tokens = tokens.astype(jnp.int32)
        # Boxes anew: nnx refuses those that were made outside of the loop that this runs in.
        params = jax.tree.map(lambda leaf: leaf, params)
        logits = nnx.merge(graph, params)(tokens[:, :-1]).astype(jnp.float32)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])) / jnp.log(2.0)

    def chunk(state: TrainState, run: Runs, batches: Any, validation: Any) -> tuple[TrainState, dict[str, jax.Array]]:
        tx = arms.optimizer(arm, config, run.rates)

        def step(state: TrainState, tokens: jax.Array) -> tuple[TrainState, Any]:
            value, gradients = jax.value_and_grad(loss)(state.params, tokens)
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            depth = gradient_by_depth(gradients, stack.scan)
            return TrainState(optax.apply_updates(state.params, updates), opt_state), (value, depth)

        state, (losses, depth) = jax.lax.scan(step, state, batches)
        held_out = jnp.mean(jax.lax.map(lambda tokens: loss(state.params, tokens), validation))
        measured = {"loss": losses, "gradient": jnp.mean(depth, axis=0), "validation": held_out}
        return state, measured | _motion(state.opt_state)

    inits, chunks = jax.vmap(init), jax.vmap(chunk, in_axes=(0, 0, 0, None))
    if mesh is None:
        return Trainer(jax.jit(inits), jax.jit(chunks, donate_argnums=0)), None
    layout = _layout(init, config, mesh)
    given = (layout.state, layout.whole, layout.batches, layout.validation)
    placed = jax.jit(chunks, donate_argnums=0, in_shardings=given, out_shardings=(layout.state, layout.whole))
    return Trainer(jax.jit(inits, out_shardings=layout.state), placed), layout


def _layout(init: Callable[[Runs], TrainState], config: Config, mesh: jax.sharding.Mesh) -> Layout:
    assert config.mesh is not None
    one = jax.eval_shape(init, Runs(jnp.int32(0), jnp.float32(1)))
    of_one = sharding.shardings(one, mesh, RULES[config.mesh])

    def at(*axes: str | None) -> jax.NamedSharding:
        return jax.NamedSharding(mesh, jax.P(*axes))

    # All runs are stacked on an axis that no name of a parameter counts.
    state = jax.tree.map(lambda s: at(None, *s.spec), of_one)
    return Layout(state, at(None, None, "data"), at(None, "data"), at())


def gradient_by_depth(gradients: Any, stacked: bool) -> jax.Array:
    """The norm of the gradient of each block, `(layers,)` float32."""

    def squares(leaf: jax.Array) -> jax.Array:
        axes = tuple(range(int(stacked), leaf.ndim))
        return jnp.sum(jnp.square(leaf.astype(jnp.float32)), axis=axes)

    blocks = gradients["stack"]["blocks"]
    sums = [sum(map(squares, jax.tree.leaves(blocks[index]))) for index in sorted(blocks)]
    return jnp.sqrt(jnp.concatenate([jnp.atleast_1d(jnp.asarray(s)) for s in sums]))


def _motion(opt_state: Any) -> dict[str, jax.Array]:
    """Means over the matrices of all blocks, as last measured."""
    rates, motion = nj.effective_learning_rates(opt_state), nj.weight_motion(opt_state)

    def mean(values: list[jax.Array]) -> jax.Array:
        return jnp.mean(jnp.concatenate([jnp.ravel(value) for value in values]))

    return {
        "effective_lr": mean(list(rates.values())),
        "growth": mean([m.growth for m in motion.values()]),
        "rotation": mean([m.rotation for m in motion.values()]),
    }


class Feed:
    """Batches of all runs and the validation batches, where the mesh wants them; the same for every arm."""

    def __init__(self, config: Config, text: data.Text, layout: Layout | None = None):
        self._config, self._layout = config, layout
        self._datasets: list[grain.MapDataset] = [
            data.batches(text.train, config.length, config.batch_size, seed) for seed in range(config.seeds)
        ]
        held_out = data.batches(text.validation, config.length, config.batch_size, 0)
        self.validation = self._put(_stacked(held_out, range(validation_batches(config))), "validation")

    def chunk(self, index: int) -> Any:
        """The batches of a chunk, `(runs, steps, batch, length + 1)` of uint8; runs of one seed see the same."""
        steps = range(index * self._config.chunk, (index + 1) * self._config.chunk)
        by_seed = np.stack([_stacked(dataset, steps) for dataset in self._datasets])
        return self._put(np.tile(by_seed, (len(self._config.rates), 1, 1, 1)), "batches")

    def _put(self, batch: np.ndarray, what: str) -> jax.Array:
        return jnp.asarray(batch) if self._layout is None else jax.device_put(batch, getattr(self._layout, what))


def _stacked(dataset: grain.MapDataset, indices: range) -> np.ndarray:
    return np.stack([np.asarray(dataset[index]) for index in indices])
