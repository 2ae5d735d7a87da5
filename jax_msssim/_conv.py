"""The same means by ``lax.conv_general_dilated``: short, on every platform, differentiated by JAX alone.

It computes variances as ``E[x^2] - E[x]^2``. With each image's mean subtracted first that is accurate to
1e-6 for photographs at any brightness, but not for an image whose halves differ by thousands of ``max_val``:
the default implementation is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._pyramid import Scale, spatial_axes
from jax_msssim._terms import Moments, dissimilarity


def term_map(term, scale: Scale, c1, c2, taps, spatial_ndim) -> jax.Array:
    """The dissimilarity at every position, ``[..., *positions, C]``."""
    return dissimilarity(term, _moments(scale, taps, spatial_ndim), c1, c2)


def term_means(terms, scale: Scale, c1, c2, taps, spatial_ndim) -> tuple[jax.Array, ...]:
    """The mean over positions of each term's dissimilarity, ``[..., C]``."""
    moments = _moments(scale, taps, spatial_ndim)
    return tuple(_mean_positions(dissimilarity(term, moments, c1, c2), spatial_ndim) for term in terms)


def halve(x, shift, spatial_ndim: int) -> jax.Array:
    """The mean of 2x2 pixels of ``x - shift``, whose sides are even, by ``lax.reduce_window``."""
    axes = spatial_axes(x, spatial_ndim)
    window = tuple(2 if axis in axes else 1 for axis in range(x.ndim))
    zero = np.zeros((), x.dtype)  # a concrete one, by which lax knows a sum, which it can differentiate
    return lax.reduce_window(x - shift, zero, lax.add, window, window, "VALID") / 2**spatial_ndim


def _moments(scale: Scale, taps, spatial_ndim) -> Moments:
    a, b, shifts, (brightness_a, brightness_b) = scale
    s = (a - shifts[0]) + (b - shifts[1])
    d = (a - b) - (shifts[0] - shifts[1])
    (mean_s, variance_s), (mean_d, variance_d) = (_mean_and_variance(x, taps, spatial_ndim) for x in (s, d))
    return Moments(
        mean_s + (brightness_a + brightness_b), variance_s, mean_d + (brightness_a - brightness_b), variance_d
    )


def _mean_and_variance(x, taps, spatial_ndim):
    mean = _blur(x, taps, spatial_ndim)
    return mean, jnp.maximum(_blur(x * x, taps, spatial_ndim) - mean * mean, 0)


def _blur(x, taps, spatial_ndim):
    """Depthwise convolution along one spatial axis after another."""
    batch, channels = x.shape[: -spatial_ndim - 1], x.shape[-1]
    x = x.reshape(math.prod(batch), *x.shape[-spatial_ndim - 1 :])
    spatial = "DHW"[-spatial_ndim:]
    layout = ("N" + spatial + "C", spatial + "IO", "N" + spatial + "C")
    for axis in range(spatial_ndim):
        shape = [1] * spatial_ndim
        shape[axis] = len(taps)
        kernel = jnp.broadcast_to(jnp.asarray(taps, x.dtype).reshape(*shape, 1, 1), (*shape, 1, channels))
        x = lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(1,) * spatial_ndim,
            padding="VALID",
            dimension_numbers=layout,
            feature_group_count=channels,
            precision=lax.Precision.HIGHEST,  # else bfloat16 on a TPU and TF32 on a GPU
        )
    return x.reshape(*batch, *x.shape[1:])


def _mean_positions(x, spatial_ndim):
    # Rows first, then the row sums: one float32 chain over two million positions is off by 5e-5.
    for axis in range(-spatial_ndim - 1, -1):
        x = x.mean(axis)
    return x
