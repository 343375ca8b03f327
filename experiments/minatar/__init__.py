"""Loss of plasticity in reinforcement learning: a stream of MinAtar games, with and without normalization and NaP.

Breakout with its pixels, channels and actions permuted anew in every phase, or a cycle of different games. An agent
that keeps its plasticity learns the last phase as fast as the first. Reference: Lyle et al. 2024, Normalization and
effective learning rates in reinforcement learning (arXiv 2407.01800), figure 6.
"""

from experiments.minatar.config import Config as Config
from experiments.minatar.run import run as run

__all__ = ["Config", "run"]
