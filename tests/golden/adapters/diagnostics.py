"""NormGrad: activations and gradients were recorded channels first, the gradient with the sign of a loss."""

import jax
import jax.numpy as jnp
import numpy as np

from normjax.diagnostics import normgrad_map, saliency
from tests.golden.adapters._hosts import channels_last
from tests.golden.adapters._kinds import Check
from tests.golden.comparison import assert_close
from tests.golden.vectors import Vector

# Sums over the entries of an outer product, in float32 there and here, then a difference from the smallest.
TOLERANCE = 256 * float(np.finfo(np.float32).eps)


def _normgrad(vector: Vector) -> Check:
    def run(vector: Vector) -> None:
        arrays = vector.arrays()
        x, g = (channels_last(jnp.asarray(arrays[name])) for name in ("aux.act", "aux.grad"))
        recorded = {name: a for name, a in arrays.items() if name.startswith("out.")}
        assert recorded, "no recorded maps"

        @jax.jit
        def maps(x, g):
            found = {}
            for name, expected in recorded.items():
                _, layer, aggregation = name.split(".")
                one = normgrad_map(x, -g, layer=layer, aggregation=aggregation)
                found[name] = saliency(one, expected.shape[-2:])[0]
            return found

        for name, actual in maps(x, g).items():
            assert_close(actual, recorded[name], TOLERANCE, name)

    return Check(run)


ADAPTERS = {r"normgrad_.*": _normgrad}
