"""`WeightNorm` and `SpectralNorm` against Flax's: its checkpoints, its numbers, and the documented differences."""

import functools
import pathlib

import flax.linen as fnn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import normjax as nj
from tests.flax_parity.parity import BF16, F32, assert_near, flax_rules, normal
from tests.flax_parity.test_flax_differences import error

KEY = jax.random.key(0)
EPS = float(np.finfo(np.float32).eps)
X = normal((4, 6))
IMAGES = normal((2, 5, 5, 3))
LAYERS = {"dense": (lambda: fnn.Dense(5), X), "conv": (lambda: fnn.Conv(5, (3, 3)), IMAGES)}
NNX_LAYERS = {
    "dense": (lambda: nnx.Linear(6, 5, rngs=nnx.Rngs(0)), X),
    "conv": (lambda: nnx.Conv(3, 5, (3, 3), rngs=nnx.Rngs(0)), IMAGES),
}
WEIGHT = [
    {},
    {"use_scale": False},
    {"epsilon": 0.1, "scale_init": fnn.initializers.normal(1.0)},
    {"feature_axes": -2},
    {"feature_axes": None},
    {"param_dtype": BF16, "dtype": F32},
]
SPECTRAL = [{}, {"n_steps": 3}, {"epsilon": 0.1}]
# A kernel has at most 27 values a unit, the spectral sums at most 135.
COUNT = 135


class Model(fnn.Module):
    """One wrapped layer, as it stands in a model."""

    library: object
    name_of: str
    layer: str
    keywords: dict

    @fnn.compact
    def __call__(self, x, **more):
        layer = LAYERS[self.layer][0]()
        return getattr(self.library, self.name_of)(layer, **self.keywords)(x, **more)


def both(name, layer, keywords):
    return Model(fnn, name, layer, keywords), Model(nj.linen, name, layer, keywords)


def loss(model, **more):
    def total(variables, x):
        y, updates = model.apply(variables, x, mutable=["batch_stats"], **more)
        return jnp.sum(jnp.sin(y)), (y, updates)

    return jax.jit(jax.value_and_grad(total, has_aux=True))


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("keywords", WEIGHT, ids=lambda keywords: "+".join(keywords) or "defaults")
def test_weight_norm_reads_linen_checkpoints(layer, keywords):
    theirs, own = both("WeightNorm", layer, keywords)
    x = LAYERS[layer][1]
    with flax_rules():
        variables = jax.jit(theirs.init)(KEY, x)
        (_, (expected, _)), gradients = loss(theirs)(variables, x)
    names = lambda v: jax.tree.map(lambda a: (a.shape, a.dtype), v)
    assert names(jax.eval_shape(own.init, KEY, x)) == names(variables)
    (_, (y, _)), own_gradients = loss(own)(variables, x)
    narrow = [BF16] if keywords.get("param_dtype") == BF16 else []
    assert_near(y, expected, COUNT, *narrow)
    jax.tree.map(lambda a, b: assert_near(a, b, COUNT * 8, *narrow), own_gradients, gradients)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("keywords", SPECTRAL, ids=str)
def test_spectral_norm_reads_linen_checkpoints_and_follows_them(layer, keywords):
    theirs, own = both("SpectralNorm", layer, keywords)
    x = LAYERS[layer][1]
    with flax_rules():
        variables = jax.jit(functools.partial(theirs.init, update_stats=False))(KEY, x)
    names = lambda v: jax.tree.map(lambda a: (a.shape, a.dtype), v)
    assert names(jax.eval_shape(functools.partial(own.init, update_stats=False), KEY, x)) == names(variables)
    ours = variables
    losses = {update: (loss(theirs, update_stats=update), loss(own, update_stats=update)) for update in (True, False)}
    for update in (True, True, False):
        their_loss, own_loss = losses[update]
        with flax_rules():
            (_, (expected, updates)), gradients = their_loss(variables, x)
        (_, (y, own_updates)), own_gradients = own_loss(ours, x)
        assert_near(y, expected, COUNT)
        jax.tree.map(lambda a, b: assert_near(a, b, COUNT), own_updates, updates)
        jax.tree.map(lambda a, b: assert_near(a, b, COUNT * 8), own_gradients, gradients)
        variables, ours = variables | updates, ours | own_updates


