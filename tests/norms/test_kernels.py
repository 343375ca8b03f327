"""`implementation=` names what runs: the kernel is in the lowered program, or the call is refused."""

import jax
import jax.numpy as jnp
import pytest

import normjax as nj
from tests.pallas_kernels.platforms import PLATFORMS, lowering_for

NORMS = {"layer": nj.layer_norm, "rms": nj.rms_norm, "crms": nj.crms_norm}


def lowered(norm, platform, backward):
    x = jnp.ones((16, 256))
    params, state = norm.init(None, x)
    forward = lambda params, x: jnp.sum(norm.apply(params, state, x, train=True)[0] ** 2)
    function = jax.grad(forward, argnums=(0, 1)) if backward else forward
    with lowering_for(platform):
        return jax.jit(function).trace(params, x).lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated")  # JAX 0.12
@pytest.mark.parametrize("name", NORMS)
@pytest.mark.parametrize(("implementation", "platform", "call"), PLATFORMS)
def test_a_named_kernel_runs_forward_and_backward(name, implementation, platform, call):
    named, plain = NORMS[name](implementation=implementation), NORMS[name]()
    for backward in (False, True):
        assert lowered(named, platform, backward).count(call) == 1 + backward
        assert call not in lowered(plain, platform, backward)


@pytest.mark.parametrize(
    ("norm", "options", "what"),
    [
        (nj.layer_norm(implementation="triton"), {"mask": jnp.ones((4, 1))}, "mask"),
        (nj.layer_norm(implementation="mosaic_tpu", epsilon_mode="outside"), {}, "epsilon_mode"),
        (nj.rms_norm(implementation="triton", group_size=2), {}, "group_size"),
        (nj.rms_norm(implementation="triton", precision=nj.precision.LLAMA), {}, "precision"),
        (nj.crms_norm(implementation="mosaic_tpu"), {"mask": jnp.ones((4, 1))}, "mask"),
    ],
)
def test_a_kernel_is_never_left_silently(norm, options, what):
    params, state = norm.init(None, jnp.ones((4, 8)))
    with pytest.raises(NotImplementedError, match=rf"has no {what}"):
        norm.apply(params, state, jnp.ones((4, 8)), train=True, **options)


def test_an_unknown_name_is_an_error():
    with pytest.raises(ValueError, match="implementation='cudnn' is unknown"):
        nj.rms_normalize(jnp.ones((2, 3)), implementation="cudnn")
