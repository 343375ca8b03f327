"""Optax transforms for weight norms (Normalize-and-Project and its neighbours) and effective learning rates.

Which quantity of a weight each of them holds, and where it stands in a chain:

| transform | holds | stands |
|---|---|---|
| `project_weights`, `nap` | the norm, and with it lr / norm: the schedule is the effective rate | last |
| `hyperball` (AdamH, MuonH) | norm, and the step's length as a share of it | last, after a complete optimizer |
| `rotate_weights` | norm, and the angle of every step (or its mean) | last, after a complete optimizer |
| `clip_weights` | an upper bound of the norm, a lower one of the effective rate | last |
| `project_updates` (AdamP, SGDP) | tangential updates; norms still grow by the steps' own length | around the momenta |
| `scale_by_effective_lr` | the effective rate, with free norms | in the place of the learning rate |
| `implicit_schedule` | the effective rate of the free twin, with projected norms | before the projection |
| `decay_towards_init`, `shrink_and_perturb` | distance to the start, or fresh directions | before the projection |
| `redo`, `continual_backprop` | units that work; with `preserve_norm` norms too | outside, or around the optimizer |
| `scale_by_tract` | steps of a first layer's activations, not of its weights | first |

Two published rules are settings of `project_weights`. nGPT keeps every vector along the model's width at norm one,
`project_weights(1.0, axes=lambda path, w: 1 if path.endswith(("out/kernel", "down/kernel")) else 0)` for kernels
`(in, out)` (the rows of what writes into the stream, the columns of what reads it), embeddings along their last axis;
SimbaV2 keeps every unit's incoming weights there, `project_weights(1.0, axes=0)`. All of these are one multiplication
and one sum of squares per weight and step (`python -m experiments overhead`).
"""

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
from normjax.optim._tract import input_covariance, patch_covariance, scale_by_tract, tract_gradient
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
    "tract_gradient",
    "weight_motion",
]
