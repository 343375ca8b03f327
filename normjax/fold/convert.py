r"""Pre-LN to Pre-RMSNorm to Pre-CRMSNorm on trained transformers, and training one as the other.

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
from normjax.fold import _stream, centre
from normjax.fold._rebuild import filled, marked, rebuilt
from normjax.fold._stream import Model
from normjax.fold.apply import Dtype, applied
from normjax.fold.models import fold_model
from normjax.fold.plan import Edge, Plan
from normjax.models.transformer import TransformerConfig
from normjax.norms import crms_norm, rms_norm
from normjax.optim._paths import boxed_leaves
from normjax.transform import NormTransform


def centering_plan(model: Model) -> Plan:
    """The plan that takes the mean out of everything that a Pre-LN transformer writes to its stream (rule F6).

    Args:
      model: Language model, encoder or ViT: Pre-LN (also parallel, or with LayerNorm Scaling), with a final norm and a
        head of its own; an encoder without a head for masked tokens, which is the embedding's transpose.

    Returns:
      The plan.

    Raises:
      TypeError: If the model is no `LanguageModel`, `Encoder` or `ViT`.
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
    _stream.check_model(model)
    obstacle = _not_layer_norm(model) or _stream.obstacle(model)
    if obstacle is not None:
        raise ValueError(f"this model does not convert: {obstacle}")
    return Plan(tuple(Edge("center", (), layers, stacked) for layers, stacked in _stream.writers(model)))


def to_pre_rms(model: Model, *, dtype: Dtype = "float64") -> Any:
    """Converts a trained Pre-LN transformer to Pre-RMSNorm: the same function, gains and biases kept.

    Args:
      model: As in `centering_plan`; it is not changed.
      dtype: As in `apply`.

    Returns:
      A model with RMS norms of the same epsilon, which may be trained on, unless the given one was folded before.

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


def rms_reparametrization(model: Model, *, dtype: Dtype = "float32") -> Callable[[nnx.State], Any]:
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


def _builder(model: Model, dtype: Dtype, keep_dtype: bool) -> Callable[[nnx.State], Any]:
    plan = centering_plan(model)
    config = model.stack.config
    target = rebuilt(model, config=_with_norm(config, _as_rms(config.placement.norm)))

    def build(state: nnx.State) -> Any:
        tree, _ = applied(state, plan, dtype, keep_dtype, mark=False)
        values = boxed_leaves(tree)
        return filled(target, values, marked(values))

    return build


def to_pre_crms(model: Model, *, dtype: Dtype = "float64") -> Any:
    """Converts a trained Pre-LN language model or ViT to Pre-CRMSNorm: one feature less, norms without parameters.

    The norms' gains and biases are folded first, so that the result is for inference: its changed variables are marked.
    A width of d - 1 does not fill the lanes of a TPU.

    Args:
      model: As in `centering_plan`; it is not changed.
      dtype: As in `apply`.

    Returns:
      The model, of `features - 1` features.

    Raises:
      TypeError, ValueError: As in `centering_plan`, and if a norm of the model cannot be folded, as an encoder's last.

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
    written = {
        path for layers, _ in _stream.writers(folded) for la in layers for path in (la.kernel_path, la.bias_path)
    }
    read = set(_stream.readers(folded))
    compressed = {}
    for path, value in values.items():
        if path in written:
            value = centre.compress_out(value)
        elif path in read:
            value = jnp.asarray(centre.compress_in(value))
        compressed[path] = value.astype(_dtype_of(path, given))
    return filled(rebuilt(folded, config=smaller), compressed, set(compressed))


def _dtype_of(path: str, given: Mapping[str, Any]) -> Any:
    """The dtype of a leaf; that of its kernel where a fold made it."""
    return given.get(path) or given[f"{path.rpartition('/')[0]}/kernel"]


def _as_rms(norm: NormTransform) -> NormTransform:
    told = made(norm)
    assert told is not None
    names = ("axis", "epsilon", "epsilon_mode", "use_scale", "use_bias", "scale_offset", "precision")
    return rms_norm(**{name: told.argument(name) for name in names})


def _with_norm(config: TransformerConfig, norm: NormTransform) -> TransformerConfig:
    return dataclasses.replace(config, placement=dataclasses.replace(config.placement, norm=norm))


def _not_layer_norm(model: Model) -> str | None:
    told = made(model.stack.config.placement.norm)
    if told is None or told.name != "layer_norm" or told.argument("feature_axes") or told.argument("axis") != -1:
        return "its norm is not layer_norm over the last axis, and only that ignores the mean of the stream."
    return None
