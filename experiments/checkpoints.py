"""The newest train state on disk, through orbax."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp


class Checkpoints:
    """Keeps the last state of a run; a kill during a save leaves the one before it.

    A checkpoint is numbered by job and finished tasks, so one folder serves all jobs of a run.
    """

    # More tasks than any job has; a number that stays readable: job 3 after task 40 is 3000040.
    STRIDE = 1_000_000

    def __init__(self, folder: Path) -> None:
        options = ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        self._manager = ocp.CheckpointManager(folder.absolute(), options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._manager.close()

    def save(self, job: int, tasks: int, state: Any) -> None:
        """Saves the state after `tasks` tasks of a job, in the background."""
        # A copy: the next task consumes the state's buffers while the save is still reading.
        copied = jax.tree.map(lambda leaf: np.array(leaf, copy=True), state)
        self._manager.save(job * self.STRIDE + tasks, args=ocp.args.StandardSave(copied))

    def restore(self, job: int, state: Any) -> tuple[int, Any]:
        """Finished tasks and the state after them, from the checkpoint if it is one of this job, else `(0, state)`."""
        step = self._manager.latest_step()
        if step is None or step // self.STRIDE != job:
            return 0, state
        restored = self._manager.restore(step, args=ocp.args.StandardRestore(state))
        return step % self.STRIDE, restored
