"""The architectures that take their norm as an argument: under jit, with padding, with other norms, with bad input.

Their numbers are compared with recorded ones in tests/golden, CSWin's aside.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from normjax import models

EPS32 = float(np.finfo(np.float32).eps)
SRC, DST = np.array([0, 1, 2, 3, 4, 0, 2]), np.array([1, 2, 3, 4, 0, 3, 0])
FIT = {"features": 8, "latent_features": 4, "groups": 2, "tokens": 3, "latents": 2, "heads": 2, "latent_heads": 1}
WIDE = {"depth": 2, "heads": 2, "mlp_features": 8}


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


STREAMS = (normal(2, 3, 8), normal(2, 3, 8, seed=1), normal(2, 8, seed=2))
# Module, its arguments, inputs, and shapes of the outputs.
CASES = {
    "graph": (models.GraphTransformerLayer, (8, 2), {}, (normal(5, 8), SRC, DST), (5, 8)),
    "edge graph": (
        models.EdgeGraphTransformerLayer,
        (8, 2),
        {},
        (normal(5, 8), normal(7, 8), SRC, DST),
        [(5, 8), (7, 8)],
    ),
    "wide net": (models.WideNet, (8,), WIDE, (normal(2, 3, 8),), [(2, 3, 8), ()]),
    "streams": (models.HyperConnection, (6, 3), {}, (normal(2, 3, 6),), [(2, 6), (2, 3), (2, 3, 3)]),
    "siamese DiT": (models.SiameseDiTBlock, (8, 2), {"index": 1}, STREAMS, [(2, 3, 8), (2, 3, 8)]),
    "FIT": (models.FIT, (5,), FIT, (normal(2, 2, 3, 5),), [(2, 2, 3, 8), (2, 2, 2, 4)]),
    "ELA": (models.EfficientLocalAttention, (16,), {}, (normal(2, 4, 3, 16),), (2, 4, 3, 16)),
    "PSA": (models.SequentialPolarizedAttention, (8,), {}, (normal(2, 4, 3, 8),), (2, 4, 3, 8)),
    "MEDFE": (models.FeatureEqualization, (16,), {}, (normal(2, 4, 3, 16),), (2, 4, 3, 16)),
    "CSWin": (models.CSWinBlock, (8, 2), {"stripe": 2}, (normal(2, 4, 6, 8),), (2, 4, 6, 8)),
}
over_cases = pytest.mark.parametrize("name", CASES)


def built(cls, *args, **options):
    """A module with random parameters; its own initializers, compiled one by one, would take seconds."""
    graph, state = nnx.split(nnx.eval_shape(lambda: cls(*args, **options, rngs=nnx.Rngs(0))))
    flat = dict(nnx.to_flat_state(state))
    for seed, (path, variable) in enumerate(flat.items()):
        noise = 0.3 * normal(*variable.get_value().shape, seed=seed)
        flat[path] = variable.replace(jnp.asarray(np.abs(1 + noise) if path[-1] in ("scale", "var") else noise))
    return nnx.merge(graph, nnx.from_flat_state(flat))


@nnx.jit
def applied(module, *args, **masks):
    return module(*args, **masks)


@over_cases
def test_works_under_jit(name):
    cls, args, options, inputs, shapes = CASES[name]
    outputs = jax.device_get(applied(built(cls, *args, **options), *inputs))
    assert jax.tree.map(np.shape, outputs) == (tuple(shapes) if isinstance(shapes, list) else shapes)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(outputs))


@over_cases
def test_norm_is_an_argument(name):
    cls, args, options, *_ = CASES[name]
    norm = nj.chain(nj.rms_norm(use_scale=False), nj.layer_scale())
    counted = []
    for named in ({}, {"norm": norm}):
        module = nnx.eval_shape(lambda named=named: cls(*args, **options, **named, rngs=nnx.Rngs(0)))
        counted.append([path for path, _ in nnx.to_flat_state(nnx.state(module)) if path[-2:] == ("1", "scale")])
        assert not [path for path, v in nnx.to_flat_state(nnx.state(module)) if v.get_value().weak_type]
    assert not counted[0]
    assert counted[1]


def padded(a, rows, value):
    return np.concatenate([a, np.full((rows, *a.shape[1:]), value, a.dtype)])


@pytest.mark.parametrize("form", ["graph", "edge graph"])
def test_padded_nodes_and_edges_change_nothing(form):
    cls, args, options, inputs, _ = CASES[form]
    *features, src, dst = inputs
    more = [padded(a, rows, np.nan) for a, rows in zip(features, (3, 2), strict=False)]
    masks = {"node_mask": np.arange(8) < 5, "edge_mask": np.arange(9) < 7}
    graphs = [(features, src, dst, {}), (more, padded(src, 2, 6), padded(dst, 2, 1), masks)]

    @nnx.jit
    def run(layer, features, src, dst, masks):
        def loss(layer):
            outputs = jax.tree.leaves(layer(*features, src, dst, **masks))
            outputs = [y[:rows] for y, rows in zip(outputs, (5, 7), strict=False)]
            return sum(jnp.sum(y * normal(*y.shape, seed=9)) for y in outputs), outputs

        grads, outputs = nnx.grad(loss, has_aux=True)(layer)
        return outputs, grads, nnx.state(layer, nnx.BatchStat)

    plain, masked = (run(built(cls, *args, **options), *graph) for graph in graphs)
    # Sums of other lengths; a gradient that is zero but for rounding is so in units of the others.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e3 * EPS32, atol=1e3 * EPS32), plain, masked)


def test_padded_tokens_change_nothing():
    net, x = built(models.WideNet, 8, **WIDE), normal(2, 3, 8)
    y, loss = applied(net, x)
    more = np.concatenate([x, np.full((2, 2, 8), np.nan, np.float32)], axis=1)
    y_masked, loss_masked = applied(net, more, mask=np.broadcast_to(np.arange(5) < 3, (2, 5)))
    np.testing.assert_allclose(y_masked[:, :3], y, rtol=100 * EPS32, atol=100 * EPS32)
    np.testing.assert_allclose(loss_masked, loss, rtol=100 * EPS32)


def test_node_without_edges_keeps_its_own_features():
    layer = built(models.GraphTransformerLayer, 8, 2, norm=nj.layer_norm())
    x = normal(5, 8)

    @nnx.jit
    def alone(nodes, x):
        h = nodes.norm1(x + nodes.out.bias[...])
        return nodes.norm2(h + nodes.down(jax.nn.relu(nodes.hidden(h))))

    y, expected = applied(layer, x, SRC, np.where(DST == 4, 1, DST)), alone(layer.nodes, x[4])
    np.testing.assert_allclose(y[4], expected, rtol=100 * EPS32, atol=100 * EPS32)


def test_mixings_are_doubly_stochastic_and_keep_the_sum_of_the_streams():
    connection = built(models.HyperConnection, 6, 3, rounds=20)
    x = normal(2, 3, 6)
    _, write, mix = jax.device_get(applied(connection, x))
    np.testing.assert_allclose(mix.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(mix.sum(-2), 1, atol=1e-5)
    merged = nnx.jit(lambda c, *inputs: c.merge(*inputs))(connection, x, np.zeros((2, 6), np.float32), write, mix)
    np.testing.assert_allclose(merged.sum(1), x.sum(1), atol=1e-4)


def test_residual_gate_keeps_the_variance():
    gate = np.linspace(-2, 1, 4, dtype=np.float32)
    zeros, ones = np.zeros((1, 4), np.float32), np.ones((1, 4), np.float32)
    gated = jax.jit(models.residual_gate)
    squares = np.square(gated(ones, zeros, gate)) + np.square(gated(zeros, ones, gate))
    np.testing.assert_allclose(squares, 1, rtol=1e-5)


def test_linear_attention_of_few_tokens():
    """Fewer tokens than features of a head take the other order of the products."""
    attention = built(models.SimplifiedLinearAttention, 8, 1, shape=(2, 3))
    q, k, v = (np.abs(normal(2, 6, 1, 8, seed=seed)) for seed in range(3))
    weights = np.einsum("bnhd,bmhd->bhnm", q.astype(np.float64), k)
    expected = np.einsum("bhnm,bmhd->bnhd", weights / (weights.sum(-1, keepdims=True) + 1e-6), v)
    attended = nnx.jit(lambda attention, *heads: attention._linear(*heads))(attention, q, k, v)
    np.testing.assert_allclose(attended, expected, rtol=100 * EPS32)


def test_only_the_cross_of_a_position_sees_it():
    block, x = built(models.CSWinBlock, 8, 2, stripe=2), normal(1, 4, 6, 8)
    other = x.copy()
    other[0, 1, 3] += 1
    attend = nnx.jit(lambda block, x: block.attend(x))
    changed = np.abs(np.asarray(attend(block, other)) - np.asarray(attend(block, x))).max(-1)[0] > 1e-5
    cross = np.zeros((4, 6), bool)
    cross[0:2, :] = cross[:, 2:4] = True
    np.testing.assert_array_equal(changed, cross)


def test_equalization_averages_what_it_should():
    """Away from the border a constant image stays what it is, in every sample; the published reshape mixes it up."""
    x = np.ones((2, 15, 15, 16), np.float32) * normal(2, 1, 1, 16)
    blocks = [built(models.FeatureEqualization, 16, scrambled=scrambled) for scrambled in (False, True)]
    plain, scrambled = (np.asarray(nnx.jit(lambda block: block.averages(x))(block)) for block in blocks)
    centre = plain[:, 7, 7]
    np.testing.assert_allclose(centre[:, :16], plain[:, 0, 0, :16], rtol=100 * EPS32)
    np.testing.assert_allclose(centre[:, :16], centre[:, 16:], rtol=100 * EPS32)
    assert not np.allclose(plain, scrambled)
    np.testing.assert_allclose(np.sort(plain.reshape(2, -1)), np.sort(scrambled.reshape(2, -1)))


def of(cls, *args, **options):
    """Makes a module, shapes only, and calls it."""
    inputs = options.pop("inputs", ())
    masks = options.pop("masks", {})
    nnx.eval_shape(lambda: cls(*args, **options, rngs=nnx.Rngs(0))(*inputs, **masks))


X, IMAGE, TOKENS = normal(5, 8), normal(1, 4, 6, 8), normal(2, 3, 8)
GRAPH, EDGES = models.GraphTransformerLayer, models.EdgeGraphTransformerLayer
SHORT = {"node_mask": np.ones(4, bool)}
CALLS = {
    "heads of a graph": (lambda: of(GRAPH, 8, 3), ValueError, "heads=3 does not divide features=8"),
    "graph with a batch": (lambda: of(GRAPH, 8, 2, inputs=(TOKENS, SRC, DST)), ValueError, r"\(2, 3, 8\).*expected"),
    "edges as floats": (lambda: of(GRAPH, 8, 2, inputs=(X, X[0], X[0])), TypeError, "src has dtype float32, expected"),
    "node mask": (lambda: of(GRAPH, 8, 2, inputs=(X, SRC, DST), masks=SHORT), ValueError, r"\(4,\), expected \(5,\)"),
    "edge rows": (lambda: of(EDGES, 8, 2, inputs=(X, X, SRC, DST)), ValueError, r"\(5, 8\), expected .*\(7, 8\)"),
    "experts": (lambda: of(models.WideNet, 8, **WIDE, chosen=5), ValueError, "chosen=5; expected"),
    "depth": (lambda: of(models.WideNet, 8, depth=0, heads=2), ValueError, "depth >= 1, got depth=0"),
    "tokens": (lambda: of(models.WideNet, 8, **WIDE, inputs=(X,)), ValueError, r"\(5, 8\).*expected \(batch"),
    "streams": (lambda: of(models.HyperConnection, 8, 4, inputs=(TOKENS,)), ValueError, r"4, 8\), got .*\(2, 3, 8\)"),
    "sinkhorn": (lambda: models.sinkhorn(X), ValueError, r"\(\.\.\., n, n\), got \(5, 8\)"),
    "rounds": (
        lambda: models.sinkhorn(jnp.eye(2), rounds=1.5),
        TypeError,
        "an int for rounds, got rounds=1.5",
    ),
    "gate": (lambda: models.residual_gate(X, X, X[0, :3]), ValueError, r"gate has shape \(3,\)"),
    "update": (lambda: models.residual_gate(X, X[:2], X[0]), ValueError, r"\(2, 8\), expected .*\(5, 8\)"),
    "temperature": (lambda: models.residual_gate(X, X, X[0], temperature=0.0), ValueError, "> 0, got temperature=0.0"),
    "index": (lambda: of(models.SiameseDiTBlock, 8, 2, index=-1), ValueError, "index >= 0, got index=-1"),
    "two streams": (
        lambda: of(models.SiameseDiTBlock, 8, 2, index=0, inputs=(TOKENS, TOKENS[:1], X)),
        ValueError,
        r"\(1, 3, 8\); expected",
    ),
    "exchanges": (lambda: of(models.FIT, 5, **FIT, latent_layers=(1, 1)), ValueError, r"\(1, 1\); expected one more"),
    "patches": (lambda: of(models.FIT, 5, **FIT, inputs=(IMAGE,)), ValueError, r"2, 3, 5\), got .*\(1, 4, 6, 8\)"),
    "latent heads": (
        lambda: of(models.FIT, 5, **FIT | {"latent_heads": 3}),
        ValueError,
        "heads=3 does not divide the attention's width 4",
    ),
    "conv groups": (
        lambda: of(models.EfficientLocalAttention, 16, conv_groups=3),
        ValueError,
        "conv_groups=3",
    ),
    "strips": (lambda: of(models.EfficientLocalAttention, 16, inputs=(TOKENS,)), ValueError, r"got shape \(2, 3, 8\)"),
    "odd": (lambda: of(models.ParallelPolarizedAttention, 7), ValueError, "even number .* features=7"),
    "ratio": (lambda: of(models.SequentialPolarizedAttention, 12), ValueError, "features=12 is not a multiple"),
    "polarized": (lambda: of(models.ParallelPolarizedAttention, 8, inputs=(X,)), ValueError, r"got shape \(5, 8\)"),
    "grid": (
        lambda: of(models.GaussianMixtureMask, (2, 2), heads=2, inputs=(normal(2, 5, 5),)),
        ValueError,
        r"2, 4, 4\), got shape \(2, 5, 5\)",
    ),
    "reduction": (lambda: of(models.FeatureEqualization, 8), ValueError, "reduction=16 leaves no channel"),
    "sigma": (lambda: of(models.FeatureEqualization, 16, sigma=0.0), ValueError, "sigma > 0, got sigma=0.0"),
    "few tokens": (
        lambda: of(models.SimplifiedLinearAttention, 8, 2, shape=(2, 2), inputs=(TOKENS,)),
        ValueError,
        r"4, 8\), got \(2, 3, 8\)",
    ),
    "odd heads": (lambda: of(models.CSWinBlock, 9, 3, stripe=2), ValueError, "heads=3; expected an even divisor"),
    "stripe": (lambda: of(models.CSWinBlock, 8, 2, stripe=4, inputs=(IMAGE,)), ValueError, r"stripe=4 divides, got"),
}


@pytest.mark.parametrize("name", CALLS)
def test_bad_calls_say_what_came_and_what_was_expected(name):
    call, error, message = CALLS[name]
    with pytest.raises(error, match=message):
        call()
