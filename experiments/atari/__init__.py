"""Loss of plasticity in Rainbow on a sequence of Atari games, with and without normalization and NaP.

The agent plays one game after the other and comes back to the first; parameters are kept, optimizer, schedule and
replay start anew with every game. Needs ale-py, which is GPL-2.0: the extra `atari`. Reference: Lyle et al. 2024,
Normalization and effective learning rates in reinforcement learning (arXiv 2407.01800), section 5.3 and figure 6.
"""

from experiments.atari.config import Config as Config
from experiments.atari.run import run as run

__all__ = ["Config", "run"]
