"""Lowering for platforms that are not there: implementation, platform and the custom call that a kernel becomes."""

import contextlib

import jax

PLATFORMS = [("mosaic_tpu", "tpu", "tpu_custom_call"), ("triton", "cuda", "__gpu$xla.gpu.triton")]


def lowering_for(platform: str):
    """The context in which programs are lowered for a platform.

    JAX 0.12 lowers Triton for a GPU or a description of one, JAX 0.10 without either.
    """
    if platform != "cuda" or jax.__version_info__ < (0, 11):
        return contextlib.nullcontext()
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=gpu))
