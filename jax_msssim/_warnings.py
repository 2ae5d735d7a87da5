"""Warnings of images that are likely not what they are taken for."""

import os
import sys
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jax_msssim._checks import MAX_VAL_OF_INTEGERS

PACKAGE = str(Path(__file__).parent) + os.sep
SAMPLES = 8  # along each axis: bytes as floats hold hardly so many below 3
MANY_CHANNELS = 16


class ImageWarning(UserWarning):
    """Images are likely not what they are taken for; nothing is changed, and a number is returned.

    It is given where images are NumPy arrays, before a program is compiled or called, never for arrays of JAX, whose
    pixels are not looked at: for floating images with pixels far above 1 and no ``max_val``, for images with more
    channels than rows or columns suggest, and for those whose last channel is an opaque alpha.
    ``warnings.simplefilter("ignore", ImageWarning)`` silences it.

    Examples:
      >>> import warnings
      >>> import numpy as np
      >>> from jax_msssim import ImageWarning, ssim
      >>> image = np.full((16, 16, 1), 200.0, np.float32)
      >>> with warnings.catch_warnings(record=True) as told:
      ...     warnings.simplefilter("always", ImageWarning)
      ...     value = ssim(image, image)
      >>> print(told[0].message)
      a has pixels up to 200 but max_val, the largest value a pixel can have, is 1.0: pass max_val=255, say.
    """


def warn_of_images(names: tuple[str, str], images: tuple, where, range_given: bool, spatial_ndim: int) -> None:
    """Warns of a NumPy array that looks like bytes in floats, channels-first, without a channel axis, or RGBA."""
    if any(isinstance(x, Tracer) for x in images):
        return
    for name, x in zip(names, images, strict=True):
        if message := isinstance(x, np.ndarray) and _suspicion(name, x, where, range_given, spatial_ndim):
            level, frame = 1, sys._getframe()
            while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGE):
                level, frame = level + 1, frame.f_back
            warnings.warn(message, ImageWarning, level)
            return


def _suspicion(name: str, x: np.ndarray, where, range_given: bool, spatial_ndim: int) -> str | None:
    *_, rows, columns, channels = (1, *x.shape)
    # Of grey images [N, H, W] the last two axes are more alike than the first two, of images of many bands less.
    grey = x.ndim == 3 and min(columns, channels) * max(rows, columns) >= min(rows, columns) * max(columns, channels)
    if spatial_ndim == 2 and channels > MANY_CHANNELS < columns and (rows <= 4 or grey):
        return (
            f"{name} of shape {list(x.shape)} is taken for an image of {channels} channels, the last axis. Grey images "
            f"need a channel axis, {name}[..., None]; channels-first ones jnp.moveaxis({name}, -3, -1)."
        )
    some = tuple(slice(None, None, max(1, -(-side // SAMPLES))) for side in x.shape)
    if spatial_ndim == 2 and channels in (2, 4) and _is_opaque_alpha(x[some]):
        return (
            f"{name} of shape {list(x.shape)} has an opaque alpha channel, it seems, which counts as a colour: the "
            f"colours are {name}[..., :-1]."
        )
    known = where is None or isinstance(where, np.ndarray)  # which pixels are masked: they may hold anything
    if range_given or not known or not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    valid = np.broadcast_to(True if where is None else where, x.shape)
    largest = float(x[some].max(initial=0, where=valid[some] & np.isfinite(x[some])))
    if largest <= 2:
        return None
    return (
        f"{name} has pixels up to {largest:.4g} but max_val, the largest value a pixel can have, is 1.0: pass "
        "max_val=255, say."
    )


def _is_opaque_alpha(x: np.ndarray) -> bool:
    """Whether all of the last channel is the value of white, and the others are not one value each."""
    known = MAX_VAL_OF_INTEGERS.get(x.dtype.name)
    white = (1, 255) if known is None else (known,)
    colours, alpha = x[..., :-1], x[..., -1]
    axes = tuple(range(x.ndim - 1))
    varied = x.size and (colours.min(axes) < colours.max(axes)).any()
    return bool(varied and any((alpha == value).all() for value in white))
