"""The multilayer perceptron with a norm before every nonlinearity."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from normjax import _checks
from normjax.models._axes import linear_names, named_norm
from normjax.precision import promote
from normjax.transform import NormTransform

_HIDDEN_INIT = nnx.initializers.he_normal()


class MLPClassifier(nnx.Module):
    r"""Logits $W_h h_L + b$ with $h_l = \phi(N(W_l h_{l-1}))$.

    A layer that feeds a norm has no bias, for the norm would remove it; without a norm it has one.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> model = nj.models.MLPClassifier(4, (8, 8), classes=3, norm=nj.layer_norm(), rngs=nnx.Rngs(0))
      >>> model(jnp.ones((2, 4))).shape
      (2, 3)
    """

    def __init__(
        self,
        features: int,
        widths: Sequence[int],
        *,
        classes: int,
        norm: NormTransform | None,
        use_bias: bool | None = None,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        kernel_init: Callable[..., jax.Array] = _HIDDEN_INIT,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        remat: bool = False,
        rngs: nnx.Rngs,
    ):
        r"""Makes `hidden`, `norms` and `head`.

        Args:
          features: Of an input.
          widths: Units of each hidden layer.
          classes: Number of logits.
          norm: $N$, or `None`.
          use_bias: Whether the hidden layers have biases, as those have into which norms were folded; `None` for only
            where there is no norm.
          activation: $\phi$; the identity if the norm has it inside.
          kernel_init: Initializer of the hidden layers.
          dtype: Dtype to compute in; `None` is that of inputs and parameters together. Logits have the parameters'.
          param_dtype: Dtype of the parameters.
          remat: Whether the backward pass computes each layer again instead of keeping what is inside.
          rngs: Random streams; `params` is used.
        """
        for count in (features, classes, *widths):
            _checks.check_count("features, widths and classes", count, 1)
        dtypes = {"param_dtype": param_dtype, "rngs": rngs}
        use_bias = norm is None if use_bias is None else use_bias
        options = {"kernel_init": kernel_init, "use_bias": use_bias, "dtype": dtype, **dtypes}
        # The first layer makes a stream, as an embedding of patches does, the others go out of it and back.
        names = ["mlp" if index % 2 else "embed" for index in range(len(widths))]
        ends = [linear_names(*pair) for pair in zip((None, *names), (*names, None), strict=True)]
        sizes = list(zip((features, *widths), widths, strict=False))
        self.activation, self.dtype, self.remat = activation, dtype, remat
        layers = zip(sizes, ends, strict=False)
        self.hidden = nnx.List([nnx.Linear(*size, **options, **metadata) for size, metadata in layers])
        # A float64 network has float64 statistics; others have float32 ones.
        wide = promote(jnp.float32, param_dtype)
        places = [(width, "norm" if name == "embed" else name) for width, name in zip(widths, names, strict=True)]
        norms = [] if norm is None else [named_norm(norm, width, rngs, name, dtype=wide) for width, name in places]
        self.norms = nnx.List(norms)
        self.head = nnx.Linear((features, *widths)[-1], classes, **dtypes, **ends[-1])

    def __call__(self, x: jax.Array, *, use_running_average: bool | None = None, **context: Any) -> jax.Array:
        """Classifies vectors.

        Args:
          x: `(batch, features)`.
          use_running_average: Whether to evaluate; `None` takes what `model.train()` and `model.eval()` have set.
          **context: What norms may read, e.g. `task=` of AdaB²N.

        Returns:
          Logits, `(batch, classes)`.
        """

        def layer(linear, norm, x, context):
            y = linear(x)
            return self.activation(y if norm is None else norm(y, use_running_average, **context))

        layer = nnx.remat(layer) if self.remat else layer
        for index, linear in enumerate(self.hidden):
            x = layer(linear, self.norms[index] if len(self.norms) else None, x, context)
        return self.head(x.astype(promote(x.dtype, self.head.param_dtype)))
