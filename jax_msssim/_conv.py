"""The same means by ``lax.conv_general_dilated``: short, on every platform, differentiated by JAX alone.

It computes variances as ``E[x^2] - E[x]^2``. With each image's mean subtracted first that is accurate to
1e-6 for photographs at any brightness, and to 4e-5 at an edge from black to white, but not for an image whose
halves differ by thousands of ``max_val``: the default implementation is.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._pyramid import Scale, channel_means, mean_positions, scales_from, spatial_axes
from jax_msssim._terms import Means, Variances, value_of
from jax_msssim._windows import Window


def term_map(term, scale: Scale, c1, c2, window: Window) -> jax.Array:
    """The term's value at every position, ``[..., *positions, C]``, whether it counts or not."""
    means, variances = _moments(scale, window)
    return value_of(term, lambda: means, variances, c1, c2)


def term_means(terms, first: Scale, c1, c2, window: Window, paddings, rule=None) -> list[tuple[jax.Array, ...]]:
    """At each scale the mean of each of its terms over the positions that count, ``[..., C]``; NaN where none does."""
    scales = scales_from(first, len(terms), rule, paddings, window, halve)
    return [_term_means(*each, c1, c2, window) for each in zip(terms, scales, strict=True)]


def _term_means(terms, scale: Scale, c1, c2, window: Window) -> tuple[jax.Array, ...]:
    (means, variances), where = _moments(scale, window), counted(scale, window)
    values = (value_of(term, lambda: means, variances, c1, c2) for term in terms)
    return tuple(mean_positions(value, where, spatial_axes(value, window.spatial_ndim)) for value in values)


def counted(scale: Scale, window: Window) -> jax.Array | None:
    """Which positions count: those whose window holds little enough that is masked. None: all."""
    if scale.valid is None:
        return None
    valid = scale.valid.astype(scale.images[0].dtype)
    return (_blur(1 - valid, window) <= 1 - window.min_coverage) & (_blur(valid, window) > 0)


typical = channel_means  # what is subtracted before anything is squared


def halve(scale: Scale, spatial_ndim: int):
    """The next scale by ``lax.reduce_window``: its images, anchors, ``above``, and the share of valid pixels."""
    axes = spatial_axes(scale.images[0], spatial_ndim)
    window = tuple(2 if axis in axes else 1 for axis in range(scale.images[0].ndim))
    weights = None if scale.valid is None else scale.valid.astype(scale.images[0].dtype)

    def mean(x):
        zero = np.zeros((), x.dtype)  # a concrete one, by which lax knows a sum, which it can differentiate
        return lax.reduce_window(x, zero, lax.add, window, window, "VALID") / 2**spatial_ndim

    def spread(x):
        for axis in axes:
            x = jnp.repeat(x, 2, axis)
        return x

    share = None if weights is None else mean(weights)
    anchors = tuple(lax.stop_gradient(lax.slice(x, [0] * x.ndim, x.shape, window)) for x in scale.pixels)
    above = _above(scale, tuple(map(spread, anchors)))
    means = (mean(x if weights is None else weights * x) for x in (*scale.images, *above))
    if share is not None:
        means = (x / jnp.where(share > 0, share, 1) for x in means)
    a, b, s, d = means
    return (a, b), anchors, (s, d), share


def _above(scale: Scale, reference):
    """What the sum and the difference of the images are above those of a pixel, which need not be near.

    The difference is rounded in proportion to the distance of the images or of the pixels, whichever is smaller:
    two images may be nearly equal, or far apart and flat.
    """
    (a, b), (typical_a, typical_b) = scale.pixels, reference
    above_a, above_b, apart, usual = a - typical_a, b - typical_b, a - b, typical_a - typical_b
    alike = abs(apart) + abs(usual) < abs(above_a) + abs(above_b)
    s, d = above_a + above_b, jnp.where(alike, apart - usual, above_a - above_b)
    return (s, d) if scale.above is None else (s + scale.above[0], d + scale.above[1])


def _moments(scale: Scale, window: Window) -> tuple[Means, Variances]:
    typical_a, typical_b = scale.typical
    s, d = _above(scale, scale.typical)
    weights = None if scale.valid is None else scale.valid.astype(s.dtype)
    (mean_s, variance_s), (mean_d, variance_d) = (_mean_and_variance(x, weights, window) for x in (s, d))
    means = Means(
        a=typical_a + (mean_s + mean_d) / 2,
        b=typical_b + (mean_s - mean_d) / 2,
        sum=(typical_a + typical_b) + mean_s,
        difference=(typical_a - typical_b) + mean_d,
    )
    return means, Variances(variance_s, variance_d)


def _mean_and_variance(x, weights, window: Window):
    if weights is None:
        mean, square = _blur(x, window), _blur(x * x, window)
    else:
        mass = _blur(weights, window)
        mass = jnp.where(mass > 0, mass, 1)
        mean, square = _blur(weights * x, window) / mass, _blur(weights * x * x, window) / mass
    return mean, window.covariance_scale * jnp.maximum(square - mean * mean, 0)


def _blur(x, window: Window):
    """Depthwise convolution along one spatial axis after another."""
    taps, spatial_ndim = window.taps, window.spatial_ndim
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
