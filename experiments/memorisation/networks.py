"""The two networks of the grid, and what they are fed."""

from typing import NamedTuple

import jax
import numpy as np

import normjax as nj
from experiments.memorisation.arms import Arm
from experiments.plasticity.model import STRIDE, Network, network, perceptron
from experiments.plasticity.training import CLASSES, NORM, standardize

KERNEL = 3
# The layer norm of images: one mean and variance of all positions and channels, one scale per channel.
IMAGE_NORM = nj.group_norm(num_groups=1, epsilon=1e-6)


class Shape(NamedTuple):
    """Sizes of a network.

    Attributes:
      channels: Of the convolutions, 3 x 3 with stride 2; none for a multilayer perceptron.
      widths: Units of the hidden layers after them.
    """

    channels: tuple[int, ...]
    widths: tuple[int, ...]


def build(shape: Shape, image: tuple[int, ...], arm: Arm) -> Network:
    """The network of an arm for images `(h, w, channels)`."""
    norm = (IMAGE_NORM if shape.channels else NORM) if arm.method.normalized else None
    return network(kernels(shape, image), norm, arm.nonlinearity)


def kernels(shape: Shape, image: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Shapes of the kernels of a network, the readout's last."""
    height, width, depth = image
    convolutions = []
    for channels in shape.channels:
        convolutions.append((KERNEL, KERNEL, depth, channels))
        height, width, depth = -(-height // STRIDE), -(-width // STRIDE), channels
    return (*convolutions, *perceptron(height * width * depth, shape.widths, CLASSES))


def inputs(shape: Shape, images: np.ndarray) -> jax.Array:
    """Standardized images, as vectors or with their axes."""
    vectors = standardize(images)
    return vectors.reshape(images.shape) if shape.channels else vectors


def describe(name: str, shape: Shape) -> str:
    """`MLP 64-64-64` or `CNN 16-32 conv, 64`."""
    widths = "-".join(map(str, shape.widths))
    return f"CNN {'-'.join(map(str, shape.channels))} conv, {widths}" if shape.channels else f"{name.upper()} {widths}"
