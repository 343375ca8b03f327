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
# # From layer norm to RMS norm, exactly
#
# A Pre-LN transformer does not see the mean of its residual stream: everything that reads the stream is a layer norm, which
# subtracts it. So the mean may be taken out of the *weights* that write the stream, once, and layer norm becomes RMS norm
# with the same epsilon ([Jiang et al. 2023](https://arxiv.org/abs/2305.14858)). One entry of a stream without mean is
# redundant; leave it out, and RMS norm becomes CRMSNorm. Nothing is approximated or trained again.
#
# This notebook trains a small language model, converts it, and measures each claim as you run it:
#
# 1. the three forms compute the same logits,
# 2. what is left of the norms folds into the matrices behind them,
# 3. the converted stream is easier on rounding,
# 4. a model may be trained in the second form with the gradients of the first.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("normjax") is None:  # on a hosted notebook
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "normjax[experiments]"], check=True)

# %%
import dataclasses
import pydoc_data.topics

import jax
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

import normjax as nj
from normjax import fold

# Small programs that run once: most of the time is compilation.
jax.config.update("jax_disable_most_optimizations", True)

# %% [markdown]
# ## A trained model
#
# One block on the bytes of Python's own documentation, as GPT-2 would do it: layer norms with gain and bias before each
# sublayer and at the end. A hundred steps are enough for gains, biases and means to be far from where they started.

# %%
text = np.frombuffer("".join(pydoc_data.topics.topics.values()).encode("ascii", "replace"), np.uint8)
config = nj.models.presets.gpt2(layers=1, features=32, heads=4, hidden=64)
model = nnx.jit(lambda: nj.models.LanguageModel(config, vocabulary=128, tied=False, max_tokens=32, rngs=nnx.Rngs(0)))()
optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
starts = np.random.default_rng(0).integers(0, len(text) - 33, (100, 16))
batches = text[starts[..., None] + np.arange(33)].astype(np.int32)


def loss_of(model, batch):
    logits = model(batch[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[:, 1:]).mean()


@nnx.jit
def step(model, optimizer, batch):
    loss, gradients = nnx.value_and_grad(loss_of)(model, batch)
    optimizer.update(model, gradients)
    return loss


losses = [float(step(model, optimizer, batch)) for batch in batches]
print(f"loss {losses[0]:.2f} -> {np.mean(losses[-10:]):.2f}")

# %% [markdown]
# ## 1. Three forms, one function
#
# `to_pre_rms` centres the embeddings and the output matrices. `to_pre_crms` also folds the norms' gains and biases away and
# drops the last feature of the stream. Both work in float64 on the host and round once.

# %%
tokens = batches[0, :, :-1]
rms, crms = fold.to_pre_rms(model), fold.to_pre_crms(model)
folded, report = fold.fold_model(rms, drop=True)
forms = {"Pre-RMS": rms, "Pre-RMS, folded": folded, "Pre-CRMS": crms}
run = nnx.jit(lambda model, tokens: model(tokens))
print(f"{'form':16s} {'width':>5s} {'parameters':>10s} {'relative error':>15s} {'top-1 agreement':>16s}")
for name, form in {"Pre-LN": model, **forms}.items():
    result = fold.verify(lambda t: run(model, t), lambda t, form=form: run(form, t), tokens, tolerance=1e-5)
    assert result.passed, name
    (c,) = result.outputs.values()
    size = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(form)))
    print(f"{name:16s} {form.stack.config.features:5d} {size:10d} {c.relative_error:15.1e} {c.top1_agreement:16.1%}")

# %% [markdown]
# The errors are those of float32. That they are nothing else shows in float64, where the same model agrees to twelve digits
# and more (`tests/fold` holds every placement to that).
#
# ## 2. What folds, and what does not
#
# A plan says for each norm what it goes into, or why it stays. It is data: print it, store it as JSON, or write one for
# a model of your own.

# %%
for edge in fold.plan_for(model).edges:
    print(f"{edge.name:34s} -> {', '.join(layer.path.split('/')[-1] for layer in edge.layers)}")
peri = dataclasses.replace(config, placement=nj.placements.peri(nj.rms_norm()))
other = nnx.eval_shape(lambda: nj.models.LanguageModel(peri, vocabulary=128, rngs=nnx.Rngs(0)))
for refusal in fold.plan_for(other).refusals[:1] + fold.plan_for(other).refusals[-1:]:
    print(f"{refusal.path} stays: {refusal.reason}")

# %% [markdown]
# ## 3. Easier on rounding
#
# Layer norm subtracts a mean; if that is large beside the deviation, what is left has lost digits. The stream of the
# converted model has no mean to lose them to. Below, the same vectors with a growing mean, in float32: layer norm as Flax
# computes it by default (from the mean of the squares), layer norm from the deviations, and RMS norm of the vectors that
# were centred beforehand.

# %%
rng = np.random.default_rng(1)
plain = rng.standard_normal((64, 1024))
offsets = 10.0 ** np.arange(-1, 4.5, 0.5)
fast = nnx.LayerNorm(1024, rngs=nnx.Rngs(0))
errors = {"layer norm, Flax's default": [], "layer norm, normjax": [], "RMS norm of the centred": []}


@jax.jit
def normalized(x, deviation):
    return fast(x), nj.layer_normalize(x), nj.rms_normalize(deviation)


for offset in offsets:
    x = plain + offset
    deviation = x - x.mean(-1, keepdims=True)
    exact = deviation / np.sqrt(np.mean(deviation**2, -1, keepdims=True) + 1e-6)
    results = normalized(np.float32(x), np.float32(deviation))
    for values, y in zip(errors.values(), results, strict=True):
        values.append(np.linalg.norm(np.asarray(y, np.float64) - exact) / np.linalg.norm(exact))
figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
for name, values in errors.items():
    axis.loglog(offsets, values, marker="o", label=name)
axis.set(xlabel="mean / deviation", ylabel="relative error")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 4. Training in the second form
#
# The centring is linear, so it can be part of the forward pass: `rms_reparametrization` builds the RMS model from Pre-LN
# parameters, and differentiating through it gives Pre-LN's own gradients. The mean is taken out of the weights once a step
# and not out of every activation.

# %%
build, state = fold.rms_reparametrization(model), nnx.state(model)
graph = nnx.graphdef(model)


@jax.jit
def both(state):
    plain = jax.grad(lambda s: loss_of(nnx.merge(graph, s), batches[0]))(state)
    return plain, jax.grad(lambda s: loss_of(build(s), batches[0]))(state)


expected, found = (np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(g)]) for g in jax.device_get(both(state)))
print(f"relative difference of the gradients: {np.linalg.norm(found - expected) / np.linalg.norm(expected):.1e}")

# %% [markdown]
# What it is worth depends on the machine: on a CPU the folded RMS form took 4 % less time than layer norm in our
# measurement and the compressed form 2 % more, on a TPU the norms hide behind the matrices
# (`python -m experiments inference_cost`, `docs/folding.md`). The compressed width, d - 1, is awkward for hardware that likes
# multiples of 128. What is certain is that nothing else changes.
