"""Optax transforms for fixed weight norms (Normalize-and-Project) and effective learning rates."""

from normjax.optim._clip import clip_weights
from normjax.optim._continual_backprop import ContinualBackpropState, UnitHistory, continual_backprop
from normjax.optim._decay import DecayTowardsInitState, decay_towards_init
from normjax.optim._effective import (
    ImplicitScheduleState,
    effective_lr_schedule,
    implicit_schedule,
    scale_by_effective_lr,
)
from normjax.optim._hyperball import hyperball
from normjax.optim._masks import hidden_weights
from normjax.optim._nap import NapState, nap
from normjax.optim._overwrite import overwrite_with_gradient
from normjax.optim._perturb import ShrinkAndPerturbState, shrink_and_perturb
from normjax.optim._project import project_weights
from normjax.optim._radii import RadiiState, fan_radius
from normjax.optim._read import effective_learning_rates, weight_motion
from normjax.optim._rotate import RotateWeightsState, equilibrium_rotation, rotate_weights
from normjax.optim._schedules import (
    RewarmedScheduleState,
    norm_growth_schedule,
    rewarm_schedule,
    scale_by_rewarmed_schedule,
)
from normjax.optim._tangent import ProjectUpdatesState, project_updates
from normjax.optim._track import (
    EffectiveLRState,
    TrackEffectiveLRState,
    WeightMotion,
    track_effective_lr,
)
from normjax.optim._tract import input_covariance, patch_covariance, scale_by_tract
from normjax.optim._units import redo, reset_moments

__all__ = [
    "ContinualBackpropState",
    "DecayTowardsInitState",
    "EffectiveLRState",
    "ImplicitScheduleState",
    "NapState",
    "ProjectUpdatesState",
    "RadiiState",
    "RewarmedScheduleState",
    "RotateWeightsState",
    "ShrinkAndPerturbState",
    "TrackEffectiveLRState",
    "UnitHistory",
    "WeightMotion",
    "clip_weights",
    "continual_backprop",
    "decay_towards_init",
    "effective_learning_rates",
    "effective_lr_schedule",
    "equilibrium_rotation",
    "fan_radius",
    "hidden_weights",
    "hyperball",
    "implicit_schedule",
    "input_covariance",
    "nap",
    "norm_growth_schedule",
    "overwrite_with_gradient",
    "patch_covariance",
    "project_updates",
    "project_weights",
    "redo",
    "reset_moments",
    "rewarm_schedule",
    "rotate_weights",
    "scale_by_effective_lr",
    "scale_by_rewarmed_schedule",
    "scale_by_tract",
    "shrink_and_perturb",
    "track_effective_lr",
    "weight_motion",
]
