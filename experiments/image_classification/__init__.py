"""Norms of image networks: tiny batches, corrupted and shifted images, and Normalize-and-Project on a fixed task.

References: Qiao et al. 2019, Micro-Batch Training with Batch-Channel Normalization and Weight Standardization (arXiv
1903.10520); Schneider et al. 2020, Improving robustness against common corruptions by covariate shift adaptation (arXiv
2006.16971); Lyle et al. 2024, Normalization and effective learning rates in reinforcement learning (arXiv 2407.01800).
"""

from experiments.image_classification.config import Config as Config
from experiments.image_classification.run import run as run

__all__ = ["Config", "run"]
