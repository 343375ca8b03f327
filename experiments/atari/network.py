"""Rainbow's network: three convolutions, then noisy dueling streams that give a distribution of returns per action.

References:
  Hessel et al. 2018, Rainbow, arXiv 1710.02298.
  Fortunato et al. 2018, Noisy networks for exploration, arXiv 1706.10295.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

import normjax as nj

READOUTS = ("value_readout", "advantage_readout")
# One statistic per image, over positions and channels, and one scale and offset per channel.
NORM = nj.group_norm(num_groups=1)


class NoisyDense(nn.Module):
    r"""$(W + \Sigma \odot \epsilon)^T x + b + s \odot \epsilon_b$ with factorised noise, the same for a whole batch.

    Attributes:
      features: Number of outputs.
      use_bias: Whether there is a bias; a layer that feeds a norm needs none.
      noise: Initial $\Sigma$ times the square root of the number of inputs.
    """

    features: int
    use_bias: bool = True
    noise: float = 0.1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `(n, inputs)` to `(n, features)`; needs the random stream `noise`."""
        inputs = x.shape[-1]
        bound = inputs**-0.5

        def uniform(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
            return jax.random.uniform(key, shape, jnp.float32, -bound, bound)

        spread = nn.initializers.constant(self.noise * bound)
        rows, columns = (_noise(self.make_rng("noise"), n) for n in (inputs, self.features))
        kernel = self.param("kernel", uniform, (inputs, self.features))
        deviation = self.param("kernel_deviation", spread, (inputs, self.features))
        y = x @ (kernel + deviation * rows[:, None] * columns[None, :])
        if self.use_bias:
            bias = self.param("bias", uniform, (self.features,))
            y = y + (bias + self.param("bias_deviation", spread, (self.features,)) * columns)[None, :]
        return y


def _noise(key: jax.Array, size: int) -> jax.Array:
    sample = jax.random.normal(key, (size,), jnp.float32)
    return jnp.sign(sample) * jnp.sqrt(jnp.abs(sample))


class Network(nn.Module):
    """Observations `(n, 84, 84, 4)` of uint8 to logits `(n, actions, atoms)`.

    Attributes:
      actions: Number of actions.
      atoms: Number of values in the support of a return.
      normalized: Whether a norm precedes every nonlinearity but the softmax.
    """

    actions: int
    atoms: int
    normalized: bool

    @nn.compact
    def __call__(self, observations: jax.Array) -> jax.Array:
        """Maps observations to logits; needs the random stream `noise`."""
        x = observations.astype(jnp.float32) / 255
        for i, (features, size, stride) in enumerate(((32, 8, 4), (64, 4, 2), (64, 3, 1))):
            x = nn.Conv(
                features, (size, size), stride, padding="VALID", use_bias=not self.normalized, name=f"hidden_{i}"
            )(x)
            x = self._activate(x, f"norm_{i}")
        x = x.reshape(len(x), -1)

        def stream(name: str, outputs: int) -> jax.Array:
            hidden = NoisyDense(512, use_bias=not self.normalized, name=f"hidden_{name}")(x)
            return NoisyDense(outputs, name=f"{name}_readout")(self._activate(hidden, f"norm_{name}"))

        value = stream("value", self.atoms)[:, None, :]
        advantage = stream("advantage", self.actions * self.atoms).reshape(-1, self.actions, self.atoms)
        return value + advantage - advantage.mean(axis=1, keepdims=True)

    def _activate(self, x: jax.Array, name: str) -> jax.Array:
        return nn.relu(nj.linen.Norm(NORM, name=name)(x) if self.normalized else x)
