"""The stream of a seed: which images come when, new and replayed. It depends on nothing that is learned."""

import itertools
from typing import NamedTuple

import numpy as np

from experiments import UsageError
from experiments.continual_batchnorm.config import Config
from experiments.data import Images

# The division into training, validation and test images is the same for all seeds.
SPLIT_SEED = 0


class Split(NamedTuple):
    """Images `(n, h, w, channels)` and labels `(n,)` of the stream, for validation and for the test."""

    train: Images
    validation: Images
    test: Images


class Stream(NamedTuple):
    """One seed's stream.

    Attributes:
      batches: Indices of training images, `(tasks, steps, batch_size + replay)`; the new ones come first.
      task_of_class: `(classes,)`.
    """

    batches: np.ndarray
    task_of_class: np.ndarray


def split(images: Images, config: Config) -> Split:
    """Divides the images class by class.

    Args:
      images: All images.
      config: Of the run.

    Returns:
      The three parts, each with equally many images of every class.

    Raises:
      UsageError: If a class has too few images, or the classes do not divide into the tasks.
    """
    classes, counts = np.unique(images.labels, return_counts=True)
    held_out, train = config.held_out_per_class, config.train_per_class
    if min(counts) < train + 2 * held_out:
        raise UsageError(
            f"A class of {config.dataset} has {min(counts)} images, fewer than --train-per-class {train} and twice "
            f"--held-out-per-class {held_out}."
        )
    if len(classes) % config.tasks:
        raise UsageError(f"{config.dataset} has {len(classes)} classes; --tasks must divide them, got {config.tasks}.")
    rng = np.random.default_rng(SPLIT_SEED)
    mixed = [rng.permutation(np.flatnonzero(images.labels == label)) for label in classes]
    ends = (0, train, train + held_out, train + 2 * held_out)
    chosen = [np.concatenate([m[a:b] for m in mixed]) for a, b in itertools.pairwise(ends)]
    return Split(*(Images(images.images[c], images.labels[c]) for c in chosen))


def make_stream(labels: np.ndarray, config: Config, seed: int) -> Stream:
    """Orders classes, images and replay.

    The replayed images of a step are drawn, each at most once, from a reservoir of those of the steps before. At the
    very first step, when there is none, they are the new ones again.

    Args:
      labels: Of the training images, 0 to classes - 1.
      config: Of the run.
      seed: Of everything random.

    Returns:
      The stream. Images that do not fill a task's last batch are left out.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(int(labels.max()) + 1).reshape(config.tasks, -1)
    reservoir, seen, batches = np.empty(config.buffer, np.int64), 0, []
    for classes in order:
        new = rng.permutation(np.flatnonzero(np.isin(labels, classes)))
        for batch in new[: len(new) // config.batch_size * config.batch_size].reshape(-1, config.batch_size):
            held = reservoir[: min(seen, config.buffer)]
            replayed = rng.choice(held if seen else batch, config.replay, replace=False)
            batches.append(np.concatenate([batch, replayed]))
            for index in batch:
                place = seen if seen < config.buffer else rng.integers(seen + 1)
                if place < config.buffer:
                    reservoir[place] = index
                seen += 1
    task_of_class = np.empty(order.size, np.int32)
    task_of_class[order] = np.arange(config.tasks, dtype=np.int32)[:, None]
    shaped = np.asarray(batches, np.int32).reshape(config.tasks, -1, config.batch_size + config.replay)
    return Stream(shaped, task_of_class)
