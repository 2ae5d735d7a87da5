"""The scales of MS-SSIM: two images, centred once, halved again and again, and padded for the window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_msssim._terms import Brightness

DOWNSAMPLE_RULES = ("edge", "floor", "zero", "edge_start")
PADDINGS = ("valid", "same", "reflect", "symmetric")


class Scale(NamedTuple):
    """Two images at one scale, each ``[..., *spatial, C]``, and what their brightness is.

    Similarity but for its luminance does not depend on a constant added to a pixel, and arithmetic does: the
    closer the pixels are to zero, the less is rounded away. So the mean of each channel leaves the images and
    their difference, once, and luminance adds it back.

    At the first scale ``images`` are the caller's own, uncopied, and ``means`` are those of a, b and a - b, still
    to be subtracted. At the others ``images`` are the centred sum and difference, and ``means`` is None: halved
    apart, two images that are nearly equal would be rounded apart. ``valid`` tells which pixels count (None: all);
    the others hold finite numbers without meaning.
    """

    images: tuple[jax.Array, jax.Array]
    means: tuple[jax.Array, jax.Array, jax.Array] | None
    brightness: Brightness
    valid: jax.Array | None


def sum_and_difference(images, means) -> tuple[jax.Array, jax.Array]:
    """The centred sum and difference of a scale's images.

    Each in the order that keeps it exact: a bright pair is centred before it is added, and a pair of nearly equal
    images is subtracted before anything is rounded.
    """
    if means is None:
        return images
    (a, b), (mean_a, mean_b, mean_difference) = images, means
    return (a - mean_a) + (b - mean_b), (a - b) - mean_difference


def first_scale(a: jax.Array, b: jax.Array, where: jax.Array | None, spatial_ndim: int) -> Scale:
    """The images as they came, with their means."""
    if where is None:
        a, b = _sharded_alike(a, b)
    else:
        a, b, where = _sharded_alike(a, b, jnp.broadcast_to(where, a.shape))
        a, b = jnp.where(where, a, 0), jnp.where(where, b, 0)
    mean_a, mean_b, mean_difference = (_channel_means(x, where, spatial_ndim) for x in (a, b, a - b))
    # From a centred sum and difference, each image is centred by these: by about nothing where it is black.
    centre_a = (mean_a + (mean_b + mean_difference)) / 2
    centre_b = (mean_b + (mean_a - mean_difference)) / 2
    brightness = Brightness(mean_a + mean_b, mean_difference, centre_a, centre_b)
    return Scale((a, b), (mean_a, mean_b, mean_difference), brightness, where)


def next_scale(scale: Scale, rule: str, spatial_ndim: int, halve) -> Scale:
    """Half the size along each spatial axis: the mean of 2x2 pixels."""
    first, second = (evened(x, rule, spatial_ndim, black) for x, black in zip(scale.images, _black(scale), strict=True))
    if scale.valid is None:
        return Scale(halve((first, second), scale.means, spatial_ndim), None, scale.brightness, None)
    # The mean over the valid ones of 2x2 pixels: the mean with zeros for the others, over the share of valid ones.
    valid = evened(scale.valid, rule, spatial_ndim)
    weights = valid.astype(first.dtype)
    (share, _) = halve((weights, weights), None, spatial_ndim)
    some = share > 0
    s, d = (jnp.where(valid, x, 0) for x in sum_and_difference((first, second), scale.means))
    s, d = (x / jnp.where(some, share, 1) for x in halve((s, d), None, spatial_ndim))
    return Scale((s, d), None, scale.brightness, share == 1 if rule == "floor" else some)


def padded(scale: Scale, padding: str, size: int, spatial_ndim: int) -> Scale:
    """The scale with a margin around it, so that every pixel is the centre of a window of ``size`` taps."""
    if padding == "valid":
        return scale
    axes = spatial_axes(scale.images[0], spatial_ndim)
    margins = [(size // 2, size // 2) if axis in axes else (0, 0) for axis in range(scale.images[0].ndim)]
    if padding != "same":
        skipped = 1 if padding == "reflect" else 0
        first, second = scale.images
        for axis in axes:
            first, second = (_mirrored(x, axis, size // 2, skipped) for x in (first, second))
        return scale._replace(images=(first, second))
    first, second = (_surrounded(x, margins, black) for x, black in zip(scale.images, _black(scale), strict=True))
    valid = None if scale.valid is None else jnp.pad(scale.valid, margins, constant_values=True)
    return scale._replace(images=(first, second), valid=valid)


def smallest_side(size: int, rule: str, times: int) -> int:
    """The shortest axis that is still ``size`` long after it was halved some times."""
    return size * 2**times if rule == "floor" else (size - 1) * 2**times + 1


def evened(x: jax.Array, rule: str, spatial_ndim: int, black: jax.Array | float = 0.0) -> jax.Array:
    """``x`` with an even number of pixels along each spatial axis; ``black`` is a pixel of value 0, for ``"zero"``."""
    axes = spatial_axes(x, spatial_ndim)
    odd = [axis for axis in axes if x.shape[axis] % 2 == 1]
    if not odd:
        return x
    if rule == "zero":  # a black line at both ends of an odd axis, the second of which is left without a partner
        x = _surrounded(x, [(1, 0) if axis in odd else (0, 0) for axis in range(x.ndim)], black)
    elif rule == "edge_start":  # the first line once more, on every axis if one is odd
        for axis in axes:
            x = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), x], axis)
    elif rule == "edge":  # the last line once more
        for axis in odd:
            size = x.shape[axis]
            x = jnp.concatenate([x, lax.slice_in_dim(x, size - 1, size, axis=axis)], axis)
    for axis in axes:
        x = lax.slice_in_dim(x, 0, x.shape[axis] // 2 * 2, axis=axis)
    return x


def spatial_axes(x: jax.Array, spatial_ndim: int) -> range:
    """The axes of an image that are filtered and halved."""
    return range(x.ndim - 1 - spatial_ndim, x.ndim - 1)


def mean_positions(x: jax.Array, counted: jax.Array | None, axes: range) -> jax.Array:
    """The mean over some axes, of the positions that count; NaN where none does."""
    if counted is None:
        return mean_of_map(x, axes)
    total, share = (mean_of_map(y, axes) for y in (jnp.where(counted, x, 0), counted.astype(x.dtype)))
    # Chosen after the division, so that the gradient is 0 and not NaN where no position counts.
    return jnp.where(share > 0, total / jnp.where(share > 0, share, 1), jnp.nan)


def mean_by_axis(x: jax.Array, axes: range) -> jax.Array:
    """The mean over some axes, one after another.

    One float32 chain over two million positions is off by 5e-5. A sum of sums becomes such a chain, too: XLA makes
    one of the two, which was off by 1e-5 at 48x48. A mean of means it leaves.
    """
    for _ in axes:
        x = x.mean(axes.start)
    return x


def mean_of_map(x: jax.Array, axes: range) -> jax.Array:
    """:func:`mean_by_axis`, as the last line plus the mean of what differs from it.

    Where the map is all but constant, as for flat images and patterns, the roundings of a sum go the same way: 4096
    lines were off by 1.4e-5. The differences sum to little or nothing.
    """
    for _ in axes:
        last = lax.stop_gradient(lax.index_in_dim(x, x.shape[axes.start] - 1, axes.start))
        x = (last + (x - last).mean(axes.start, keepdims=True)).squeeze(axes.start)
    return x


def _sharded_alike(*arrays: jax.Array) -> list[jax.Array]:
    """On an explicit mesh, what is whole on every device is cut as the others are; elsewhere nothing happens.

    Else the partitioner gathers the others, at every scale.
    """
    kinds = [jax.typeof(x).sharding for x in arrays]
    finest = min(kinds, key=lambda kind: tuple(kind.spec).count(None))
    return [x if kind == finest else jax.sharding.reshard(x, finest) for x, kind in zip(arrays, kinds, strict=True)]


def _black(scale: Scale) -> tuple[jax.Array, jax.Array]:
    """A pixel of value 0 in the coordinates of this scale's images."""
    black = -scale.brightness.sum, -scale.brightness.difference
    return black if scale.means is None else (jnp.zeros_like(black[0]), jnp.zeros_like(black[1]))


