"""One compiled function per arm and batch size, called once per chunk of images, for all seeds."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.data import Images
from experiments.devices import over_runs
from experiments.image_classification.arms import MOMENTUM, Arm, Sizes, optimizer
from experiments.image_classification.config import Config
from experiments.image_classification.sets import Sets
from normjax import fold
from normjax.optim import hidden_weights

METRICS = ("loss", "validation", "test")
# Images that are classified at once.
EVALUATED = 512
NO_LABEL = -1


class TrainState(NamedTuple):
    """Parameters, running statistics and optimizer state; every leaf has a leading axis of seeds."""

    params: Any
    statistics: Any
    opt_state: Any


class Runs(NamedTuple):
    """The runs of an arm: `(seeds,)` int32, and the images that each sees, `(seeds, images_seen)` int32."""

    seed: np.ndarray
    order: np.ndarray


class Trainer(NamedTuple):
    """Compiled functions of one arm at one batch size, over all seeds.

    Attributes:
      init: `init(runs, rate) -> TrainState`.
      learn: `learn(state, runs, rate, chunk) -> (state, {metric: (seeds,)})`.
      accuracy: `accuracy(state, images, labels) -> (seeds,)`, of batches as `batched` makes them.
      moved: `moved(params, statistics, images) -> statistics` of one seed after a batch in training mode.
    """

    init: Callable[[Runs, jax.Array], TrainState]
    learn: Callable[[TrainState, Runs, jax.Array, jax.Array], tuple[TrainState, dict[str, jax.Array]]]
    accuracy: Callable[[TrainState, jax.Array, jax.Array], jax.Array]
    moved: Callable[[Any, Any, jax.Array], Any]


def all_runs(config: Config, images: int) -> Runs:
    """All seeds, each with its own order of the training images, which is the same at every batch size."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    return Runs(np.asarray(seeds, np.int32), np.stack([_order(seed, images, config.images_seen) for seed in seeds]))