@pytest.mark.parametrize("layer", NNX_LAYERS)
def test_nnx_checkpoints_are_read(layer):
    """What Flax's module returns in its first call on a kernel, ours returns in every call."""
    make, x = NNX_LAYERS[layer]
    for name, keywords in (("WeightNorm", {"epsilon": 1e-3}), ("SpectralNorm", {"n_steps": 2})):
        theirs = getattr(nnx, name)(make(), **keywords, rngs=nnx.Rngs(0))
        own = getattr(nj.nnx, name)(make(), **keywords, rngs=nnx.Rngs(1))
        flat = {path: jnp.copy(jnp.asarray(leaf[...])) for path, leaf in nnx.to_flat_state(nnx.state(theirs))}
        assert set(flat) == set(nnx.to_flat_state(nnx.state(own)).paths)
        for path, leaf in nnx.to_flat_state(nnx.state(own)):
            leaf[...] = flat[path]
            assert leaf.dtype == flat[path].dtype
        nnx.update(own, nnx.state(own))
        own_state = nnx.state(own)
        for path, leaf in nnx.to_flat_state(own_state):
            np.testing.assert_array_equal(leaf[...], flat[path])
        with flax_rules():
            expected = theirs(x)
        assert_near(own(x), expected, COUNT)
        if name == "SpectralNorm":
            assert_near(own.batch_stats[("kernel", "u")][...], theirs.batch_stats[("kernel", "u")][...], COUNT)


def moved(before, after):
    return float(np.abs(np.asarray(after, np.float64) - np.asarray(before, np.float64)).max())


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_11_nnx_wrappers_write_the_kernel_in_every_call(name):
    for library, stays in ((nnx, False), (nj.nnx, True)):
        linear = nnx.Linear(6, 5, rngs=nnx.Rngs(0))
        kernel = np.array(linear.kernel[...])
        module = getattr(library, name)(linear, rngs=nnx.Rngs(1))
        with flax_rules():
            module(X)
        label = "normjax nnx" if stays else "flax nnx"
        value = error(label, module.layer_instance.kernel[...], kernel)
        assert (value == 0) == stays


def descend(library, target, steps, rate):
    """The effective kernel of an nnx layer after gradient descent by its stored parameters."""
    module = library.WeightNorm(nnx.Linear(6, 5, use_bias=False, rngs=nnx.Rngs(0)), use_scale=False, rngs=nnx.Rngs(1))
    kernel = np.asarray(module.layer_instance.kernel[...], np.float64)
    for _ in range(steps):
        gradients = nnx.grad(lambda m: jnp.mean((m(X) - target) ** 2))(module)
        stored = module.layer_instance.kernel
        stored[...] = stored[...] - rate * gradients["layer_instance"]["kernel"][...]
    return kernel, module(jnp.eye(6))


def test_12_nnx_weight_norm_trains_as_a_projection():
    target, steps, rate = normal((4, 5), seed=1), 20, 2.0
    for label, library in (("flax nnx", nnx), ("normjax nnx", nj.nnx)):
        with flax_rules():
            v, effective = descend(library, target, steps, rate)
        x, exact_target = (np.asarray(a, np.float64) for a in (X, target))
        for _ in range(steps):
            size = np.sqrt((v**2).sum(0) + 1e-12)
            w = v / size
            g = 2 * x.T @ (x @ w - exact_target) / exact_target.size
            v = v - rate * (g - w * (w * g).sum(0)) / size
        value = error(label, effective, v / np.sqrt((v**2).sum(0) + 1e-12))
        assert value < 1e-5 if library is nj.nnx else value > 0.01


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_13_linen_wrappers_write_the_kernel(name):
    """In `init`; and SpectralNorm in every `apply` with mutable parameters."""
    kernel = normal((6, 5))
    more = {"update_stats": True} if name == "SpectralNorm" else {}
    for library, stays in ((fnn, False), (nj.linen, True)):
        layer = getattr(library, name)(fnn.Dense(5, kernel_init=lambda *_: kernel))
        label = "normjax linen" if stays else "flax linen"
        with flax_rules():
            variables = layer.init(KEY, X, **more)
            _, updates = layer.apply(variables, X, mutable=True, **more)
        stored, after = (v["params"]["layer_instance"]["kernel"] for v in (variables, updates))
        assert (error(f"{label}, init", stored, np.asarray(kernel, np.float64)) == 0) == stays
        assert (error(f"{label}, apply", after, np.asarray(stored, np.float64)) == 0) == (stays or name == "WeightNorm")


