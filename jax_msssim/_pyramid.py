"""The scales of MS-SSIM: two images, centred once, then halved again and again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

DOWNSAMPLE_RULES = ("edge", "floor")


class Scale(NamedTuple):
    """Two images at one scale, each ``[..., *spatial, C]``, and what their brightness is.

    Similarity but for its luminance does not depend on a constant added to a pixel, and arithmetic does: the
    closer the pixels are to zero, the less is rounded away. So the mean of each image and channel leaves the
    images. ``shift`` is what is still to be subtracted from the pixels (the means at the first scale, whose
    images are the caller's own, uncopied; zero at the others); ``brightness`` is what luminance adds back.
    """

    a: jax.Array
    b: jax.Array
    shift: tuple[jax.Array, jax.Array]
    brightness: tuple[jax.Array, jax.Array]


def first_scale(a: jax.Array, b: jax.Array, spatial_ndim: int) -> Scale:
    """The images as they came, with their means."""
    means = (_channel_means(a, spatial_ndim), _channel_means(b, spatial_ndim))
    return Scale(a, b, means, means)


def next_scale(scale: Scale, rule: str, spatial_ndim: int, halve) -> Scale:
    """Half the size along each spatial axis: the mean of 2x2 pixels, of the centred images."""
    images = ((scale.a, scale.shift[0]), (scale.b, scale.shift[1]))
    a, b = (halve(evened(x, rule, spatial_ndim), shift, spatial_ndim) for x, shift in images)
    zeros = (jnp.zeros_like(scale.shift[0]), jnp.zeros_like(scale.shift[1]))
    return Scale(a, b, zeros, scale.brightness)


def pad_with_zeros(scale: Scale, taps: tuple[float, ...], spatial_ndim: int) -> Scale:
    """Zeros around the images, so that every pixel is the centre of a window ("same" padding)."""
    before = len(taps) // 2
    spatial = (before, len(taps) - 1 - before)

    def pad(x, shift, brightness):
        axes = spatial_axes(x, spatial_ndim)
        margins = [spatial if axis in axes else (0, 0) for axis in range(x.ndim)]
        inside = jnp.pad(jnp.ones([x.shape[axis] if axis in axes else 1 for axis in range(x.ndim)], bool), margins)
        # A pixel of value 0 is 0 - brightness + shift in the coordinates of this scale.
        return jnp.where(inside, jnp.pad(x, margins), shift - brightness)

    a, b = map(pad, (scale.a, scale.b), scale.shift, scale.brightness)
    return scale._replace(a=a, b=b)


def halved(size: int, rule: str, times: int) -> int:
    """Length of an axis after it was halved some times: an odd one is rounded up ("edge") or down."""
    for _ in range(times):
        size = (size + 1) // 2 if rule == "edge" else size // 2
    return size


def smallest_side(size: int, rule: str, times: int) -> int:
    """The shortest axis that is still ``size`` long after it was halved some times."""
    return (size - 1) * 2**times + 1 if rule == "edge" else size * 2**times


def evened(x: jax.Array, rule: str, spatial_ndim: int) -> jax.Array:
    """``x`` with an even number of pixels along each axis: an odd one's last line once more, or left out."""
    for axis in spatial_axes(x, spatial_ndim):
        size = x.shape[axis]
        if size % 2 == 1:
            last = lax.slice_in_dim(x, size - 1, size, axis=axis)
            x = jnp.concatenate([x, last], axis) if rule == "edge" else lax.slice_in_dim(x, 0, size - 1, axis=axis)
    return x


def spatial_axes(x: jax.Array, spatial_ndim: int) -> range:
    """The axes of an image that are halved and filtered."""
    return range(x.ndim - 1 - spatial_ndim, x.ndim - 1)


def _channel_means(x, spatial_ndim):
    # Any number near the mean serves, as it is added back exactly: its rounding does not matter.
    for axis in spatial_axes(x, spatial_ndim):
        x = x.mean(axis, keepdims=True)
    return lax.stop_gradient(x)
