"""A residual network whose convolutions have their effective kernels: what folding starts from (rule F14)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from normjax import _checks
from normjax.fold._rebuild import filled, marked, rebuilt
from normjax.fold.apply import Dtype
from normjax.models import ResNet
from normjax.nnx import Reparametrized
from normjax.optim._paths import boxed_leaves
from normjax.precision import promote
from normjax.weights import WeightTransform

_KERNEL = "kernel/"


def bake_model(model: ResNet, *, dtype: Dtype = "float64") -> ResNet:
    """A residual network with effective kernels in the place of reparametrized ones, for inference only.

    Rule F14: scaled weight standardization (NF-ResNet), weight standardization, or any other `ResNetConfig.weights`.
    A norm after a convolution folds into the effective kernel; in the stored one its gain would be divided out again.

    Args:
      model: The trained model; it is not changed. One without a reparametrization is returned as it is.
      dtype: As in `apply`.

    Returns:
      The model, with `weights=None` in its configuration; its kernels are marked `inference_only`.

    Raises:
      TypeError: If the model is no `ResNet`.
      ValueError: If `dtype` is unknown.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> from flax import nnx
      >>> from normjax import fold
      >>> config = nj.models.resnet_presets.nf(depths=(1,), widths=(4,))
      >>> model, x = nj.models.ResNet(config, classes=3, rngs=nnx.Rngs(0)), jnp.ones((1, 4, 4, 3))
      >>> baked = fold.bake_model(model)
      >>> baked.config.weights, fold.verify(model, baked, x, tolerance=1e-5).passed
      (None, True)

    References:
      Brock, De and Smith 2021, [Characterizing signal propagation to close the performance gap in unnormalized
      ResNets](https://arxiv.org/abs/2101.08692).
    """
    _checks.check_choice("dtype", dtype, Dtype)
    if not isinstance(model, ResNet):
        raise TypeError(f"expected a ResNet, got {type(model).__name__}; for other trees there is bake(params, rules).")
    if model.config.weights is None:
        return model
    values, kernels = unwrapped(model, dtype)
    values |= {path: restored(values[path], kernel) for path, kernel in kernels.items()}
    target = rebuilt(model, config=dataclasses.replace(model.config, weights=None))
    baked = filled(target, values, set(kernels) | marked(values))
    baked.eval()
    return baked


def unwrapped(model: ResNet, dtype: Dtype) -> tuple[dict[str, Any], dict[str, Any]]:
    """Variables by the path that they have without wrappers, kernels wide; and the kernels that they were made of."""
    prefix = lambda path: "".join(f"{part}/" for part in path)  # noqa: E731
    wrappers = {prefix(path): node for path, node in nnx.iter_graph(model) if isinstance(node, Reparametrized)}
    values: dict[str, Any] = {}
    for path, variable in boxed_leaves(nnx.state(model)).items():
        around = next((p for p in wrappers if path.startswith(p)), None)
        if around is None:
            values[path] = variable
        elif path.startswith(f"{around}layer_instance/"):
            values[around + path.removeprefix(f"{around}layer_instance/")] = variable
    kernels = {f"{path}kernel": values[f"{path}kernel"].get_value() for path in wrappers}
    assert model.config.weights is not None
    for path, wrapper in wrappers.items():
        kernel = f"{path}kernel"
        values[kernel] = values[kernel].replace(_effective(model.config.weights, wrapper, dtype))
    return values, kernels


def restored(variable: nnx.Variable, like: jax.Array) -> nnx.Variable:
    """A kernel in the dtype and the sharding of the one that it was made of."""
    return variable.replace(jax.device_put(variable.get_value().astype(like.dtype), like.sharding))


def _effective(weights: WeightTransform, wrapper: Reparametrized, dtype: Dtype) -> Any:
    layer: Any = wrapper.layer_instance
    held = (layer.kernel[...], _own(wrapper.scales), _own(wrapper.batch_stats))
    if dtype == "float32":
        return _applied(weights, *jax.tree.map(lambda a: a.astype(promote(a.dtype, jnp.float32)), held))
    held = jax.tree.map(lambda a: np.asarray(a).astype(np.float64), held)
    # The transforms are JAX functions: float64 is asked of the host, never of a device that may have none.
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        return np.asarray(_applied(weights, *jax.tree.map(jnp.asarray, held)))


def _applied(weights: WeightTransform, kernel: Any, own: Any, state: Any) -> Any:
    return weights.apply(own, state, kernel, train=False)[0]


def _own(variables: Any) -> dict[str, Any]:
    return {name.removeprefix(_KERNEL): variable[...] for name, variable in variables.items()}
