"""What a placement says of a stack is what the stack does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax.models import AttentionKind, Transformer, TransformerConfig

NORM = nj.rms_norm(epsilon=0.0)
PLACES = {
    "pre": nj.placements.pre,
    "post": nj.placements.post,
    "peri": nj.placements.peri,
    "reordered": nj.placements.reordered,
    "mix": functools.partial(nj.placements.mix, num_post=1),
    "deep": nj.placements.deep,
    "sub": nj.placements.sub,
    "layer norm scaling": nj.placements.layer_norm_scaling,
    "ResiDual": nj.placements.resi_dual,
    "hybrid": nj.placements.hybrid,
    "hybrid star": functools.partial(nj.placements.hybrid, star=True),
    "KEEL": nj.placements.keel,
    "Siamese": nj.placements.siamese,
    "normalized residual": nj.placements.normalized_residual,
    "layer scale": nj.placements.layer_scale,
    "gated residual": nj.placements.gated_residual,
    "parallel": nj.placements.parallel,
}
LAYERS = 2


def config_of(place, **options):
    sizes = {"layers": LAYERS, "features": 8, "heads": 2, "hidden": 12}
    return TransformerConfig(**sizes | {"placement": place(NORM)} | options)


def gradients(config, x, cotangent):
    graph, params, rest = nnx.split(Transformer(config, rngs=nnx.Rngs(0)), nnx.Param, ...)

    @jax.jit
    def run(params, x):
        return jax.grad(lambda p: jnp.sum(jnp.sin(nnx.merge(graph, p, rest)(x)) * cotangent))(params)

    return params, run(params, x)


def cosine(weights, gradient, granularity, heads):
    """How much of the gradient is along the weights, the worst of the parts that are said to be invariant alone."""
    w, g = (np.asarray(a, np.float64) for a in (weights, gradient))
    parts = [
        (a.reshape(a.shape[0], heads, -1).swapaxes(0, 1) if granularity == "per head" else a[None]) for a in (w, g)
    ]
    w, g = (part.reshape(part.shape[0], -1) for part in parts)
    return np.max(np.abs((w * g).sum(1)) / (np.linalg.norm(w, axis=1) * np.linalg.norm(g, axis=1)))


CASES = [
    *((name, {}) for name in PLACES),
    *((name, {"qk_norm": NORM}) for name in ("pre", "peri")),
    ("pre", {"qk_norm": NORM, "qk_norm_over": "projection"}),
    *((name, {"gated": True}) for name in ("peri", "sub")),
    *((name, {"activation": jax.nn.relu}) for name in ("peri", "sub")),
    ("peri", {"activation": jax.nn.relu, "gated": True}),
]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{'-'.join(o)}" for n, o in CASES])
def test_scale_invariance_is_as_stated(name, options, rng):
    config = config_of(PLACES[name], kinds=(AttentionKind(causal=False),), **options)
    x, cotangent = (jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32) for _ in range(2))
    params, found = gradients(config, x, cotangent)
    said = {"gated": config.gated, "homogeneous": config.activation is jax.nn.relu}
    qk = config.qk_norm_over if config.qk_norm else None
    for depth in range(1, LAYERS + 1):
        for kind in ("attention", "ffn"):
            step = config.placement.step(kind, depth, LAYERS)
            stated = nj.placements.scale_invariant_matrices(step, kind, **said, qk_norm=qk)
            block = [t["blocks"][depth - 1][kind]["branch"] for t in (params, found)]
            for matrix in ("query", "key", "value", "out") if kind == "attention" else ("gate", "up", "down"):
                if matrix == "gate" and not config.gated:
                    continue
                weights, gradient = (b[matrix]["kernel"][...] for b in block)
                along = cosine(weights, gradient, stated.get(matrix, "joint"), config.heads)
                # Euler: the gradient of a scale-invariant function is orthogonal to its argument.
                assert (along < 1e-5) == (matrix in stated), f"{kind} {depth} {matrix}: cos {along:.2g}, said {stated}"


def test_depth_rules_and_errors():
    place = nj.placements.mix(NORM, post_share=0.25)
    assert [place.step("ffn", d, 12).after for d in (1, 3, 4)] == [True, True, False]
    with pytest.raises(ValueError, match="depth=3 is outside a stack of 2 layers"):
        place.step("ffn", 3, 2)
    with pytest.raises(ValueError, match="kind='mlp' is unknown"):
        place.step("mlp", 1, 2)
    with pytest.raises(ValueError, match="post_share"):
        nj.placements.mix(NORM, post_share=1.5)
    with pytest.raises(ValueError, match="needs before=True"):
        nj.placements.Step(residual=True)


def test_published_constants_of_initial_values():
    deep, sub = nj.placements.deep(NORM), nj.placements.sub(NORM)
    assert deep.init_scale("query", 18) == 1
    assert deep.init_scale("down", 18) == pytest.approx(144**-0.25)
    assert sub.init_scale("value", 12) == pytest.approx(np.log(24) ** 0.5)
    # What the configuration multiplies is what the matrices have.
    plain, scaled = (
        Transformer(config_of(p), rngs=nnx.Rngs(0)).blocks[0].ffn.branch.down.kernel[...]
        for p in (nj.placements.post, nj.placements.deep)
    )
    np.testing.assert_allclose(scaled, plain * (8 * LAYERS) ** -0.25, rtol=1e-6)