def _mirrored(x, axis, margin, skipped):
    # Not jnp.pad, which slices the other axes as well, and a sharded batch cannot be sliced.
    size = x.shape[axis]
    before = lax.slice_in_dim(x, skipped, skipped + margin, axis=axis)
    after = lax.slice_in_dim(x, size - skipped - margin, size - skipped, axis=axis)
    return jnp.concatenate([jnp.flip(before, axis), x, jnp.flip(after, axis)], axis)


def _surrounded(x: jax.Array, margins, pixel: jax.Array | float) -> jax.Array:
    inside = [size if any(margin) else 1 for size, margin in zip(x.shape, margins, strict=True)]
    return jnp.where(jnp.pad(jnp.ones(inside, bool), margins), jnp.pad(x, margins), pixel)


def _channel_means(x, where, spatial_ndim):
    axes = spatial_axes(x, spatial_ndim)
    if where is None:
        for axis in axes:
            x = x.mean(axis, keepdims=True)
    else:
        count = where.astype(x.dtype)
        for axis in axes:
            x, count = x.sum(axis, keepdims=True), count.sum(axis, keepdims=True)
        x = x / jnp.maximum(count, 1)
    # Any number near the mean serves, as it is added back, but it must be the same one everywhere: XLA may compute the
    # mean's last product anew where it is used, unrounded (FMA). So it is rounded once more, by a bit.
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(lax.stop_gradient(x), exponent_bits=kind.nexp, mantissa_bits=kind.nmant - 1)
