"""Images as sequences of patches, and back."""

import jax


def patchify(images: jax.Array, patch: int) -> jax.Array:
    """Cuts images into square patches, row by row.

    Args:
      images: `(batch, height, width, channels)`.
      patch: Side of a patch; divides height and width.

    Returns:
      `(batch, patches, patch * patch * channels)`.

    Raises:
      ValueError: If the patches do not fill the image.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> nj.models.patchify(jnp.zeros((1, 4, 6, 3)), 2).shape
      (1, 6, 12)
    """
    if images.ndim != 4 or images.shape[1] % patch or images.shape[2] % patch:
        raise ValueError(
            f"expected images (batch, height, width, channels) with sides divisible by patch={patch}, got "
            f"{tuple(images.shape)}."
        )
    batch, height, width, channels = images.shape
    cut = images.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return cut.swapaxes(2, 3).reshape(batch, -1, patch * patch * channels)


def unpatchify(patches: jax.Array, height: int, width: int, patch: int) -> jax.Array:
    """Puts patches together again.

    Args:
      patches: `(batch, patches, patch * patch * channels)`.
      height, width: Of the images.
      patch: Side of a patch.

    Returns:
      `(batch, height, width, channels)`.

    Example:
      >>> import jax.numpy as jnp, normjax as nj
      >>> x = jnp.arange(24.0).reshape(1, 4, 6, 1)
      >>> bool((nj.models.unpatchify(nj.models.patchify(x, 2), 4, 6, 2) == x).all())
      True
    """
    cut = patches.reshape(patches.shape[0], height // patch, width // patch, patch, patch, -1)
    return cut.swapaxes(2, 3).reshape(patches.shape[0], height, width, -1)
