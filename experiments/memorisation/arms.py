"""The grid: interventions against loss of plasticity, each without and with NaP.

All are Adam at a constant rate that is never reset. With NaP, as the paper has it for labels that change, a norm
precedes every nonlinearity, hidden kernels are projected after every step, scale and offset are pulled to (1, 0), and
the readout is left alone. The row of the norm alone has nothing of its own to add to NaP: there, NaP is NaP alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import normjax as nj
from experiments.plasticity import arms as plasticity
from experiments.plasticity.arms import Optimizer, Renew
from experiments.plasticity.model import READOUT, Nonlinearity, fresh_leaf
from normjax.optim import redo, shrink_and_perturb

NAP = "_nap"


class Strengths(NamedTuple):
    """What the interventions read from the configuration, which has the words for it."""

    weight_decay: float
    l2_init: float
    shrink: float
    dormancy: float
    update_noise: float
    readout_decay: float
    affine_decay: float


Inner = Callable[[Any, Strengths], Optimizer]


class Arm(NamedTuple):
    """One cell of the grid.

    Attributes:
      intervention: Name of its row.
      nap: Whether it is the one with NaP.
      method: What trains it.
      nonlinearity: Of the network.
    """

    intervention: str
    nap: bool
    method: plasticity.Arm
    nonlinearity: Nonlinearity


class Intervention(NamedTuple):
    """One row of the grid.

    Attributes:
      label: As figures and tables show it.
      inner: `inner(learning_rate, strengths)`, the optimizer before any projection.
      renew: What is done before every task but the first.
      renew_projected: The same for networks whose hidden kernels keep their norms.
      nonlinearity: Of the network.
      normalized: Whether there are norms without NaP, too.
    """

    label: str
    inner: Inner
    renew: Renew | None = None
    renew_projected: Renew | None = None
    nonlinearity: Nonlinearity = jax.nn.relu
    normalized: bool = False


def _adam(learning_rate: Any, strengths: Strengths) -> Optimizer:
    del strengths
    return optax.adam(learning_rate)


def _l2(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return optax.adamw(learning_rate, weight_decay=strengths.weight_decay, mask=plasticity.kernels)


def _l2_init(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return optax.chain(optax.adam(learning_rate), nj.decay_towards_init(strengths.l2_init))


def _readout_pull(learning_rate: Any, strengths: Strengths) -> Optimizer:
    pull = nj.decay_towards_init(strengths.readout_decay, mask=plasticity.readout)
    return optax.chain(optax.adam(learning_rate), pull)


def _update_noise(learning_rate: Any, strengths: Strengths) -> Optimizer:
    noise = shrink_and_perturb(jax.random.key(0), 1.0, strengths.update_noise * learning_rate, mask=plasticity.kernels)
    return optax.chain(optax.adam(learning_rate), noise)


def _shrink(*after: Optimizer) -> Renew:
    def renew(
        key: jax.Array, params: Any, activations: Sequence[jax.Array], strengths: Strengths
    ) -> tuple[Any, dict[str, jax.Array]]:
        del activations

        def draw(key: jax.Array, path: str, leaf: jax.Array) -> jax.Array:
            return (1 - strengths.shrink) * fresh_leaf(key, path, leaf)

        # A single step of nothing else; the radius of a projection is the norm that it begins with.
        change = optax.chain(shrink_and_perturb(key, strengths.shrink, draw), *after)
        updates, _ = change.update(jax.tree.map(jnp.zeros_like, params), change.init(params), params)
        return optax.apply_updates(params, updates), {}

    return renew


def _redo(*, preserve_norm: bool) -> Renew:
    def renew(
        key: jax.Array, params: Any, activations: Sequence[jax.Array], strengths: Strengths
    ) -> tuple[Any, dict[str, jax.Array]]:
        layers = [f"hidden_{i}" for i in range(len(activations))]
        outgoing = dict(zip(layers, [*layers[1:], READOUT], strict=True))
        return redo(
            key,
            params,
            dict(zip(layers, activations, strict=True)),
            outgoing,
            threshold=strengths.dormancy,
            init=fresh_leaf,
            preserve_norm=preserve_norm,
        )

    return renew


INTERVENTIONS: Mapping[str, Intervention] = {
    "none": Intervention("none", _adam),
    "l2": Intervention("L2 (AdamW)", _l2),
    "l2_init": Intervention("L2-init", _l2_init),
    "shrink": Intervention(
        "shrink & perturb", _adam, _shrink(), _shrink(nj.project_weights(mask=plasticity.hidden_kernels))
    ),
    "redo": Intervention("ReDo", _adam, _redo(preserve_norm=False), _redo(preserve_norm=True)),
    "leaky": Intervention("leaky ReLU", _adam, nonlinearity=jax.nn.leaky_relu),
    "noise": Intervention("update noise", _update_noise),
    "readout": Intervention("readout pulled", _readout_pull),
    "ln": Intervention("layer norm", _adam, normalized=True),
}


def with_nap(intervention: str) -> str:
    """The arm that is an intervention with NaP."""
    return ("none" if INTERVENTIONS[intervention].normalized else intervention) + NAP


def _arms(name: str, row: Intervention) -> dict[str, Arm]:
    def free(learning_rate: Any, strengths: Strengths) -> Optimizer:
        return plasticity.tracked(learning_rate, row.inner(learning_rate, strengths))

    def projected(learning_rate: Any, strengths: Strengths) -> Optimizer:
        inner = row.inner(learning_rate, strengths)
        return plasticity.nap(learning_rate, inner, scale_offset="decay", rate=strengths.affine_decay)

    without = plasticity.Arm(row.label, row.normalized, free, renew=row.renew)
    arms = {name: Arm(name, False, without, row.nonlinearity)}
    if with_nap(name) == name + NAP:
        label = "NaP" if name == "none" else f"{row.label} + NaP"
        nap = plasticity.Arm(label, True, projected, renew=row.renew_projected)
        arms[name + NAP] = Arm(name, True, nap, row.nonlinearity)
    return arms


ARMS: Mapping[str, Arm] = {k: arm for name, row in INTERVENTIONS.items() for k, arm in _arms(name, row).items()}
