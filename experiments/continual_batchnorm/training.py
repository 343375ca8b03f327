"""Learning one task after another, all seeds and settings of an arm in one compiled program."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from experiments.continual_batchnorm.arms import Arm
from experiments.continual_batchnorm.config import Config
from experiments.continual_batchnorm.stream import Split, make_stream
from experiments.data import Images
from experiments.devices import over_runs
from normjax.models import ResNet, ResNetConfig
from normjax.models.resnet import Stem

METRICS = ("loss", "validation", "test")


class Runs(NamedTuple):
    """All runs of an arm, settings times seeds, on the first axis of each array.

    Attributes:
      seed: `(runs,)`.
      learning_rate: `(runs,)`.
      auxiliary_weight: `(runs,)`.
      batches: `(runs, tasks, steps, batch)`, see `Stream`.
      task_of_class: `(runs, classes)`.
    """

    seed: np.ndarray
    learning_rate: np.ndarray
    auxiliary_weight: np.ndarray
    batches: np.ndarray
    task_of_class: np.ndarray


class Trainer(NamedTuple):
    """`init(runs) -> state` and `learn(state, runs, task) -> (state, metrics)`, compiled."""

    init: Callable[[Runs], Any]
    learn: Callable[[Any, Runs, jax.Array], tuple[Any, dict[str, jax.Array]]]


def all_runs(name: str, config: Config, labels: np.ndarray) -> Runs:
    """The runs of an arm: all seeds at the first setting, then at the next."""
    settings = config.settings(name)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    streams = [make_stream(labels, config, seed) for seed in seeds]
    rates, weights = np.repeat(np.asarray(settings, np.float32), config.seeds, axis=0).T
    return Runs(
        np.tile(np.asarray(seeds, np.int32), len(settings)),
        rates,
        weights,
        np.tile(np.stack([s.batches for s in streams]), (len(settings), 1, 1, 1)),
        np.tile(np.stack([s.task_of_class for s in streams]), (len(settings), 1)),
    )


def make_trainer(arm: Arm, config: Config, split: Split) -> Trainer:
    """Compiles an arm.

    Args:
      arm: The norm.
      config: Of the run.
      split: The images.

    Returns:
      The trainer. Its metrics are, for each run, the mean `"loss"` of the task and the accuracies on the
      `"validation"` and `"test"` images of every task, `(runs, tasks)`.
    """
    train, validation, test = (_standardized(part, split.train) for part in split)
    classes = int(split.train.labels.max()) + 1
    graph = nnx.graphdef(nnx.eval_shape(lambda: _network(arm, config, split, classes, 0)))

    def init(run):
        _, params, rest = nnx.split(_network(arm, config, split, classes, run.seed), nnx.Param, ...)
        return params, rest

    def step(state, indices, run, task):
        images, labels = train.images[indices], train.labels[indices]

        def loss(params, rest):
            model = nnx.merge(graph, params, rest, copy=True)
            logits = model(images, use_running_average=False, task=run.task_of_class[labels])
            _, _, rest = nnx.split(model, nnx.Param, ...)
            cost = jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
            auxiliary = run.auxiliary_weight * (task > 0) * _auxiliary_loss(rest) if arm.auxiliary else 0.0
            return cost + auxiliary, (cost, rest)

        (_, (cost, rest)), gradient = jax.value_and_grad(loss, has_aux=True)(*state)
        params = jax.tree.map(lambda p, g: p - run.learning_rate * g, state[0], gradient)
        return (params, rest), cost

    def learn(state, run, task):
        state, costs = jax.lax.scan(lambda s, indices: step(s, indices, run, task), state, run.batches[task])
        model = nnx.merge(graph, *state)
        accuracies = {
            name: _accuracies(model, part, run.task_of_class, config.tasks)
            for name, part in (("validation", validation), ("test", test))
        }
        return state, {"loss": jnp.mean(costs)} | accuracies

    return Trainer(over_runs(init, config.devices), over_runs(learn, config.devices))


def _network(arm: Arm, config: Config, split: Split, classes: int, seed: Any) -> ResNet:
    sizes = {"depths": (1, 1), "widths": (config.width, 2 * config.width), "stem": Stem(3, config.stride, False)}
    norm = arm.norm(config.tasks, config.groups, config.kappa)
    channels = split.train.images.shape[-1]
    model = ResNetConfig(norm, **sizes)
    return ResNet(model, classes=classes, channels=channels, rngs=nnx.Rngs(jax.random.key(seed)))


def _standardized(part: Images, reference: Images) -> Images:
    """Mean 0 and deviation 1 over all pixels of the training images."""
    mean, deviation = float(reference.images.mean()), float(reference.images.std())
    images = (part.images.astype(np.float32) - np.float32(mean)) / np.float32(deviation)
    return Images(jnp.asarray(images), jnp.asarray(part.labels))  # pyright: ignore[reportArgumentType] -- device arrays


def _auxiliary_loss(state: Any) -> jax.Array:
    leaves = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(nnx.filter_state(state, nnx.BatchStat)))
    return jnp.sum(jnp.stack([v for path, v in leaves if "auxiliary_loss" in jax.tree_util.keystr(path)]))


def _accuracies(model: ResNet, part: Images, task_of_class: jax.Array, tasks: int) -> jax.Array:
    hit = jnp.argmax(model(jnp.asarray(part.images), use_running_average=True), axis=-1) == part.labels
    member = task_of_class[part.labels][None, :] == jnp.arange(tasks)[:, None]
    return jnp.sum(member & hit[None, :], axis=1) / jnp.sum(member, axis=1)
