"""Optax transforms for the norms of weights (Normalize-and-Project and its relatives) and effective learning rates.

What each one holds constant, what it stores besides a step count, and where it goes. `W` is one float32 number per norm
(a weight, or a slice of it where `axes` are given), `G` a copy of the selected parameters.

| transform | holds constant | state | place in the chain |
|---|---|---|---|
| `project_weights` | norm | W | last |
| `nap` | norm; scales and offsets if asked; measures the rest | 5 W, inner | the whole optimizer |
| `hyperball` (AdamH, MuonH) | norm, and the step's share of it | W | last, after a complete optimizer |
| `rotate_weights` (Rotational Variants) | norm, and the angle of a step | 2 W | last, after a complete optimizer |
| `clip_weights` (max-norm) | an upper bound of the norm | W | last |
| `project_updates` (AdamP, SGDP) | no norm: removes growth by momentum, not by steps | inner | around the momenta |
| `scale_by_effective_lr` | effective rate of free weights | W | in place of the learning rate |
| `implicit_schedule` | nothing: the free run's decay, for projected weights | W | before the projection |
| `decay_towards_init` (L2-init) | pulls towards the initial values | G | after the learning rate |
| `shrink_and_perturb` | nothing | - | after the learning rate, before a projection |
| `continual_backprop` | nothing; norms with `preserve_norm` | 2 numbers per unit, inner | around the optimizer |
| `scale_by_tract` | nothing: the radial part of steps grows | - | first |
| `scale_by_rewarmed_schedule` | rate within a task | - | in place of the learning rate |
| `track_effective_lr` | measures only | 5 W | last |

The norms of all weights are summed together: `project_weights` of sharded weights makes one round of all-reduces.

Granularity is `axes`, the axes summed over: whole weights `None`, scanned layers `(L, in, out)` `(1, 2)`, heads in
`(D, H, d)` `(0, 2)`, neurons in `(in, out)` `0`. Radii are `"init"`, numbers, trees, or rules such as `fan_radius`.

Two methods are settings of `project_weights`, with `radius=1.0` and the axis along the stream. SimbaV2: every kernel
along its inputs, `axes=0`; `axes=1` for a vmapped ensemble `(E, in, out)`. nGPT, for Flax kernels `(in, out)`: `axes=0`
for what reads the residual stream (query, key, value, the inner layers of the feed-forward network, the readout),
`axes=1` for what writes to it (the two output projections) and for embedding tables `(vocabulary, d)`; it projects the
readout and the embeddings too, so the mask is `True`, and the weights already before the first step:

Example:
  >>> import jax, jax.numpy as jnp, optax
  >>> from normjax.optim import project_weights
  >>> params = {"up": jnp.ones((4, 9)), "down": jnp.ones((9, 4))}
  >>> ngpt = project_weights(1.0, axes={"up": 0, "down": 1}, mask=True)
  >>> still = jax.tree.map(jnp.zeros_like, params)
  >>> params = optax.apply_updates(params, ngpt.update(still, ngpt.init(params), params)[0])
  >>> params["up"][0, 0].item(), params["down"][0, 0].item()
  (0.5, 0.5)
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
