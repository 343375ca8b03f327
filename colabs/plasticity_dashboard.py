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
# # A dashboard of plasticity
#
# A network that is trained on one task after the other can lose its ability to learn. Its loss shows that too late; its
# weights and units show it earlier. This notebook trains a small network on digits whose labels change, and watches what
# `normjax.diagnostics` and the optimizer's own telemetry say, with and without NaP:
#
# - effective learning rates, norms and rotation, from `track_effective_lr`,
# - dead and dormant units, and ranks of the features, from activations on a fixed probe,
# - and what matters: accuracy on each new task.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("normjax") is None:  # on a hosted notebook
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "normjax[experiments]"], check=True)

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

import normjax as nj

# %%
images = load_digits().data[:256]
x = jnp.asarray((images - images.mean(0)) / images.std(), jnp.float32)
tasks, steps, width, rate, probe = 30, 100, 64, 3e-3, 128
norm = nj.layer_norm()

# %% [markdown]
# ## The network
#
# Two hidden layers, a layer norm before each nonlinearity, and the readout, which no norm follows.


# %%
def init(rng):
    def normal(n_in, n_out, gain):
        return {"kernel": (rng.standard_normal((n_in, n_out)) * np.sqrt(gain / n_in)).astype(np.float32)}

    params = {}
    for i, n_in in enumerate((x.shape[1], width)):
        params[f"hidden_{i}"] = normal(n_in, width, 2)
        params[f"norm_{i}"], _ = norm.init(None, jax.ShapeDtypeStruct((1, width), jnp.float32))
    params["readout"] = normal(width, 10, 1)
    return params


def apply(params, x):
    activations = {}
    for i in range(2):
        x, _ = norm.apply(params[f"norm_{i}"], {}, x @ params[f"hidden_{i}"]["kernel"], train=True)
        x = activations[f"hidden_{i}"] = jax.nn.relu(x)
    return x @ params["readout"]["kernel"], activations


def loss(params, labels):
    logits, _ = apply(params, x)
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


# %% [markdown]
# ## Which weights may be projected
#
# The scale-invariance test says so, and its mask goes to `nap`.

# %%
rng = np.random.default_rng(0)
start = init(rng)
found = nj.diagnostics.scale_invariance(loss, start, jnp.zeros(len(x), jnp.int32))
print(found)

# %% [markdown]
# ## The gauges
#
# Everything is a pure function of arrays, so that one compiled function reads all gauges after each task: those of units on
# the first half of the images.

# %%
optimizers = {
    "LN": optax.chain(optax.adam(rate), nj.track_effective_lr(rate)),
    "NaP, scales pulled to 1": nj.nap(
        optax.adam(rate), mask=found.mask(), learning_rate=rate, scale_offset="decay", rate=1e-3
    ),
}


def gauges(params, state, labels):
    logits, activations = apply(params, x)
    motion, rates = nj.weight_motion(state), nj.effective_learning_rates(state)
    last = activations["hidden_1"][:probe]
    return {
        "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels),
        "norm / initial norm": motion["hidden_1/kernel"].growth,
        "effective learning rate": rates["hidden_1/kernel"],
        "rotation per step": motion["hidden_1/kernel"].rotation,
        "dead units": nj.diagnostics.dead_units(last),
        "dormant units": nj.diagnostics.dormant_units(last),
        "effective rank": nj.diagnostics.effective_rank(last),
    }


@functools.partial(jax.jit, static_argnums=0)
def task(tx, params, state, labels):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, labels), state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, state), _ = jax.lax.scan(step, (params, state), None, length=steps)
    return params, state, gauges(params, state, labels)


# %%
targets, seen = rng.integers(0, 10, (tasks, len(x))), {}
for name, tx in optimizers.items():
    params, state, rows = start, tx.init(start), []
    for labels in targets:
        params, state, row = task(tx, params, state, labels)
        rows.append(jax.device_get(row))
    seen[name] = {gauge: np.array([row[gauge] for row in rows]) for gauge in rows[0]}

# %% [markdown]
# ## The dashboard

# %%
drawn, panels = plt.subplots(2, 4, figsize=(13, 5), layout="constrained")
for panel, gauge in zip(panels.flat, next(iter(seen.values())), strict=False):
    for name, values in seen.items():
        panel.plot(values[gauge], label=name)
    panel.set_title(gauge, fontsize=10)
    panel.grid(alpha=0.3)
panels.flat[-1].axis("off")
panels.flat[-1].legend(*panels.flat[0].get_legend_handles_labels(), loc="center")
for panel in panels[1]:
    panel.set_xlabel("task")
plt.show()

# %% [markdown]
# **How to read it.** The free weights grow and their effective rate falls although the schedule is constant; the projected
# ones hold both. One seed, one rate and one small network: for a comparison with intervals and swept rates run
# `python -m experiments plasticity`.

# %%
free, held = seen.values()
assert free["norm / initial norm"][-1] > 1.2
assert free["effective learning rate"][-1] < free["effective learning rate"][0]
assert np.ptp(held["norm / initial norm"]) < 1e-4
assert np.ptp(held["effective learning rate"]) < 1e-6
for name, values in seen.items():
    print(
        f"{name:>24}: accuracy on the first five tasks {values['accuracy'][:5].mean():.3f}, on the last five "
        f"{values['accuracy'][-5:].mean():.3f}"
    )
