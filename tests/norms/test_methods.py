"""What the metadata says of a method is what the method does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import normjax as nj
from normjax.__main__ import table
from normjax._method import made, methods
from tests.norms.cases import CASES

METHODS = methods(vars(nj))
FIRST = [next(c for c in CASES if c.factory.__name__ == name) for name, m in METHODS.items() if m.family != "weight"]
over_methods = pytest.mark.parametrize("case", FIRST, ids=lambda c: c.factory.__name__)


def described(case):
    return METHODS[case.factory.__name__]


def leaf_names(tree):
    return {jax.tree_util.keystr(path[-1:], simple=True) for path, _ in jax.tree_util.tree_leaves_with_path(tree)}


def initialized(case):
    context = case.context(np.random.default_rng(1), case.shape)
    params, state = case.norm.init(jax.random.key(0), jax.ShapeDtypeStruct(case.shape, jnp.float32), **context)
    return params, state, context


@pytest.mark.parametrize("case", [c for c in CASES if c.factory.__name__ in METHODS], ids=lambda c: c.name)
def test_state_and_context_are_named(case):
    params, state, context = initialized(case)
    method = described(case)
    always = {name for name in method.state if not name.startswith("(")}
    allowed = {name.strip("()") for name in method.state}
    assert leaf_names(state) <= allowed
    if case in FIRST:
        assert always <= leaf_names(state)
        assert set(method.written_by_backward) <= leaf_names(params)
    assert set(context) <= {name.strip("()") for name in method.context}


def outputs(case, factors, train):
    """Outputs of the norm for an input with a spread of 1e4, which makes epsilon small, and for its multiples."""
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        wide = lambda a: jnp.asarray(a, jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a
        params, state, context = jax.tree.map(wide, initialized(case))
        x = 1e4 * rng.standard_normal(case.shape)
        # One value of ordinary size: at 1e4 every sigmoid is a step, which no factor changes.
        x[(-1,) * x.ndim] = 1.0
        apply = jax.jit(lambda x: case.norm.apply(params, state, x, train=train, **context)[0])
        return [np.asarray(apply(jnp.asarray(x * f))) for f in factors]


def close(a, b):
    # Epsilon is at most 1e-3, the variance about 1e8: what it damps differs by less than 1e-11.
    return np.max(np.abs(a - b)) <= 1e-9 * max(1.0, float(np.max(np.abs(b))))


@over_methods
def test_scale_invariance_is_as_stated(case):
    jointly = (1.0, 3.0)
    per_unit = np.linspace(0.5, 3.0, case.shape[-1])
    plain, joint = outputs(case, jointly, train=True)
    (units,) = outputs(case, (per_unit,), train=True)
    found = (close(joint, plain), close(units, plain))
    expected = {"none": (False, False), "joint": (True, False), "per group": (True, False), "per unit": (True, True)}
    assert found == expected[described(case).scale_invariance]


@over_methods
def test_folding_is_as_stated(case):
    """In evaluation, an affine map f satisfies f(2x) - f(x) = f(x) - f(0)."""
    zero, once, twice = outputs(case, (0.0, 1.0, 2.0), train=False)
    # A map that changes with what it reads at each call is affine in its input and still nothing to absorb.
    fixed = all(name.startswith("(") for name in described(case).context)
    affine = fixed and close(twice - once, once - zero)
    assert affine == (described(case).folds == "all")


def test_transforms_remember_what_made_them():
    told = made(nj.batch_norm(epsilon=1e-3))
    assert told is not None
    assert (told.name, told.method) == ("batch_norm", METHODS["batch_norm"])
    assert (told.argument("epsilon"), told.argument("momentum"), told.argument("other", 5)) == (1e-3, 0.99, 5)
    assert made(told.again(momentum=0.5)).given == {"epsilon": 1e-3, "momentum": 0.5}
    # Arguments that a factory passes on count as its own; the outer of two factories is what the user called.
    assert made(nj.rep_batch_norm(epsilon=1e-3)).argument("epsilon") == 1e-3
    assert made(nj.dyt()).name == "dyt"
    assert made(nj.chain(nj.dyt())) is None
    assert made(nj.weight_norm()).name == "weight_norm"


def test_the_table_lists_every_method():
    shown = table()
    cells = {str(cell) for column in shown.columns for cell in column.cells}
    assert set(METHODS) <= cells
    assert {m.paper for m in METHODS.values()} <= {cell.partition(" (")[0] for cell in cells}
