"""The methods under comparison: each is a model with or without norms, and an optimizer.

All optimizers are Adam at a constant learning rate and never reset, except in the reference that starts every task
with a fresh network. All carry telemetry, so that effective learning rates are measured alike. One optimizer moves the
networks of all seeds, stacked along the first axis of every parameter: norms are taken over the other axes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import optax

import normjax as nj
from experiments.plasticity.model import READOUT

Optimizer = optax.GradientTransformation
TRACK_EVERY = 10


class Strengths(Protocol):
    """The regularization strengths that the arms read from the configuration."""

    @property
    def weight_decay(self) -> float:
        """AdamW's coefficient; a step shrinks the weights by this times the learning rate."""
        ...

    @property
    def l2_init(self) -> float:
        """Fraction of the distance to the initial parameters removed per step."""
        ...

    @property
    def affine_decay(self) -> float:
        """Fraction of the distance of scale and offset to (1, 0) removed per step."""
        ...

    @property
    def readout_decay(self) -> float:
        """Fraction of the distance of the readout to its initial value removed per step."""
        ...


class Renew(Protocol):
    """Changes the parameters of one network between two tasks."""

    def __call__(
        self, key: jax.Array, params: Any, activations: Sequence[jax.Array], strengths: Any, /
    ) -> tuple[Any, dict[str, jax.Array]]:
        """New parameters, and by path the entries that lose their moments; activations are of the last labels."""
        ...


class Arm(NamedTuple):
    """One method.

    Attributes:
      label: As figures and tables show it.
      normalized: Whether a LayerNorm precedes every nonlinearity.
      optimizer: `optimizer(learning_rate, strengths)` for stacked networks; the rate may be traced.
      fresh: Whether parameters and optimizer state start anew at every task.
      renew: What is done to the parameters of each network before every task but the first.
    """

    label: str
    normalized: bool
    optimizer: Callable[[Any, Any], Optimizer]
    fresh: bool = False
    renew: Renew | None = None


def _mask(wanted: Callable[[str, str], bool]) -> Callable[[Any], dict[str, Any]]:
    """A mask function from a predicate of the names of layer and parameter."""
    return lambda params: {layer: {name: wanted(layer, name) for name in leaves} for layer, leaves in params.items()}


kernels = _mask(lambda layer, name: name == "kernel")
hidden_kernels = _mask(lambda layer, name: layer.startswith("hidden_") and name == "kernel")
_affine = _mask(lambda layer, name: layer.startswith("norm_"))
readout = _mask(lambda layer, name: layer == READOUT)
_readout_kernel = _mask(lambda layer, name: (layer, name) == (READOUT, "kernel"))


def per_seed(path: str, weight: Any) -> tuple[int, ...]:
    """The axes of one norm: all but the first, the seeds."""
    del path
    return tuple(range(1, weight.ndim))


def tracker(learning_rate: Any, mask: Callable[[Any], Any]) -> Optimizer:
    """Measures the selected weights every `TRACK_EVERY` steps."""
    return nj.track_effective_lr(learning_rate, every_k=TRACK_EVERY, axes=per_seed, mask=mask)


def tracked(learning_rate: Any, *transforms: Optimizer) -> Optimizer:
    """The chain of these, measured."""
    return optax.chain(*transforms, tracker(learning_rate, kernels))


def _adam(learning_rate: Any, strengths: Strengths) -> Optimizer:
    del strengths
    return tracked(learning_rate, optax.adam(learning_rate))


def _decayed(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return tracked(learning_rate, optax.adam(learning_rate), _affine_pull(strengths), _readout_pull(strengths))


def _weight_decay(learning_rate: Any, strengths: Strengths, *rest: Optimizer) -> Optimizer:
    # Kernels only: decay of the norms' scales towards zero is known to collapse the network.
    decayed = optax.adamw(learning_rate, weight_decay=strengths.weight_decay, mask=kernels)
    return tracked(learning_rate, decayed, *rest)


def _weight_decay_affine(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return _weight_decay(learning_rate, strengths, _affine_pull(strengths))


def _l2_init(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return tracked(learning_rate, optax.adam(learning_rate), nj.decay_towards_init(strengths.l2_init))


def _affine_pull(strengths: Strengths) -> Optimizer:
    return nj.decay_towards_init(strengths.affine_decay, mask=_affine)


def _readout_pull(strengths: Strengths) -> Optimizer:
    return nj.decay_towards_init(strengths.readout_decay, mask=readout)


def nap(learning_rate: Any, inner: Optimizer, *rest: Optimizer, **options: Any) -> Optimizer:
    """An optimizer with its hidden kernels projected, measured; `rest` moves what is not projected."""
    projected = nj.nap(
        inner,
        mask=hidden_kernels,
        axes=per_seed,
        learning_rate=learning_rate,
        track_every=TRACK_EVERY,
        **options,
    )
    # nap follows the weights it projects; the readout, which it leaves alone, gets a tracker of its own.
    return optax.chain(projected, *rest, tracker(learning_rate, _readout_kernel))


def _nap_free(learning_rate: Any, strengths: Strengths) -> Optimizer:
    del strengths
    return nap(learning_rate, optax.adam(learning_rate))


def _nap_decay(learning_rate: Any, strengths: Strengths) -> Optimizer:
    return nap(learning_rate, optax.adam(learning_rate), scale_offset="decay", rate=strengths.affine_decay)


def _nap_decay_readout(learning_rate: Any, strengths: Strengths) -> Optimizer:
    adam, pull = optax.adam(learning_rate), _readout_pull(strengths)
    return nap(learning_rate, adam, pull, scale_offset="decay", rate=strengths.affine_decay)


ARMS: Mapping[str, Arm] = {
    "plain": Arm("no norm", False, _adam),
    "ln": Arm("LN", True, _adam),
    "ln_wd": Arm("LN + weight decay", True, _weight_decay),
    "ln_wd_decay": Arm("LN + weight decay, affine decayed", True, _weight_decay_affine),
    "ln_l2init": Arm("LN + L2-init", True, _l2_init),
    "ln_decay_readout": Arm("LN, affine + readout decayed", True, _decayed),
    "nap": Arm("NaP", True, _nap_free),
    "nap_decay": Arm("NaP, affine decayed", True, _nap_decay),
    "nap_decay_readout": Arm("NaP, affine + readout decayed", True, _nap_decay_readout),
    "fresh": Arm("LN, fresh per task", True, _adam, fresh=True),
}
