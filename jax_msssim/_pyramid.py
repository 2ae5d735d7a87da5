"""The scales of MS-SSIM: two images, halved again and again, and padded for the window."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_msssim._windows import Window

DOWNSAMPLE_RULES = ("edge", "floor", "zero", "edge_start")
PADDINGS = ("valid", "same", "reflect", "symmetric")

Pair = tuple[jax.Array, ...]  # one of a and one of b, or of their sum and their difference


class Scale(NamedTuple):
    """Two images at one scale, each ``[..., *spatial, C]``: at the first the caller's own, uncopied.

    At the others a pixel is a mean of pixels of the first, and such a mean, of 5000 say, is rounded by 2e-4, which is
    contrast. So it is held in two parts: ``anchors`` are one of these pixels, of a and of b, and ``above`` is what the
    sum and the difference of a and b are above those of the anchors. ``images`` are there to be differentiated:
    ``above`` has their derivative, and their values are not used.

    ``valid`` tells which pixels count (None: all); the others hold finite numbers without meaning. ``typical`` is a
    brightness of each image, one or one per channel, for what must be measured from one number: as an implementation
    of local statistics needs it.
    """

    images: Pair
    anchors: Pair | None
    above: Pair | None
    valid: jax.Array | None
    typical: Pair

    @property
    def pixels(self) -> Pair:
        """What ``above`` is added to: the anchors, or at the first scale, where it is None, the images."""
        return self.images if self.anchors is None else self.anchors


def change(before: Pair, after: Pair) -> Pair:
    """By how much the sum and the difference of a and b change from one pixel to another."""
    change_a, change_b = (y - x for x, y in zip(before, after, strict=True))
    return change_a + change_b, change_a - change_b


@jax.custom_jvp
def with_value(x: jax.Array, value: jax.Array) -> jax.Array:
    """``value``, which is ``x`` but for rounding, with the derivative of ``x``."""
    del x
    return value


@with_value.defjvp
def _with_value_jvp(primals, tangents):
    return with_value(*primals), tangents[0]


def first_scale(a: jax.Array, b: jax.Array, where: jax.Array | None, spatial_ndim: int, typical) -> Scale:
    """The images as they came; where they are masked, the mean of the others."""
    if where is None:
        a, b = _sharded_alike(a, b)
    else:
        a, b, where = _sharded_alike(a, b, jnp.broadcast_to(where, a.shape))
        a, b = (jnp.where(where, x, channel_means(x, where, spatial_ndim)) for x in (a, b))
    return Scale((a, b), None, None, where, tuple(typical(x, where, spatial_ndim) for x in (a, b)))


def next_scale(scale: Scale, rule: str | None, spatial_ndim: int, halve) -> Scale:
    """Half the size along each spatial axis: the mean of 2x2 pixels, of the valid ones where some are masked."""
    images, anchors, above, share = halve(_mapped(scale, lambda x: evened(x, rule, spatial_ndim)), spatial_ndim)
    a, b = images
    above = tuple(with_value(*pair) for pair in zip((a + b, a - b), above, strict=True))
    valid = None if share is None else share == 1 if rule == "floor" else share > 0
    return Scale(images, anchors, above, valid, scale.typical)


def scales_from(first: Scale, count: int, rule: str | None, paddings: tuple[str, str], window: Window, halve):
    """So many scales, each half the one before, as the window shall see them: the last by the second padding."""
    scales = [first]
    for _ in range(count - 1):
        scales.append(next_scale(scales[-1], rule, window.spatial_ndim, halve))
    last = count - 1
    return [padded(scale, paddings[int(j == last)], window) for j, scale in enumerate(scales)]


def padded(scale: Scale, padding: str, window: Window) -> Scale:
    """The scale with a margin around it, so that every pixel is the centre of a window."""
    if padding == "valid":
        return scale
    size, spatial_ndim = len(window.taps), window.spatial_ndim
    axes = spatial_axes(scale.images[0], spatial_ndim)
    margins = [(size // 2, size // 2) if axis in axes else (0, 0) for axis in range(scale.images[0].ndim)]

    def with_margin(x):
        if padding == "same":  # zeros around the image are valid pixels
            return jnp.pad(x, margins, constant_values=1 if x.dtype == bool else 0)
        for axis in axes:
            x = _mirrored(x, axis, size // 2, skipped=1 if padding == "reflect" else 0)
        return x

    return _mapped(scale, with_margin)


def smallest_side(size: int, rule: str, times: int) -> int:
    """The shortest axis that is still ``size`` long after it was halved some times."""
    return size * 2**times if rule == "floor" else (size - 1) * 2**times + 1


def evened(x: jax.Array, rule: str | None, spatial_ndim: int) -> jax.Array:
    """``x`` with an even number of pixels along each spatial axis."""
    axes = spatial_axes(x, spatial_ndim)
    odd = [axis for axis in axes if x.shape[axis] % 2 == 1]
    if not odd:
        return x
    if rule == "zero":  # a line of zeros at both ends of an odd axis, the second of which is left without a partner
        x = jnp.pad(x, [(1, 0) if axis in odd else (0, 0) for axis in range(x.ndim)])
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
    """:func:`mean_by_axis`, as a line of the map plus the mean of what differs from it.

    Where the map is all but constant, as for flat images and patterns, the roundings of a sum go the same way: 4096
    lines were off by 1.4e-5. The differences sum to little or nothing. Of a map that is not negative the smaller of two
    lines is the better one, since one that is far above the mean brings its own rounding: where images differ in the
    last line alone, 2048 were off by 2e-5.
    """
    for _ in axes:
        size = x.shape[axes.start]
        middle, last = (lax.index_in_dim(x, i, axes.start) for i in (size // 2, size - 1))
        line = lax.stop_gradient(lax.min(middle, last))
        x = (line + (x - line).mean(axes.start, keepdims=True)).squeeze(axes.start)
    return x


def channel_means(x: jax.Array, where: jax.Array | None, spatial_ndim: int) -> jax.Array:
    """The mean of each channel over the valid pixels, with spatial axes of size 1: a number to measure others from."""
    axes = spatial_axes(x, spatial_ndim)
    if where is None:
        for axis in axes:
            x = x.mean(axis, keepdims=True)
    else:
        x, count = jnp.where(where, x, 0), where.astype(x.dtype)
        for axis in axes:
            x, count = x.sum(axis, keepdims=True), count.sum(axis, keepdims=True)
        x = x / jnp.maximum(count, 1)
    # Any number near the mean serves, but it must be the same one everywhere: XLA may compute the mean's last product
    # anew where it is used, unrounded (FMA). So it is rounded once more, by a bit.
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(lax.stop_gradient(x), exponent_bits=kind.nexp, mantissa_bits=kind.nmant - 1)


def _mapped(scale: Scale, function) -> Scale:
    """A function of each array of pixels."""
    mapped = jax.tree.map(function, scale._replace(typical=()))
    return mapped._replace(typical=scale.typical)


def _sharded_alike(*arrays: jax.Array) -> list[jax.Array]:
    """On an explicit mesh, what is whole on every device is cut as the others are; elsewhere nothing happens.

    Else the partitioner gathers the others, at every scale.
    """
    kinds = [jax.typeof(x).sharding for x in arrays]
    finest = min(kinds, key=lambda kind: tuple(kind.spec).count(None))
    return [x if kind == finest else jax.sharding.reshard(x, finest) for x, kind in zip(arrays, kinds, strict=True)]


def _mirrored(x, axis, margin, skipped):
    # Not jnp.pad, which slices the other axes as well, and a sharded batch cannot be sliced.
    size = x.shape[axis]
    before = lax.slice_in_dim(x, skipped, skipped + margin, axis=axis)
    after = lax.slice_in_dim(x, size - skipped - margin, size - skipped, axis=axis)
    return jnp.concatenate([jnp.flip(before, axis), x, jnp.flip(after, axis)], axis)
