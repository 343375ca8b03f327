"""Batch norms on a stream of tasks with replay: does AdaB²N forget less than batch normalization?

A small residual network sees each image once, two classes at a time, beside a few images of a replay buffer, and must
tell all classes apart at the end. Reference: Lyu et al. 2023, Overcoming Recency Bias of Normalization Statistics in
Continual Learning (arXiv 2310.08855), tables 1 and 2.
"""

from experiments.continual_batchnorm.config import Config as Config
from experiments.continual_batchnorm.run import run as run

__all__ = ["Config", "run"]
