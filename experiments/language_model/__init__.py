"""A byte-level language model under every placement of its norms, with and without NaP, at a good and a high rate.

The default reads CPython's own source. Reference for the large preset: Lyle et al. 2024, Normalization and effective
learning rates in reinforcement learning (arXiv 2407.01800), appendix B.3.
"""

from experiments.language_model.config import Config as Config
from experiments.language_model.run import run as run

__all__ = ["Config", "run"]
