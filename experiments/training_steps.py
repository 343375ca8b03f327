"""Training steps of a language model, made to be timed against each other."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import normjax as nj
from normjax.models import AttentionKind, LanguageModel, Rope, TransformerConfig

VOCABULARY = 256


def language_model(placement: nj.placements.Placement, *, layers: int, width: int) -> LanguageModel:
    """A small decoder with an untied head, always the same."""
    config = TransformerConfig(
        layers=layers,
        features=width,
        heads=4,
        hidden=4 * width,
        placement=placement,
        kinds=(AttentionKind(rope=Rope()),),
        activation=functools.partial(jax.nn.gelu, approximate=True),
    )
    return LanguageModel(config, vocabulary=VOCABULARY, tied=False, rngs=nnx.Rngs(0))


def training_step(
    model: nnx.Module, tx: optax.GradientTransformation, *, batch_size: int, length: int
) -> Callable[[], Any]:
    """Compiles a step on random tokens.

    Args:
      model: Maps tokens to logits; all its state is parameters.
      tx: The optimizer.
      batch_size: Sequences per step.
      length: Predictions per sequence.

    Returns:
      A function that takes the next step, each from where the last one ended, and returns loss and parameters.
    """
    graph, params = nnx.split(model)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (batch_size, length + 1)).astype(np.int32)
    batch = jnp.asarray(tokens)

    def step(params: Any, opt_state: Any) -> tuple[Any, Any, jax.Array]:
        def loss(params: Any) -> jax.Array:
            apply: Any = nnx.merge(graph, params)
            logits = apply(batch[:, :-1])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]))

        value, gradients = jax.value_and_grad(loss)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value

    # A copy: the step consumes its arguments, and the model may be used again.
    params = jax.tree.map(jnp.copy, params)
    held = [params, jax.jit(tx.init)(params)]
    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(*held).compile()

    def call() -> Any:
        held[0], held[1], value = compiled(*held)
        return value, held[0]

    return call