def test_14_weight_norm_starts_as_the_layer_it_wraps():
    """torch starts at g = |v|, Flax at g = 1: the error is that of the first output."""
    linear, dense = nnx.Linear(6, 5, rngs=nnx.Rngs(0)), fnn.Dense(5, kernel_init=lambda *_: normal((6, 5)))
    outputs = (linear(X), dense.init_with_output(KEY, X)[0])
    for label, library in (("flax", (nnx, fnn)), ("normjax", (nj.nnx, nj.linen))):
        with flax_rules():
            module = library[0].WeightNorm(nnx.clone(linear), rngs=nnx.Rngs(1))
            wrapped = module(X), library[1].WeightNorm(dense).init_with_output(KEY, X)[0]
        for which, y, plain in zip(("nnx", "linen"), wrapped, outputs, strict=True):
            exact = np.asarray(plain, np.float64)
            value = error(f"{label} {which}", y, exact)
            assert value < 16 * EPS * np.abs(exact).max() if label == "normjax" else value > 0.1


def test_15_a_zero_kernel_does_not_switch_spectral_norm_off_for_good():
    """A step through a zero kernel stores u = 0 in Flax; the norm of later kernels is then never measured."""
    kernel = normal((6, 5))
    for label, library in (("flax linen", fnn), ("normjax linen", nj.linen)):
        layer = library.SpectralNorm(fnn.Dense(5, use_bias=False), n_steps=50)
        with flax_rules():
            variables = layer.init(KEY, X, update_stats=False)
            zero = {"params": {"layer_instance": {"kernel": jnp.zeros((6, 5))}}}
            _, updates = layer.apply(variables | zero, X, update_stats=True, mutable=["batch_stats"])
            params = {"params": {"layer_instance": {"kernel": kernel}}}
            y, _ = layer.apply(params | updates, jnp.eye(6), update_stats=True, mutable=["batch_stats"])
        value = error(label, np.linalg.norm(np.asarray(y, np.float64), 2), 1.0)
        assert (value < 1e-5) == (library is nj.linen)


def test_16_spectral_norm_knows_sigma_from_the_start():
    """The largest singular value of the effective kernel in evaluation right after `init`; it should be 1."""
    for label, library in (("flax", (nnx, fnn)), ("normjax", (nj.nnx, nj.linen))):
        layer = library[1].SpectralNorm(fnn.Dense(64, use_bias=False))
        module = library[0].SpectralNorm(nnx.Linear(64, 64, use_bias=False, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))
        with flax_rules():
            variables = layer.init(KEY, jnp.eye(64), update_stats=False)
            effective = {
                "linen": layer.apply(variables, jnp.eye(64), update_stats=False),
                "nnx": module(jnp.eye(64), update_stats=False),
            }
        for which, kernel in effective.items():
            value = error(f"{label} {which}", np.linalg.norm(np.asarray(kernel, np.float64), 2), 1.0)
            assert value < 0.05 if label == "normjax" else value > 0.1


def test_the_document_names_every_test():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "flax_differences.md").read_text()
    own = [
        name for name in globals() if name.startswith("test_") and name[5].isdigit() and int(name.split("_")[1]) > 10
    ]
    missing = [name for name in own if name not in text]
    assert not missing, f"docs/flax_differences.md does not name {missing}"
