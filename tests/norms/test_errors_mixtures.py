"""Bad input to the mixing batch norms: each call raises, and the message states what came and what was expected."""

import jax.numpy as jnp
import pytest

import normjax as nj

X = jnp.ones((2, 3, 4))


def apply(norm, **kwargs):
    params, state = norm.init(None, X)
    return norm.apply(params, state, X, train=True, **kwargs)


BALANCE = nj.adaptive_balance_norm(2)
CALLS = {
    "no steps": (lambda: nj.prep_batch_norm(total_steps=0), ValueError, "total_steps=0"),
    "negative warm-up": (lambda: nj.prep_batch_norm(warmup_steps=-1), ValueError, "warmup_steps=-1"),
    "no ticks": (lambda: nj.prep_batch_norm(ticks_every=0), ValueError, "ticks_every=0"),
    "first weight": (lambda: nj.prep_batch_norm(initial_weight=2.0), ValueError, r"\[0, 1\].*2.0"),
    "rep momentum": (lambda: nj.rep_batch_norm(momentum=-0.1), ValueError, "-0.1"),
    "rep without a batch": (lambda: nj.rep_batch_norm().init(None, jnp.ones(3)), ValueError, "rank 1"),
    "continual groups": (lambda: nj.continual_norm(num_groups=3).init(None, X), ValueError, r"num_groups=3.*\[1, 2, 4"),
    "options of no one": (
        lambda: nj.batch_channel_norm(batch=nj.batch_norm(), momentum=0.5),
        ValueError,
        r"\['momentum'\].*own factory",
    ),
    "scale per group": (
        lambda: nj.group_normalize(X, jnp.ones(4), num_groups=2, per_group=True),
        ValueError,
        r"scale.*\(4,\).*\(2,\)",
    ),
    "moving speed": (lambda: nj.estimated_batch_norm(moving_speed=1.5), ValueError, "1.5"),
    "tasks": (lambda: nj.adaptive_balance_norm(0), ValueError, "num_tasks=0"),
    "kappa": (lambda: nj.adaptive_balance_norm(2, kappa=-1.0), ValueError, "kappa=-1.0"),
    "tasks of floats": (lambda: apply(BALANCE, task=jnp.ones(2)), TypeError, "float32"),
    "a task too many": (lambda: apply(BALANCE, task=jnp.ones(3, jnp.int32)), ValueError, r"\(2, 3, 4\).*\(3,\)"),
    "features first": (
        lambda: nj.adaptive_balance_normalize(X, jnp.ones(2, jnp.int32), jnp.ones(2), feature_axes=0),
        ValueError,
        "first axis",
    ),
    "renorm momentum": (lambda: nj.batch_renorm(renorm_momentum=3.0), ValueError, "renorm_momentum=3.0"),
    "running stddev": (
        lambda: nj.batch_renormalize(X, jnp.ones(4), jnp.ones(3)),
        ValueError,
        r"stddev.*\(3,\).*\(4,\)",
    ),
    "logits": (lambda: nj.switch_normalize(X, jnp.ones(3), jnp.ones(2)), ValueError, r"var_logits.*\(3,\).*\(2,\)"),
    "switch without a batch": (lambda: nj.switch_norm(feature_axis=0).init(None, X), ValueError, "feature_axis=0"),
    "switch momentum": (lambda: nj.switch_norm(momentum=2.0), ValueError, "2.0"),
    "ratio": (lambda: nj.instance_batch_norm(ratio=1.5), ValueError, "ratio=1.5"),
    "nothing for one half": (lambda: nj.instance_batch_norm(ratio=0.1).init(None, X), ValueError, r"\(0, 4\)"),
}


@pytest.mark.parametrize("name", CALLS)
def test_message(name):
    call, error, pattern = CALLS[name]
    with pytest.raises(error, match=pattern):
        call()
