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
# # Normalize-and-Project in five minutes
#
# A weight that feeds a normalization does not care about its own scale. Training lets it grow all the same, and every
# growth shrinks the effect of the next step: the **effective learning rate** decays although the schedule says
# nothing of it. *Normalize-and-Project* (NaP, [Lyle et al. 2024](https://arxiv.org/abs/2407.01800)) puts the weight back to
# its initial norm after each update, so that the schedule means what it says.
#
# This notebook shows the four facts behind it, each one measured as you run it:
#
# 1. what an effective learning rate is,
# 2. the law by which norms grow, $\lVert W_t\rVert / r = \sqrt{1 + a^2 t}$,
# 3. that a projected network *is* the free network with another learning rate, exactly,
# 4. what this does to a network that must keep learning new labels for the same digits.

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

import normjax as nj

jax.config.update("jax_enable_x64", True)  # the exact statements below are checked to 12 digits

# %% [markdown]
# ## 1. What an effective learning rate is
#
# Let $f$ see its weight only through a norm, so that $f(cW) = f(W)$. Then the gradient at $cW$ is $1/c$ times the one at
# $W$: the larger the weight, the smaller the gradient, and the same step turns a longer vector by less. Both together make
# the same nominal rate $c^2$ times weaker for SGD, and $c$ times weaker for an optimizer whose steps have a fixed size
# (Adam, nearly).

# %%
rng = np.random.default_rng(0)
x = jnp.asarray(rng.standard_normal((64, 8)))
target = jnp.asarray(rng.standard_normal((64, 16)))
weight = jnp.asarray(rng.standard_normal((8, 16)) / np.sqrt(8))


def loss(weight):
    hidden = nj.layer_normalize(x @ weight, epsilon=0.0)
    return jnp.mean((jnp.tanh(hidden) - target) ** 2)


@jax.jit
def step_of(weight, rate):
    """Loss, norm of the gradient, and angle in degrees by which one step of gradient descent turns the weight."""
    value, gradient = jax.value_and_grad(loss)(weight)
    stepped = weight - rate * gradient
    cosine = jnp.vdot(weight, stepped) / (jnp.linalg.norm(weight) * jnp.linalg.norm(stepped))
    return value, jnp.linalg.norm(gradient), jnp.degrees(jnp.arccos(cosine))


print("scale   loss      |gradient|   degrees turned by a step of 1")
for c in (1.0, 2.0, 4.0, 8.0):
    value, gradient, angle = step_of(c * weight, 1.0)
    print(f"{c:4.0f}   {value:.6f}   {gradient:.6f}   {angle:.4f}")
print("\nscale 8 with the rate times 64:", f"{step_of(8 * weight, 64.0)[2]:.4f} degrees")

# %% [markdown]
# The loss does not see the scale. The angle falls by $c^2$, and multiplying the rate by $c^2$ restores it exactly.
#
# ## 2. The law of growth
#
# The gradient of a scale-invariant function is orthogonal to the weight. By Pythagoras each step can only make it longer:
# with steps of size $a r$ the norm after $t$ steps is $r\sqrt{1 + a^2 t}$.

# %%
a, steps, radius = 0.1, 2000, float(np.linalg.norm(weight))


def tangential_step(w, direction):
    direction -= w * jnp.vdot(direction, w) / jnp.vdot(w, w)
    w = w + a * radius * direction / jnp.linalg.norm(direction)
    return w, jnp.linalg.norm(w) / radius


_, growth = jax.lax.scan(tangential_step, weight, rng.standard_normal((steps, *weight.shape)))
law = np.sqrt(1 + a**2 * np.arange(1, steps + 1))
print(f"after {steps} steps: measured {growth[-1]:.6f}, law {law[-1]:.6f}")
assert np.allclose(growth, law, rtol=1e-10)

figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(law, color="0.75", linewidth=5, label=r"$\sqrt{1 + a^2 t}$")
axis.plot(growth, color="tab:blue", label=r"$\|W_t\|/r$")
axis.plot(1 / np.asarray(growth), color="tab:red", label="effective rate of Adam-like steps, relative")
axis.set(xlabel="step", title="Norms grow, and the effective learning rate decays unseen")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 3. The exact twin
#
# Train one network freely. Train a second one with `nj.nap`, which projects the weight back to its initial norm $r$ after
# every step, and give it the learning rate that the first one *effectively* had, $\eta\,(r/\lVert W\rVert)^2$. For SGD the
# two are the same function at every step. For Adam the factor is $r/\lVert W\rVert$, and they are the same if the moments
# are rescaled along with the weight (`rescale_moments=True`): the paper's statement that they are identical by construction
# needs that.


# %%
def run_twins(optimizer, rate, power, **options):
    """Largest difference between the losses of a free run and of its projected twin."""
    free_tx = optax.inject_hyperparams(optimizer, hyperparam_dtype=jnp.float64)(learning_rate=rate)
    twin_tx = nj.nap(free_tx, mask={"kernel": True}, **options)

    def step(carry, _):
        (free, free_state), (twin, twin_state) = carry
        ratio = jnp.linalg.norm(twin["kernel"]) / jnp.linalg.norm(free["kernel"])
        twin_state.inner_state.hyperparams["learning_rate"] = rate * ratio**power
        losses = loss(free["kernel"]), loss(twin["kernel"])
        gradients = jax.grad(lambda p: loss(p["kernel"]))
        updates, free_state = free_tx.update(gradients(free), free_state, free)
        free = optax.apply_updates(free, updates)
        updates, twin_state = twin_tx.update(gradients(twin), twin_state, twin)
        twin = optax.apply_updates(twin, updates)
        return ((free, free_state), (twin, twin_state)), jnp.stack(losses)

    params = {"kernel": weight}
    start = ((params, free_tx.init(params)), (params, twin_tx.init(params)))
    (end, _), losses = jax.lax.scan(step, start, None, length=200)
    grown = jnp.linalg.norm(end[0]["kernel"]) / jnp.linalg.norm(weight)
    return float(jnp.max(jnp.abs(losses[:, 0] - losses[:, 1]))), float(grown)


def adam(learning_rate):
    return optax.adam(learning_rate, eps=1e-30)  # epsilon compares a gradient with a fixed size: it sees the scale


for name, optimizer, rate, power, options, exact in (
    ("SGD", optax.sgd, 10.0, 2, {}, True),
    ("Adam, moments rescaled", adam, 0.05, 1, {"rescale_moments": True}, True),
    ("Adam, moments as they are", adam, 0.05, 1, {}, False),
):
    difference, grown = run_twins(optimizer, rate, power, **options)
    print(f"{name:26s} free norm grew {grown:5.2f}x, largest difference of the losses {difference:.1e}")
    assert not exact or difference < 1e-10

# %% [markdown]
# ## 4. Digits whose labels change
#
# 512 scikit-learn digits get new random labels every 150 steps. A network that keeps its ability to learn memorises the
# sixtieth set of labels as fast as the first. Two hidden layers of 64, layer normalization before every ReLU, Adam with a
# constant rate; three seeds at once. `nj.nap` projects the hidden weights, and pulls the learned scales and biases of the
# norms towards (1, 0): without that the scales take over the growth.

# %%
from sklearn.datasets import load_digits

images = jnp.asarray(load_digits().data[:512] / 16.0 - 0.3, jnp.float32)
TASKS, STEPS, BATCH, RATE, SEEDS = 60, 150, 64, 3e-3, 3
norm = nj.layer_norm()


