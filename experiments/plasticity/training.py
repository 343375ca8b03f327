"""Sequential memorisation of random labels: one compiled function per arm, called once per task."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import jax.version
import numpy as np
import optax

import normjax as nj
from experiments.plasticity import metrics, model
from experiments.plasticity.arms import Arm, Strengths
from normjax.optim import reset_moments

CLASSES = 10
METRICS = (
    "online_accuracy",
    "final_accuracy",
    "hidden_norm_ratio",
    "readout_norm_ratio",
    "affine_norm",
    "hidden_effective_lr",
    "readout_effective_lr",
    "hidden_rotation",
    "dead_units",
    "effective_rank",
)
# One value for all arms: functions compiled for it are shared.
NORM = nj.layer_norm(axis=-1, epsilon=1e-6)
# Streams of randomness of one seed.
_PARAMETERS, _LABELS, _ORDER, _RENEWAL = range(4)


class Schedule(Protocol):
    """How long a task is."""

    @property
    def images(self) -> int:
        """Number of images."""
        ...

    @property
    def steps(self) -> int:
        """Optimizer steps per task."""
        ...

    @property
    def batch_size(self) -> int:
        """Images per step."""
        ...


class Setting(Strengths, Schedule, Protocol):
    """What training reads from the configuration."""

    @property
    def width(self) -> int:
        """Units per hidden layer."""
        ...

    @property
    def depth(self) -> int:
        """Number of hidden layers."""
        ...


class TrainState(NamedTuple):
    """Parameters, every leaf with a leading axis of seeds, and the state of one optimizer for all of them."""

    params: Any
    opt_state: Any


class Tasks(NamedTuple):
    """The data of one task for every seed.

    Attributes:
      labels: `(seeds, images)` int32, uniform over the classes.
      order: `(seeds, steps, batch_size)` int32 indices of images.
    """

    labels: jax.Array
    order: jax.Array


class Trainer(NamedTuple):
    """Compiled functions of one arm; `rate` is a float32 scalar, `seeds` an int32 vector, `task` an int32 scalar.

    Attributes:
      init: `init(seeds, rate, task) -> TrainState`.
      train: `train(state, rate, tasks) -> (state, online accuracy (seeds,))`; consumes `state`.
      measure: `measure(state, labels) -> {metric: (seeds,)}`, all metrics but the online accuracy.
      renew: `renew(state, seeds, task) -> state`, what the arm does before a task; `None` if nothing.
    """

    init: Callable[[jax.Array, jax.Array, jax.Array], TrainState]
    train: Callable[[TrainState, jax.Array, Tasks], tuple[TrainState, jax.Array]]
    measure: Callable[[TrainState, jax.Array], dict[str, jax.Array]]
    renew: Callable[[TrainState, jax.Array, jax.Array], TrainState] | None = None


def standardize(images: np.ndarray) -> jax.Array:
    """Flattens `(n, ...)` images of uint8 to `(n, features)`, each pixel centred, all at one common scale."""
    x = images.reshape(len(images), -1).astype(np.float64)
    x = x - x.mean(axis=0)
    return jnp.asarray(x / max(x.std(), 1e-12), jnp.float32)


def stream(seed: jax.Array, purpose: int, task: jax.Array) -> jax.Array:
    """The random key of one purpose in one task of one seed."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), purpose), task)


