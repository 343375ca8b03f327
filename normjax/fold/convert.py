r"""Pre-LN to Pre-RMSNorm to Pre-CRMSNorm on trained language models, and training one as the other.

Exact in real arithmetic (Jiang et al. 2023). Layer norm and RMS norm with the same epsilon agree on a stream without
mean. What the conversion saves, in rounding as in work, is layer norm's subtraction of a mean that may be large beside
the deviation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from normjax._method import made
from normjax.fold import centre
from normjax.fold._rebuild import filled, rebuilt
from normjax.fold.apply import Dtype, applied
from normjax.fold.models import fold_model
from normjax.fold.plan import Edge, Layer, Plan
from normjax.models import LanguageModel
from normjax.models.transformer import TransformerConfig
from normjax.norms import crms_norm, rms_norm
from normjax.optim._paths import boxed_leaves
from normjax.transform import NormTransform

_WRITERS = {"attention": "out", "ffn": "down"}
_READERS = {"attention": ("query", "key", "value"), "ffn": ("gate", "up")}


def centering_plan(model: LanguageModel) -> Plan:
    """The plan that takes the mean out of everything that a Pre-LN language model writes to its stream (rule F6).

    Args:
      model: Pre-LN (also parallel, or with LayerNorm Scaling), with a final norm and a head of its own.

    Returns:
      The plan.

    Raises:
      TypeError: If the model is no `LanguageModel`.
      ValueError: If something reads the stream that is no layer norm, or writes to it what cannot be centred; says what
        and the way out.

    Example:
      >>> import normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.gpt2(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> [layer.path for edge in fold.centering_plan(model).edges for layer in edge.layers]
      ['embedding', 'stack/blocks/0/attention/branch/out', 'stack/blocks/0/ffn/branch/down']

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    if not isinstance(model, LanguageModel):
        raise TypeError(f"expected a LanguageModel, got {type(model).__name__}: who writes to its stream is not known.")
    obstacle = _not_centrable(model)
    if obstacle is not None:
        raise ValueError(f"this model does not convert: {obstacle}")
    tables = [n for n in ("embedding", "position_embedding") if getattr(model, n) is not None]
    edges = [Edge("center", (), tuple(Layer(name, kernel="embedding") for name in tables))]
    for index, scanned in enumerate(model.stack._lengths()):
        here = f"stack/blocks/{index}"
        layers = tuple(Layer(f"{here}/{name}/branch/{matrix}") for name, matrix in _WRITERS.items())
        edges.append(Edge("center", (), layers, 1 if scanned else 0))
    return Plan(tuple(edges))


def to_pre_rms(model: LanguageModel, *, dtype: Dtype = "float64") -> LanguageModel:
    """Converts a trained Pre-LN language model to Pre-RMSNorm: the same function, gains and biases kept.

    Args:
      model: As in `centering_plan`; it is not changed.
      dtype: As in `apply`.

    Returns:
      A model with RMS norms of the same epsilon, which may be trained on.

    Raises:
      TypeError, ValueError: As in `centering_plan`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.gpt2(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> fold.verify(model, fold.to_pre_rms(model), jnp.array([[1, 2, 3]]), tolerance=1e-5).passed
      True

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    return _builder(model, dtype, keep_dtype=True)(nnx.state(model))


def rms_reparametrization(model: LanguageModel, *, dtype: Dtype = "float32") -> Callable[[nnx.State], LanguageModel]:
    """Trains a Pre-LN model as Pre-RMSNorm: a function from its parameters to the converted model, to differentiate.

    Gradients with respect to the Pre-LN parameters are Pre-LN's own, and so is the trajectory of any optimizer; the
    means are taken out of the weights, once a step, and not out of the activations.

    Args:
      model: As in `centering_plan`; only its structure matters.
      dtype: `"float32"` traces; `"float64"` is for the host.

    Returns:
      `build(state) -> model`, for a state of `nnx.state(model)`.

    Raises:
      TypeError, ValueError: As in `centering_plan`.

    Example:
      >>> import jax, jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.gpt2(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> build, tokens = fold.rms_reparametrization(model), jnp.array([[1, 2, 3]])
      >>> gradient = jax.grad(lambda state: jnp.sum(build(state)(tokens) ** 2))
      >>> jax.eval_shape(gradient, nnx.state(model))["embedding"]["embedding"].shape
      (11, 8)

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    return _builder(model, dtype, keep_dtype=True)


def _builder(model: LanguageModel, dtype: Dtype, keep_dtype: bool) -> Callable[[nnx.State], LanguageModel]:
    plan = centering_plan(model)
    config = model.stack.config
    target = rebuilt(model, _with_norm(config, _as_rms(config.placement.norm)))

    def build(state: nnx.State) -> LanguageModel:
        tree, _ = applied(state, plan, dtype, keep_dtype, mark=False)
        return filled(target, boxed_leaves(tree))

    return build


def to_pre_crms(model: LanguageModel, *, dtype: Dtype = "float64") -> LanguageModel:
    """Converts a trained Pre-LN language model to Pre-CRMSNorm: a stream of one feature less, norms without parameters.

    The norms' gains and biases are folded first, so that the result is for inference: its changed variables are marked.
    A width of d - 1 does not fill the lanes of a TPU.

    Args:
      model: As in `centering_plan`; it is not changed.
      dtype: As in `apply`.

    Returns:
      The model, of `features - 1` features.

    Raises:
      TypeError, ValueError: As in `centering_plan`, and if a norm of the model cannot be folded.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.presets.gpt2(layers=1, features=8, heads=2, hidden=16)
      >>> model = nj.models.LanguageModel(config, vocabulary=11, tied=False, rngs=nnx.Rngs(0))
      >>> smaller = fold.to_pre_crms(model)
      >>> smaller.stack.config.features
      7
      >>> fold.verify(model, smaller, jnp.array([[1, 2, 3]]), tolerance=1e-5).passed
      True

    References:
      Jiang et al. 2023, [Pre-RMSNorm and Pre-CRMSNorm Transformers](https://arxiv.org/abs/2305.14858).
    """
    given = {path: leaf.dtype for path, leaf in boxed_leaves(nnx.state(model)).items()}
    # Three steps, and one rounding at the end of them.
    wide = _builder(model, dtype, keep_dtype=False)(nnx.state(model))
    folded, _ = fold_model(wide, drop=True, dtype=dtype, keep_dtype=False)
    config = folded.stack.config
    told = made(config.placement.norm)
    assert told is not None
    norm = crms_norm(**{n: told.argument(n) for n in ("epsilon", "epsilon_mode", "precision")})
    head = config.head_features or config.features // config.heads
    smaller = dataclasses.replace(_with_norm(config, norm), features=config.features - 1, head_features=head)
    values = {path: leaf.get_value() for path, leaf in boxed_leaves(nnx.state(folded)).items()}
    compressed = {path: _compressed(path, value).astype(_dtype_of(path, given)) for path, value in values.items()}
    return filled(rebuilt(folded, smaller), compressed, set(compressed))


def _dtype_of(path: str, given: Mapping[str, Any]) -> Any:
    """The dtype of a leaf; that of its kernel where a fold made it."""
    return given.get(path) or given[f"{path.rpartition('/')[0]}/kernel"]


def _compressed(path: str, value: Any) -> Any:
    *_, layer, leaf = path.split("/")
    writes = layer in ("embedding", "position_embedding", *_WRITERS.values())
    reads = layer == "head" or layer in (*_READERS["attention"], *_READERS["ffn"])
    if writes:
        return centre.compress_out(value)
    return jnp.asarray(centre.compress_in(value)) if reads and leaf == "kernel" else value


def _as_rms(norm: NormTransform) -> NormTransform:
    told = made(norm)
    assert told is not None
    names = ("axis", "epsilon", "epsilon_mode", "use_scale", "use_bias", "scale_offset", "precision")
    return rms_norm(**{name: told.argument(name) for name in names})


def _with_norm(config: TransformerConfig, norm: NormTransform) -> TransformerConfig:
    return dataclasses.replace(config, placement=dataclasses.replace(config.placement, norm=norm))


def _not_centrable(model: LanguageModel) -> str | None:
    stack = model.stack
    place, told = stack.config.placement, made(stack.config.placement.norm)
    if told is None or told.name != "layer_norm" or told.argument("feature_axes") or told.argument("axis") != -1:
        return "its norm is not layer_norm over the last axis, and only that ignores the mean of the stream."
    if model.head is None:
        return (
            "its head is the embedding's transpose, which centring would change; fold_model(model, untie=True) first."
        )
    if place.embedding or not place.final or place.streams != "one":
        return "it needs a stream that starts at the embedding itself, ends in a norm and has no second one beside it."
    for depth in range(1, stack.config.layers + 1):
        for step in (
            place.step("attention", depth, stack.config.layers),
            place.step("ffn", depth, stack.config.layers),
        ):
            if step.gate is not None:
                return "a gate follows the branch and gives it a mean again; fold_model folds LayerScale first."
            if step.after or step.output or step.residual:
                return "a norm writes to the stream (Post-LN, Peri-LN or the like), and its gain and bias have a mean."
            if step.inner or step.qkv:
                return "the norms inside its sublayers are the same layer norm, of features that have a mean."
            if not step.before and not place.parallel:
                return "a sublayer reads the stream without a norm."
    return None
