"""Interventions against loss of plasticity, each without and with NaP, on random labels drawn anew every task.

The grid of Lyle et al. 2024, Normalization and effective learning rates in reinforcement learning (arXiv 2407.01800),
figures 2 and 5, for a multilayer perceptron and a convolutional network.
"""

from experiments.memorisation.config import Config as Config
from experiments.memorisation.run import run as run

__all__ = ["Config", "run"]
