"""Prioritized replay of n-step transitions in NumPy; every frame is stored once.

References:
  Schaul et al. 2016, Prioritized experience replay, arXiv 1511.05952.
"""

from typing import NamedTuple

import numpy as np


class SumTree:
    """Numbers at the leaves of a binary tree whose nodes hold sums: both change and draw take log2(capacity) steps.

    Example:
      >>> import numpy as np
      >>> tree = SumTree(4)
      >>> tree.set(np.array([0, 2]), np.array([1.0, 3.0]))
      >>> tree.total, tree.find(np.array([0.5, 1.5, 3.9])).tolist()
      (4.0, [0, 2, 2])
    """

    def __init__(self, capacity: int) -> None:
        self._depth = max(1, (capacity - 1).bit_length())
        self._first = 2**self._depth
        # float64: sums of a million priorities that change one by one.
        self._nodes = np.zeros(2 * self._first)

    @property
    def total(self) -> float:
        """Sum of all leaves."""
        return float(self._nodes[1])

    def get(self, indices: np.ndarray) -> np.ndarray:
        """The numbers at some leaves."""
        return self._nodes[self._first + indices]

    def set(self, indices: np.ndarray, values: np.ndarray) -> None:
        """Replaces the numbers at some leaves, which must not be negative; of equal indices the last one counts."""
        nodes = self._first + indices
        self._nodes[nodes] = values
        for _ in range(self._depth):
            nodes = np.unique(nodes // 2)
            self._nodes[nodes] = self._nodes[2 * nodes] + self._nodes[2 * nodes + 1]

    def find(self, values: np.ndarray) -> np.ndarray:
        """The leaves in whose part of `[0, total)` the values lie; never one that holds zero."""
        nodes, rest = np.ones(len(values), np.int64), values.astype(np.float64)
        for _ in range(self._depth):
            left, right = self._nodes[2 * nodes], self._nodes[2 * nodes + 1]
            # The sums are rounded: a value at the very end must not run into a branch that holds nothing.
            to_right = ((rest >= left) & (right > 0)) | (left == 0)
            rest = rest - np.where(to_right, left, 0)
            nodes = 2 * nodes + to_right
        return nodes - self._first


class Sample(NamedTuple):
    """A batch of n-step transitions.

    Attributes:
      indices: Where they are stored, for `Replay.update`.
      observations: `(n, height, width, stack)` uint8.
      actions: `(n,)` int32.
      rewards: `(n,)` float32, discounted sums.
      discounts: `(n,)` float32, of the next value; zero where the episode ended.
      next_observations: As `observations`.
      weights: `(n,)` float32, importance weights, the largest is one.
    """

    indices: np.ndarray
    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    discounts: np.ndarray
    next_observations: np.ndarray
    weights: np.ndarray


class Replay:
    """The newest steps of several environments; transitions are drawn in proportion to a power of their error.

    Args:
      length: Steps kept of every environment.
      envs: Number of environments.
      frame: Shape of a frame.
      stack: Frames per observation; those before the episode are zero.
      steps: The n of n-step returns.
      discount: Per step.
      exponent: Power of errors.
    """

    def __init__(
        self,
        length: int,
        envs: int,
        frame: tuple[int, int],
        *,
        stack: int = 4,
        steps: int = 3,
        discount: float = 0.99,
        exponent: float = 0.5,
    ) -> None:
        if length <= stack + steps:
            raise ValueError(f"length must be more than stack + steps = {stack + steps}, got {length}.")
        self._length, self._envs, self._stack, self._steps = length, envs, stack, steps
        self._discount, self._exponent, self._highest = discount, exponent, 1.0
        self._frames = np.zeros((length, envs, *frame), np.uint8)
        self._actions = np.zeros((length, envs), np.int32)
        self._rewards = np.zeros((length, envs), np.float32)
        self._ends = np.zeros((length, envs), bool)
        self._starts = np.zeros((length, envs), bool)
        self._tree = SumTree(length * envs)
        self.count = 0

    def add(
        self, frames: np.ndarray, actions: np.ndarray, rewards: np.ndarray, ends: np.ndarray, starts: np.ndarray
    ) -> None:
        """Stores one step of all environments.

        Args:
          frames: `(envs, height, width)`, the newest frame that each action was chosen on.
          actions: `(envs,)`.
          rewards: `(envs,)`.
          ends: `(envs,)` bool, whether the episode ended with the step.
          starts: `(envs,)` bool, whether the frame is the first of its episode.
        """
        slot = self.count % self._length
        self._frames[slot], self._actions[slot], self._rewards[slot] = frames, actions, rewards
        self._ends[slot], self._starts[slot] = ends, starts
        # What was stored here is gone, also from the stacks of the observations that followed it.
        self._prioritize((slot + np.arange(self._stack)) % self._length, 0.0)
        if self.count >= self._steps:
            self._prioritize(np.array([(self.count - self._steps) % self._length]), self._highest)
        self.count += 1

    def sample(self, size: int, correction: float, rng: np.random.Generator) -> Sample:
        """Draws transitions, one from each of `size` equal parts of the total priority.

        Args:
          size: How many.
          correction: Power of the importance weights; one undoes the bias of the draw.
          rng: Source of randomness.

        Returns:
          The transitions.

        Raises:
          ValueError: If nothing was stored long enough ago.
        """
        if self._tree.total <= 0:
            raise ValueError(f"There is no transition of {self._steps} steps yet, only {self.count} steps are stored.")
        indices = self._tree.find((np.arange(size) + rng.random(size)) / size * self._tree.total)
        slots, envs = np.divmod(indices, self._envs)
        rewards, discounts = np.zeros(size, np.float32), np.ones(size, np.float32)
        for k in range(self._steps):
            at = (slots + k) % self._length, envs
            rewards += discounts * self._rewards[at]
            discounts *= np.float32(self._discount) * ~self._ends[at]
        weights = self._tree.get(indices) ** -correction
        return Sample(
            indices,
            self._stacked(slots, envs),
            self._actions[slots, envs],
            rewards,
            discounts,
            self._stacked((slots + self._steps) % self._length, envs),
            (weights / weights.max()).astype(np.float32),
        )

    def update(self, indices: np.ndarray, errors: np.ndarray) -> None:
        """Sets the priorities of a sample by its errors `(n,)`, before anything else is stored."""
        priorities = (np.abs(np.asarray(errors, np.float64)) + 1e-6) ** self._exponent
        self._highest = max(self._highest, float(priorities.max()))
        self._tree.set(indices, priorities)

    def _prioritize(self, slots: np.ndarray, value: float) -> None:
        indices = (slots[:, None] * self._envs + np.arange(self._envs)).reshape(-1)
        self._tree.set(indices, np.full(len(indices), value))

    def _stacked(self, slots: np.ndarray, envs: np.ndarray) -> np.ndarray:
        frames, shown = [], np.ones(len(slots), bool)
        for k in range(self._stack):
            at = (slots - k) % self._length, envs
            frames.append(self._frames[at] * shown[:, None, None])
            shown = shown & ~self._starts[at]
        return np.stack(frames[::-1], axis=-1)