def _order(seed: int, images: int, count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    epochs = [rng.permutation(images) for _ in range(-(-count // images))]
    return np.concatenate(epochs)[:count].astype(np.int32)


def make_trainer(arm: Arm, config: Config, sets: Sets, batch_size: int) -> Trainer:
    """Builds the functions that train all seeds of an arm.

    Args:
      arm: The arm.
      config: Of the run.
      sets: The images.
      batch_size: Images per step.

    Returns:
      The trainer. Its metrics are the mean `"loss"` of the chunk before each step, and the accuracies on the
      `"validation"` and `"test"` images after it.
    """
    sizes = Sizes(sets.train.images.shape[1:], sets.classes, config)
    steps = config.images_seen // batch_size
    # Running statistics forget over equally many images at every batch size.
    momentum = MOMENTUM ** (batch_size / config.reference_batch)
    network = lambda seed: arm.network(sizes, momentum, nnx.Rngs(jax.random.key(seed)))  # noqa: E731
    graph = nnx.graphdef(nnx.eval_shape(lambda: network(0)))

    def init(runs, rate):
        # Not compiled: drawing weights takes longer to compile than to do.
        def one(seed):
            _, params, statistics = nnx.split(network(seed), nnx.Param, ...)
            return TrainState(params, statistics, optimizer(arm, sizes, rate, steps).init(params))

        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *map(one, runs.seed.tolist()))

    def applied(params, statistics, batch):
        model: Any = nnx.merge(graph, params, statistics, copy=True)
        model.train()
        logits = model(batch)
        return logits, nnx.split(model, nnx.Param, ...)[2]

    def learn(state, run, rate, chunk, images, labels, held_out, of_test):
        tx = optimizer(arm, sizes, rate, steps)

        def step(state, chosen):
            def loss(params):
                logits, statistics = applied(params, state.statistics, images[chosen])
                losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels[chosen])
                return jnp.mean(losses), statistics

            (value, statistics), gradients = jax.value_and_grad(loss, has_aux=True)(state.params)
            updates, opt_state = tx.update(gradients, state.opt_state, state.params)
            return TrainState(optax.apply_updates(state.params, updates), statistics, opt_state), value

        seen = run.order.reshape(config.chunks, steps // config.chunks, batch_size)[chunk]
        state, losses = jax.lax.scan(step, state, seen)
        hits, counted = right(state, *held_out)
        return state, {
            "loss": jnp.mean(losses),
            "validation": jnp.sum(hits & ~of_test) / jnp.sum(counted & ~of_test),
            "test": jnp.sum(hits & of_test) / jnp.sum(counted & of_test),
        }

    def right(state, batches, wanted):
        model: Any = nnx.merge(graph, state.params, state.statistics, copy=True)
        model.eval()
        found = jax.lax.map(lambda batch: jnp.argmax(model(batch), axis=-1), batches)
        return found == wanted, wanted != NO_LABEL

    def accuracy(state, batches, wanted):
        hits, counted = right(state, batches, wanted)
        return jnp.sum(hits) / jnp.sum(counted)

    compiled, given = over_runs(learn, config.devices), _data(sets)
    return Trainer(
        init,
        lambda state, runs, rate, chunk: compiled(state, runs, rate, chunk, *given),
        over_runs(accuracy, config.devices, mapped=1),
        jax.jit(lambda params, statistics, batch: applied(params, statistics, batch)[1]),
    )


def _data(sets: Sets) -> tuple[Any, ...]:
    """Training images and labels, and batches for validation and test with which of them are for the test.

    Arguments of the compiled function: as its constants they would be compiled along with it.
    """
    # Together, so that the network is compiled once for both.
    held_out = batched(Images(*map(np.concatenate, zip(sets.validation, sets.test, strict=True))), sets)
    of_test = jnp.arange(held_out[1].size).reshape(held_out[1].shape) >= len(sets.validation.labels)
    return jnp.asarray(standardized(sets.train.images, sets)), jnp.asarray(sets.train.labels), held_out, of_test


def standardized(images: np.ndarray, sets: Sets) -> np.ndarray:
    """Mean 0 and deviation 1 over all training images, channel by channel."""
    mean, deviation = sets.train.images.mean(axis=(0, 1, 2)), sets.train.images.std(axis=(0, 1, 2))
    return ((images - mean) / deviation).astype(np.float32)


def batched(part: Images, sets: Sets) -> tuple[jax.Array, jax.Array]:
    """Standardized images in batches of one size; what fills up the last has the label `NO_LABEL`."""
    size = min(EVALUATED, len(part.labels))
    rest = -len(part.labels) % size
    images = np.concatenate([standardized(part.images, sets), np.zeros((rest, *part.images.shape[1:]), np.float32)])
    labels = np.concatenate([part.labels, np.full(rest, NO_LABEL, np.int32)])
    return jnp.asarray(images.reshape(-1, size, *images.shape[1:])), jnp.asarray(labels.reshape(-1, size))


def estimated_anew(trainer: Trainer, state: TrainState, images: np.ndarray, batch_size: int) -> TrainState:
    """Every seed's running statistics, estimated from unlabelled images.

    Args:
      trainer: Of an arm whose norms keep means and variances.
      state: Of all seeds.
      images: Standardized.
      batch_size: Of the batches that they are read in; what does not fill one is left out, unless there is only one.

    Returns:
      The state with other statistics.
    """
    size = min(batch_size, len(images))
    batches = [jnp.asarray(images[i : i + size]) for i in range(0, len(images) - size + 1, size)]
    of_seeds = []
    for seed in range(len(jax.tree.leaves(state.params)[0])):
        params, statistics = jax.tree.map(lambda leaf, seed=seed: leaf[seed], (state.params, state.statistics))
        step = lambda s, batch, params=params: trainer.moved(params, s, batch)  # noqa: E731
        of_seeds.append(fold.recalibrate(step, statistics, batches))
    return state._replace(statistics=jax.tree.map(lambda *leaves: jnp.stack(leaves), *of_seeds))


def growth(first: Any, last: Any) -> np.ndarray:
    """Norms of the hidden weights over those that they started with, the mean over weights, `(seeds,)`."""
    # Names and shapes of one seed: on the stacked leaves a vector would look like a matrix.
    chosen = jax.tree.leaves(hidden_weights()(jax.tree.map(lambda leaf: leaf[0], first)))

    def norms(params: Any) -> np.ndarray:
        leaves = [leaf for leaf, take in zip(jax.tree.leaves(params), chosen, strict=True) if take]
        flat = [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in leaves]
        return np.stack([np.linalg.norm(rows, axis=1) for rows in flat])

    return np.mean(norms(last) / norms(first), axis=0)
