"""Optax transforms for fixed weight norms (Normalize-and-Project) and effective learning rates."""

from normjax.optim._decay import DecayTowardsInitState, decay_towards_init
from normjax.optim._masks import hidden_weights
from normjax.optim._nap import NapState, nap
from normjax.optim._overwrite import overwrite_with_gradient
from normjax.optim._project import ProjectWeightsState, project_weights
from normjax.optim._read import effective_learning_rates, weight_motion
from normjax.optim._schedules import norm_growth_schedule
from normjax.optim._track import (
    EffectiveLRState,
    TrackEffectiveLRState,
    WeightMotion,
    track_effective_lr,
)
from normjax.optim._tract import input_covariance, patch_covariance, scale_by_tract, tract_gradient

__all__ = [
    "DecayTowardsInitState",
    "EffectiveLRState",
    "NapState",
    "ProjectWeightsState",
    "TrackEffectiveLRState",
    "WeightMotion",
    "decay_towards_init",
    "effective_learning_rates",
    "hidden_weights",
    "input_covariance",
    "nap",
    "norm_growth_schedule",
    "overwrite_with_gradient",
    "patch_covariance",
    "project_weights",
    "scale_by_tract",
    "track_effective_lr",
    "tract_gradient",
    "weight_motion",
]