def init(rng):
    params = {}
    for name, (n_in, n_out) in {"hidden_0": (64, 64), "hidden_1": (64, 64), "readout": (64, 10)}.items():
        params[name] = {"kernel": (rng.standard_normal((n_in, n_out)) * np.sqrt(2 / n_in)).astype(np.float32)}
        if name != "readout":
            params[f"{name}_norm"] = norm.init(None, jax.ShapeDtypeStruct((1, n_out), jnp.float32))[0]
    return params


def logits(params, h):
    for name in ("hidden_0", "hidden_1"):
        h, _ = norm.apply(params[f"{name}_norm"], {}, h @ params[name]["kernel"], train=True)
        h = jax.nn.relu(h)
    return h @ params["readout"]["kernel"]


def train(params, labels, batches, tx):
    """Online accuracy, hidden norm growth and effective learning rate of every task."""

    def task(carry, drawn):
        labels, batches = drawn

        def step(carry, batch):
            params, state = carry

            def objective(params):
                out = logits(params, images[batch])
                hit = jnp.mean(jnp.argmax(out, -1) == labels[batch])
                return optax.softmax_cross_entropy_with_integer_labels(out, labels[batch]).mean(), hit

            gradient, hit = jax.grad(objective, has_aux=True)(params)
            updates, state = tx.update(gradient, state, params)
            return (optax.apply_updates(params, updates), state), hit

        carry, hits = jax.lax.scan(step, carry, batches)
        motion = nj.weight_motion(carry[1])["hidden_1/kernel"]
        rate = nj.effective_learning_rates(carry[1])["hidden_1/kernel"]
        return carry, {"accuracy": hits.mean(), "growth": motion.growth, "rate": rate}

    _, history = jax.lax.scan(task, (params, tx.init(params)), (labels, batches))
    return history


hidden = nj.hidden_weights(readout=("readout",))
arms = {
    "layer norm": optax.chain(optax.adam(RATE), nj.track_effective_lr(RATE, mask=hidden)),
    "NaP": nj.nap(optax.adam(RATE), mask=hidden, learning_rate=RATE, scale_offset="decay", rate=1e-3),
}
start = jax.tree.map(lambda *seeds: np.stack(seeds), *(init(rng) for _ in range(SEEDS)))
labels = rng.integers(0, 10, (SEEDS, TASKS, len(images)))
batches = rng.integers(0, len(images), (SEEDS, TASKS, STEPS, BATCH))
runs = {name: jax.jit(jax.vmap(functools.partial(train, tx=tx))) for name, tx in arms.items()}
results = {name: jax.device_get(run(start, labels, batches)) for name, run in runs.items()}

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.2), layout="constrained")
panels = (("accuracy", "online accuracy"), ("growth", "norm of a hidden weight / initial"), ("rate", "effective rate"))
for axis, (key, title) in zip(axes, panels, strict=True):
    for (name, history), color in zip(results.items(), ("tab:red", "tab:blue"), strict=True):
        axis.plot(history[key].T, color=color, alpha=0.25, linewidth=1)
        axis.plot(history[key].mean(0), color=color, label=name, linewidth=2)
    axis.set(title=title, xlabel="task")
axes[0].legend(frameon=False)
plt.show()
for name, history in results.items():
    first, last = history["accuracy"][:, :8].mean(), history["accuracy"][:, -8:].mean()
    print(
        f"{name:11s} online accuracy {first:.3f} -> {last:.3f}, "
        f"norm {history['growth'][:, -1].mean():.2f}x, effective rate {history['rate'][:, -1].mean():.2e}"
    )

# %% [markdown]
# The norms of the free network grow and its effective rate decays; under NaP both stay where they were, to rounding.
#
# Read the result with care. Three seeds and one learning rate are a demonstration, not evidence:
# `python -m experiments plasticity` sweeps the rate of every arm and gives confidence intervals. It also reports what NaP
# does *not* do: pulling all weights towards their initial values (L2-init) is a strong baseline, and a constant rate
# without any decay is not always what a task wants. `nj.optim.norm_growth_schedule` gives the old, implicit decay back
# as an explicit schedule.
