"""Means over positions, with all the digits of float32, and what they need of arrays."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def spatial_axes(x: jax.Array, spatial_ndim: int) -> range:
    """The axes of an image that are filtered and halved."""
    return range(x.ndim - 1 - spatial_ndim, x.ndim - 1)


def stacked(*arrays: jax.Array) -> jax.Array:
    """Arrays of one shape along a new first axis. XLA's CPU backend makes one loop of what computes them."""
    return lax.concatenate([lax.expand_dims(x, (0,)) for x in arrays], 0)


def unstacked(x: jax.Array) -> list[jax.Array]:
    """The arrays along a first axis."""
    return [lax.index_in_dim(x, k, 0, keepdims=False) for k in range(len(x))]


def places(shape: Sequence[int], axis: int) -> jax.Array:
    """0, 1, ... along an axis of an array of this shape, all others of size 1."""
    along = [1] * len(shape)
    along[axis] = shape[axis]
    return lax.broadcasted_iota(np.int32, along, axis % len(shape))


def below(shape: Sequence[int], axes: Sequence[int], limits: Sequence[jax.Array]) -> jax.Array:
    """Where the place along each of some axes is below a limit, which has size 1 along them."""
    # All but the first axis limit the first: only one comparison is of as many numbers as the shape has.
    (first, *others), (limit, *more) = axes, limits
    for axis, other in zip(others, more, strict=True):
        limit = limit * (places(shape, axis) < other).astype(limit.dtype)
    return places(shape, first) < limit


def selected(counts: jax.Array, x: jax.Array) -> jax.Array:
    """0 where a number does not count, NaN though it may be."""
    # Not jnp.where, a call inside others, which XLA may leave a call.
    return lax.select(jnp.broadcast_to(counts, x.shape), x, lax.full_like(x, 0))


def or_one(x: jax.Array) -> jax.Array:
    """To divide by where nothing is left."""
    # Not jnp.where, a call inside others: on that the partitioner of JAX 0.9 crashes where the batch is sharded.
    return lax.select(x > 0, x, lax.full_like(x, 1))


def mean_positions(x: jax.Array, counted: jax.Array | None, axes: range, cut_over: tuple[str, ...] = ()) -> jax.Array:
    """The mean over some axes and all shards, of the positions that count; NaN where none does."""
    if counted is None:
        return mean_of_map(x, axes)
    weights = jnp.broadcast_to(counted, x.shape).astype(x.dtype)
    x, weights = weighted_mean(x, weights, axes)
    if cut_over:
        # One by one: JAX 0.7 cannot differentiate them together, where only one is.
        x, weights = lax.pmean(weights * x, cut_over), lax.pmean(weights, cut_over)
        x = x / or_one(weights)
    return jnp.where(weights > 0, x, jnp.nan)


def weighted_mean(x: jax.Array, weights: jax.Array, axes: range) -> tuple[jax.Array, jax.Array]:
    """The mean over some axes, one after another, by weights, 0 where they all are, and the mean of the weights.

    As the least number that weighs something, and what others are above it: for what that gains see
    :func:`mean_of_map`.
    """
    axis = axes.start
    for _ in axes:
        share = mean_of_map(weights, range(axis, axis + 1))
        largest = lax.full_like(x, jnp.finfo(x.dtype).max)
        least = lax.stop_gradient(lax.select(weights > 0, x, largest).min(axis))
        least = lax.select(share > 0, least, lax.full_like(share, 0))
        above = weights * (x - lax.expand_dims(least, (axis,)))
        x, weights = least + above.mean(axis) / or_one(share), share
    return x, weights


def mean_by_axis(x: jax.Array, axes: range) -> jax.Array:
    """The mean over some axes, one after another.

    One float32 chain over two million positions is off by 5e-5. XLA makes one chain of a sum of sums, too, but not of a
    mean of means.
    """
    for _ in axes:
        x = x.mean(axes.start)
    return x


def mean_of_map(x: jax.Array, axes: range) -> jax.Array:
    """:func:`mean_by_axis`, as a line of the map plus the mean of what differs from it.

    Where the map is nearly constant, as for flat images and patterns, the roundings of a sum have one sign: 4096 lines
    were off by 1.4e-5. The differences from a line sum to little or nothing.
    """
    for _ in axes:
        line = reference_line(x, axes.start)
        x = (line + (x - line).mean(axes.start, keepdims=True)).squeeze(axes.start)
    return x


def reference_line(x: jax.Array, axis: int) -> jax.Array:
    """The smaller of two lines of a map along an axis, which keeps size 1.

    Two, since a line that is far above the mean brings its own rounding: where images differ in the last line alone,
    and that was the reference, a mean over 2048 lines was off by 2e-5.
    """
    size = x.shape[axis]
    middle, last = (lax.slice_in_dim(x, i, i + 1, axis=axis) for i in (size // 2, size - 1))
    return lax.stop_gradient(lax.min(middle, last))


def channel_means(
    x: jax.Array, where: jax.Array | None, spatial_ndim: int, cut_over: tuple[str, ...] = ()
) -> jax.Array:
    """The mean of each channel over the valid pixels, with spatial axes of size 1: a number to measure others from."""
    axes = spatial_axes(x, spatial_ndim)
    if where is None:
        pixel = functools.reduce(lambda x, axis: lax.slice_in_dim(x, 0, 1, axis=axis), axes, x)
        x = pixel + (x - pixel).mean(axes, keepdims=True)
    else:
        x, count = jnp.where(where, x, 0), where.astype(x.dtype)
        for axis in axes:
            x, count = x.sum(axis, keepdims=True), count.sum(axis, keepdims=True)
        x, count = lax.psum((x, count), cut_over) if cut_over else (x, count)
        x = x / jnp.maximum(count, 1)
    # Any number near the mean serves, but it must be the same everywhere. XLA may compute the mean's last product again
    # where it is used, unrounded (FMA). So it is rounded once more, by a bit.
    kind = jnp.finfo(x.dtype)
    return lax.reduce_precision(lax.stop_gradient(x), exponent_bits=kind.nexp, mantissa_bits=kind.nmant - 1)
