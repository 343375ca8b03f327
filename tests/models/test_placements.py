"""What a placement says of a stack is what the stack does."""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax.diagnostics.alignment import layouts, sizes
from normjax.diagnostics.invariance import THRESHOLD, ScaleInvariance, WeightInvariance
from normjax.models import AttentionKind, Transformer, TransformerConfig
from normjax.optim._paths import flatten

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


def drawn(config):
    """A stack with random parameters, gates that start at zero among them; nothing is compiled to initialize it."""
    graph, params = nnx.split(nnx.eval_shape(lambda: Transformer(config, rngs=nnx.Rngs(0))))
    rng = np.random.default_rng(1)
    return graph, jax.tree.map(lambda p: jnp.asarray(0.4 * rng.standard_normal(p.shape), p.dtype), params)


HEADS = {f"{name}/kernel": 2 for name in ("query", "key", "value")}
# One program for the matrices of all placements.
cosines = jax.jit(functools.partial(nj.diagnostics.gradient_cosines, heads=HEADS))


def measured(config, x, cotangent):
    """What `scale_invariance` finds, from gradients that are not one program."""
    graph, params = drawn(config)

    def loss(params, x):
        return jnp.sum(jnp.sin(nnx.merge(graph, params)(x)) * cotangent)

    # Operation by operation: all placements consist of the same ones, which are compiled once.
    gradients = jax.grad(loss)(params, x)
    weights, slopes = (
        {"/".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(tree) if v.ndim == 2}
        for tree in (params, gradients)
    )
    read = layouts(weights, weights, HEADS, None, None)
    found = {
        path: WeightInvariance(
            weights[path].shape,
            read[path],
            {g: np.nanmax(np.abs(c)) for g, c in by.items()},
            sizes(weights[path].shape, read[path]),
            silent={},
        )
        for path, by in jax.device_get(cosines(weights, slopes)).items()
    }
    return ScaleInvariance(found, THRESHOLD, flatten(weights))


# Options of a block change one placement as any other: every second of them by day.
NIGHTLY = os.environ.get("HYPOTHESIS_PROFILE") == "nightly"
OPTIONS = [
    *((name, {"qk_norm": NORM}) for name in ("pre", "peri")),
    ("pre", {"qk_norm": NORM, "qk_norm_over": "projection"}),
    *((name, {"gated": True}) for name in ("peri", "sub")),
    *((name, {"activation": jax.nn.relu}) for name in ("peri", "sub")),
    ("peri", {"activation": jax.nn.relu, "gated": True}),
]
CASES = [*((name, {}) for name in PLACES), *OPTIONS[:: 1 if NIGHTLY else 2]]


@pytest.mark.parametrize(("name", "options"), CASES, ids=[f"{n}-{'-'.join(o)}" for n, o in CASES])
def test_scale_invariance_is_as_stated(name, options, rng):
    config = config_of(PLACES[name], kinds=(AttentionKind(causal=False),), **options)
    x, cotangent = (jnp.asarray(rng.standard_normal((2, 5, 8)), jnp.float32) for _ in range(2))
    found = measured(config, x, cotangent)
    said = {"gated": config.gated, "homogeneous": config.activation is jax.nn.relu}
    qk = config.qk_norm_over if config.qk_norm else None
    for depth in range(1, LAYERS + 1):
        for kind in ("attention", "ffn"):
            step = config.placement.step(kind, depth, LAYERS)
            stated = nj.placements.scale_invariant_matrices(step, kind, **said, qk_norm=qk)
            for matrix in ("query", "key", "value", "out") if kind == "attention" else ("gate", "up", "down"):
                if matrix == "gate" and not config.gated:
                    continue
                path = f"blocks/{depth - 1}/{kind}/branch/{matrix}/kernel"
                assert found.granularity(path) == stated.get(matrix), f"{path}, said {stated}:\n{found}"


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
    down = lambda place: Transformer(config_of(place), rngs=nnx.Rngs(0)).blocks[0].ffn.branch.down.kernel[...]
    plain, scaled = jax.jit(lambda: [down(place) for place in (nj.placements.post, nj.placements.deep)])()
    np.testing.assert_allclose(scaled, plain * (8 * LAYERS) ** -0.25, rtol=1e-6)
