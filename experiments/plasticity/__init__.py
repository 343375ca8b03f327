"""Loss of plasticity: sequential memorisation of random labels, with and without normalization and NaP.

A network memorises random labels of the same few hundred images; then the labels are drawn anew, and again. A
network that keeps its plasticity learns the last task as fast as the first. Reference: Lyle et al. 2024,
Normalization and effective learning rates in reinforcement learning (arXiv 2407.01800), figures 2 and 5.
"""

from experiments.plasticity.config import Config as Config
from experiments.plasticity.run import run as run

__all__ = ["Config", "run"]