def batches(key: jax.Array, images: int, steps: int, batch_size: int) -> jax.Array:
    """Indices `(steps, batch_size)` that go through all images in a new order every epoch."""
    epochs = -(-steps * batch_size // images)
    order = jax.vmap(lambda k: jax.random.permutation(k, images))(jax.random.split(key, epochs))
    return order.reshape(-1)[: steps * batch_size].reshape(steps, batch_size)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def draw_task(seeds: jax.Array, task: jax.Array, images: int, steps: int, batch_size: int) -> Tasks:
    """Labels and batches of one task; every arm gets the same ones, which pairs the arms seed by seed."""

    def draw(seed: jax.Array) -> Tasks:
        labels = jax.random.randint(stream(seed, _LABELS, task), (images,), 0, CLASSES, jnp.int32)
        return Tasks(labels, batches(stream(seed, _ORDER, task), images, steps, batch_size))

    return jax.vmap(draw)(seeds)


def make_trainer(arm: Arm, setting: Setting, inputs: jax.Array) -> Trainer:
    """Builds the functions that train all seeds of one arm with a multilayer perceptron.

    Args:
      arm: The method.
      setting: Sizes and strengths.
      inputs: `(n, features)` float32, the same for all tasks and seeds.

    Returns:
      The trainer; each function compiles once, whatever the task and learning rate.
    """
    shapes = model.perceptron(inputs.shape[1], [setting.width] * setting.depth, CLASSES)
    return network_trainer(model.network(shapes, NORM if arm.normalized else None), arm, setting, inputs)


def network_trainer(
    network: model.Network, arm: Arm, strengths: Any, inputs: jax.Array, probe: int | None = None
) -> Trainer:
    """Builds the functions that train all seeds of one network in one arm.

    Args:
      network: Its parameters and what it computes; `arm.normalized` is not asked again.
      arm: The method.
      strengths: What the arm's functions read.
      inputs: `(n, ...)` float32 as the network takes them, the same for all tasks and seeds.
      probe: The network is measured, and renewed, on as many of them; all by default.

    Returns:
      The trainer; each function compiles once, whatever the task and learning rate.
    """
    probed = inputs[:probe]

    @jax.jit
    def init_optimizer(params: Any, rate: jax.Array) -> Any:
        return arm.optimizer(rate, strengths).init(params)

    def init(seeds: jax.Array, rate: jax.Array, task: jax.Array) -> TrainState:
        params = _init_params(seeds, task, network)
        return TrainState(params, init_optimizer(params, rate))

    def loss(params: Any, x: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = network.apply(params, x).logits
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return jnp.mean(losses), _accuracy(logits, labels)

    def gradients(params: Any, labels: jax.Array, batch: jax.Array) -> tuple[Any, jax.Array]:
        return jax.grad(loss, has_aux=True)(params, inputs[batch], labels[batch])

    def train(state: TrainState, rate: jax.Array, tasks: Tasks) -> tuple[TrainState, jax.Array]:
        optimizer = arm.optimizer(rate, strengths)

        # Only the gradients are vmapped: under vmap the optimizer's `lax.cond` would measure at every step.
        def step(state: TrainState, batch: jax.Array) -> tuple[TrainState, jax.Array]:
            grads, accuracy = jax.vmap(gradients)(state.params, tasks.labels, batch)
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return TrainState(optax.apply_updates(state.params, updates), opt_state), accuracy

        state, accuracies = jax.lax.scan(step, state, jnp.swapaxes(tasks.order, 0, 1))
        return state, jnp.mean(accuracies, axis=0)

    def measure(state: TrainState, labels: jax.Array) -> dict[str, jax.Array]:
        of_network = _measure_network(network, state.params, probed, labels[:, : len(probed)])
        return _measure_motion(state.opt_state) | of_network

    compiled = jax.jit(train, donate_argnums=0, compiler_options=_compiler_options())
    return Trainer(init, compiled, measure, _renewal(network, arm, strengths, probed))


def _renewal(
    network: model.Network, arm: Arm, strengths: Any, inputs: jax.Array
) -> Callable[[TrainState, jax.Array, jax.Array], TrainState] | None:
    """The arm's `renew` of all seeds, whose moments lie in one optimizer state."""
    change = arm.renew
    if change is None:
        return None

    @jax.jit
    def renew(state: TrainState, seeds: jax.Array, task: jax.Array) -> TrainState:
        def renew_one(seed: jax.Array, params: Any) -> tuple[Any, dict[str, jax.Array]]:
            activations = network.apply(params, inputs).activations
            return change(stream(seed, _RENEWAL, task), params, activations, strengths)

        params, changed = jax.vmap(renew_one)(seeds, state.params)
        return TrainState(params, reset_moments(state.opt_state, changed) if changed else state.opt_state)

    return renew


def _compiler_options() -> dict[str, str] | None:
    # On CPUs, JAX 0.10 schedules the thunks of so small a step for two threads, and waking the second takes a seventh
    # of its time; later versions are better left alone.
    old = jax.default_backend() == "cpu" and jax.version.__version_info__ < (0, 11)
    return {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"} if old else None


def run_task(
    arm: Arm, trainer: Trainer, setting: Schedule, state: TrainState, seeds: jax.Array, rate: jax.Array, task: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Trains and measures one task of all seeds; consumes `state`.

    Returns:
      The new state and every metric of `METRICS`, `(seeds,)` each.
    """
    if arm.fresh:
        state = trainer.init(seeds, rate, task)
    elif trainer.renew is not None and int(task) > 0:
        state = trainer.renew(state, seeds, task)
    tasks = draw_task(seeds, task, setting.images, setting.steps, setting.batch_size)
    state, online = trainer.train(state, rate, tasks)
    return state, {"online_accuracy": online, **trainer.measure(state, tasks.labels)}


@functools.partial(jax.jit, static_argnums=2)
def _init_params(seeds: jax.Array, task: jax.Array, network: model.Network) -> Any:
    return jax.vmap(lambda seed: network.init(stream(seed, _PARAMETERS, task)))(seeds)


def _accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)


def _measure_motion(opt_state: Any) -> dict[str, jax.Array]:
    motion, rates = nj.weight_motion(opt_state), nj.effective_learning_rates(opt_state)
    hidden = [path for path in motion if path.startswith("hidden_")]
    readout = f"{model.READOUT}/kernel"

    def mean(values: dict[str, jax.Array]) -> jax.Array:
        return jnp.mean(jnp.stack([values[path] for path in hidden]), axis=0)

    return {
        "hidden_norm_ratio": mean({path: motion[path].growth for path in hidden}),
        "readout_norm_ratio": motion[readout].growth,
        "hidden_effective_lr": mean(rates),
        "readout_effective_lr": rates[readout],
        "hidden_rotation": mean({path: motion[path].rotation for path in hidden}),
    }


# Compiled apart from training, as the two functions above: all arms with norms share them.
@functools.partial(jax.jit, static_argnums=0)
def _measure_network(network: model.Network, params: Any, inputs: jax.Array, labels: jax.Array) -> dict[str, jax.Array]:
    def measure(params: Any, labels: jax.Array) -> dict[str, jax.Array]:
        output = network.apply(params, inputs)
        return {
            "final_accuracy": _accuracy(output.logits, labels),
            "affine_norm": metrics.affine_norm(params),
            "dead_units": jnp.mean(jnp.stack([metrics.dead_units(a) for a in output.activations])),
            "effective_rank": metrics.effective_rank(output.activations[-1]),
        }

    return jax.vmap(measure)(params, labels)
