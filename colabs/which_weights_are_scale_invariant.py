# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which weights are scale-invariant?
#
# Projecting a weight back to a fixed norm (NaP) changes nothing a network computes only if the network does not feel the
# weight's scale. Which weights are those? A function with $f(cW) = f(W)$ for all $c > 0$ has, by Euler's theorem, a
# gradient orthogonal to its argument: $\langle W, \nabla f(W)\rangle = 0$. One backward pass on any batch measures it, for
# whole tensors, heads and single units.
#
# 1. three layers, three answers,
# 2. every placement of norms in a transformer,
# 3. what happens to the answer, and to the norms, when the network is trained with and without the projection.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("normjax") is None:  # on a hosted notebook
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "normjax[experiments]"], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import normjax as nj

# %% [markdown]
# ## 1. Three layers, three answers
#
# A layer before a layer norm may be scaled as a whole: all its outputs are divided by one number per token. Before a batch
# norm each unit may be scaled alone. A readout may not be scaled at all: it sets the size of the logits.

# %%
rng = np.random.default_rng(0)
params = {
    "before_layer_norm": rng.standard_normal((8, 16), np.float32),
    "before_batch_norm": rng.standard_normal((16, 16), np.float32),
    "readout": rng.standard_normal((16, 4), np.float32),
}
x, labels = rng.standard_normal((64, 8), np.float32), rng.integers(0, 4, 64)


def loss(params, x, labels):
    h = jax.nn.relu(nj.layer_normalize(x @ params["before_layer_norm"]))
    h = jax.nn.relu(nj.batch_normalize(h @ params["before_batch_norm"])[0])
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(h @ params["readout"], labels))


found = nj.diagnostics.scale_invariance(loss, params, x, labels)
print(found)

# %%
assert found.granularity("before_layer_norm") == "joint"
assert found.granularity("before_batch_norm") == "per unit"
assert found.granularity("readout") is None
print("the mask for nap:", found.mask())

# %% [markdown]
# ## 2. Every placement of norms
#
# In a transformer it depends on where the norms sit. Pre-LN, the usual one, makes no matrix scale-invariant: whatever a
# sublayer adds to the stream, it adds at its own size. Peri-LN normalizes the output of each sublayer, HybridNorm the
# queries, keys and values.

# %%
placements = ("pre", "post", "peri", "hybrid")
matrices = ("query", "key", "value", "out", "up", "down")


@nnx.jit
def gradient_of(stack, x, projection):
    return nnx.grad(lambda stack: jnp.sum(stack(x) * projection))(stack)


sequence, projection = rng.standard_normal((2, 2, 6, 16), np.float32)
cosines = []
for name in placements:
    place = getattr(nj.placements, name)(nj.rms_norm())
    config = nj.models.TransformerConfig(layers=1, features=16, heads=2, hidden=32, placement=place)
    stack = nj.models.Transformer(config, rngs=nnx.Rngs(0))
    gradient = gradient_of(stack, sequence, projection)
    blocks, grads = nnx.state(stack)["blocks"][0], gradient["blocks"][0]
    row = []
    for matrix in matrices:
        where = "ffn" if matrix in ("up", "down") else "attention"
        w, g = (np.ravel(tree[where]["branch"][matrix]["kernel"][...]) for tree in (blocks, grads))
        row.append(float(abs(w @ g) / np.linalg.norm(w) / np.linalg.norm(g)))
    cosines.append(row)

# %%
drawn, panel = plt.subplots(figsize=(7, 3.6), layout="constrained")
image = panel.imshow(np.log10(np.maximum(cosines, 1e-9)), cmap="viridis", vmin=-9, vmax=0)
panel.set_xticks(range(len(matrices)), matrices)
panel.set_yticks(range(len(placements)), placements)
drawn.colorbar(image, label="log10 |cos(W, dL/dW)|")
panel.set_title("dark: scale-invariant as a whole, may be projected")
plt.show()

# %% [markdown]
# The library knows this without measuring: `nj.placements.scale_invariant_matrices`. Its tests compare the two for every
# placement.

# %%
for name, row in zip(placements, cosines, strict=True):
    place = getattr(nj.placements, name)(nj.rms_norm())
    known = {}
    for kind in ("attention", "ffn"):
        known |= nj.placements.scale_invariant_matrices(place.step(kind, 1, 1), kind)
    joint = {matrix for matrix, cosine in zip(matrices, row, strict=True) if cosine < 1e-5}
    assert set(known) == joint, name
    print(f"{name:>10}: {', '.join(sorted(known)) or 'none'}")

# %% [markdown]
# ## 3. What it is for
#
# A scale-invariant weight only ever grows under gradient descent, for each step is orthogonal to it, and its effective
# learning rate falls with that. The mask found above is what `nap` holds.

# %%
steps, rate = 300, 0.05


def train(tx):
    """Norms of the three weights, relative to their start, after every step."""

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, x, labels), state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), jax.tree.map(jnp.linalg.norm, params)

        return jax.lax.scan(step, (params, tx.init(params)), None, length=steps)[1]

    return jax.tree.map(lambda norms, w: norms / np.linalg.norm(w), jax.device_get(run(params)), params)


free, projected = train(optax.adam(rate)), train(nj.nap(optax.adam(rate), mask=found.mask()))

# %%
drawn, panels = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for panel, norms, title in zip(panels, (free, projected), ("Adam", "NaP over Adam"), strict=True):
    for name, values in norms.items():
        panel.plot(values, label=name)
    panel.set(title=title, xlabel="step")
    panel.grid(alpha=0.3)
panels[0].set_ylabel("norm / initial norm")
panels[0].legend(fontsize=8)
plt.show()

# %%
for name in ("before_layer_norm", "before_batch_norm"):
    assert free[name][-1] > 1.1
    assert abs(projected[name][-1] - 1) < 1e-5
