"""The hot loop: the mean of each term over one scale, by shifted slices, with its derivative.

Local moments are computed one axis after another, and always from a pixel of the very window they belong to, its
*pivot*, the one under the largest tap. Along an axis, with ``e`` what each sample is above the pivot,

    m = sum g e               the mean, above the pivot
    v = sum g (u + e^2) - m^2   the variance; u is that of each sample, from the axis before

and the pivot plus m is a sample of the next axis. The ``e`` are sums of changes from one sample to the next, which are
computed once for all windows (``_pyramid.change``). So brightness never enters, be it of the image or of a part of it,
and nothing cancels: ``m^2`` is at most ``1 / tap - 1`` times the variance, as the pivot has the largest tap (2.8 times
with the papers' window). With a mask the same passes carry the window's mass.

A pass adds up shifted slices, which vectorises on every platform and is exact float32 even where convolutions are not
(TPU, GPU). Images are folded: the last spatial axis and the channels are one axis, so a tap there is ``channels``
apart and every row is long. No axis of the batch is ever merged with another, so a sharded batch stays put.

What is peculiar to the CPU, measured on two cores at 8x256x256x3 and 1x1080x1920x3 (docs/notes/speed.md):

* XLA's CPU backend fuses a pass into the next one and then computes the first anew for each of the
  second's taps. Each stage here is a call that it may not inline, hence not fuse.
* The last pass is fused with the term all the same: that takes 0.9 of the time of three stages.
* A reduction fused with the division before it is scalar code. The maps are a stage, their sums another.
* Memory touched for the first time is paid for page by page. Working through the image in blocks of rows and columns
  reuses a few buffers that stay in the cache. The loop runs over these, never over the batch. Of large images
  without derivatives the second scale is made in the loop of the first, and only a block of it ever held.
* A stage takes its block out of the whole image itself, each sample at one offset from the block's start: a copy of the
  block is a stage more, and slices of a slice whose start is traced are scalar code (0.38 against 0.06 ms).
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jax_msssim._pyramid import Pair, Scale, change, mean_by_axis, mean_of_map, scales_from, spatial_axes
from jax_msssim._terms import Means, Variances, fraction_of, value_of
from jax_msssim._windows import Window

# Samples (batch x rows x columns x channels) in a block: about 1.3 MB a map in float32, a dozen of which
# are alive at once. Blocks of whole rows, where at least 32 fit: with fewer their halo costs more than that of columns.
# With no more than 64 a batch that is hidden from this code by vmap fits as well.
_BLOCK_SAMPLES = 320_000
_BLOCK_MIN_ROWS, _BLOCK_MAX_ROWS, _BLOCK_MIN_COLUMNS = 32, 64, 128

# Samples of a large image: with more, all scales together take memory that the C library gives back after each call.
_LARGE_SAMPLES = 5_000_000

IMAGES = ("a", "b")


class Stencil(NamedTuple):
    """What a stage has to know: the window, the folded layout, the rows and columns of windows in a block, the type.

    ``on_cpu`` tells for which platform the program is (None: undecided).
    """

    window: Window
    channels: int
    rows: int
    columns: int
    dtype: str
    on_cpu: bool | None = None

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """Spatial axes of a folded image, first to last, each with the distance between its samples."""
        return (*((axis, 1) for axis in range(-self.window.spatial_ndim, -1)), (-1, self.channels))

    @property
    def transposed(self) -> "Stencil":
        """The stencil of the adjoint blur."""
        return self._replace(window=self.window._replace(taps=self.window.taps[::-1]))

    @property
    def taps(self) -> np.ndarray:
        """Those of the window, in the type of the arithmetic."""
        return np.asarray(self.window.taps, self.dtype)

    def unfold(self, x):
        """The last axis of a folded array as columns and channels."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.channels, self.channels)

    def run(self, stage, *args):
        """Calls a jitted stage, which XLA shall not fuse with others once the platform is decided.

        On the CPU it is a computation of its own, as a barrier is gone before XLA fuses there. Elsewhere a barrier
        follows: value and gradient of MS-SSIM at 8x256x256x3 takes 0.33 ms on an H200, and 0.46 as XLA fuses it.
        """
        if self.on_cpu is None:
            return stage(self, *args)
        if not self.on_cpu:
            return lax.optimization_barrier(stage(self, *args))
        with set_xla_metadata(inlineable="false"):
            return stage(self, *args)

    def per_platform(self, function, *arrays):
        """``function(stencil, *arrays)`` with the stages kept apart, each platform's way."""
        if self.on_cpu is not None:
            return function(self, *arrays)
        return lax.platform_dependent(
            *arrays,
            cpu=functools.partial(function, self._replace(on_cpu=True)),
            default=functools.partial(function, self._replace(on_cpu=False)),
        )


def _stage(*static_argnums):
    return functools.partial(jax.jit, static_argnums=(0, *static_argnums))


# --- one scale --------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """The arrays of one scale in folded layout, of :class:`jax_msssim._pyramid.Scale`.

    ``after`` is a result of the scale that is to be worked through before this one.
    """

    a: jax.Array
    b: jax.Array
    c1: jax.Array
    c2: jax.Array
    anchors: Pair | None
    above: Pair | None
    valid: jax.Array | None
    typical: Pair
    after: jax.Array | None = None

    @property
    def pixels(self) -> Pair:
        """What ``above`` is added to: the anchors, or at the first scale the images."""
        return (self.a, self.b) if self.anchors is None else self.anchors


def term_map(term, scale: Scale, c1, c2, window: Window) -> jax.Array:
    """The term's value at every position, ``[..., *positions, C]``, whether it counts or not."""
    stencil, operands = _folded(scale, c1, c2, window)
    return stencil.unfold(_value_of(stencil, term, _local(stencil, operands, None), operands, None))


def counted(scale: Scale, window: Window) -> jax.Array | None:
    """Which positions count: those whose window holds little enough that is masked. None: all."""
    if scale.valid is None:
        return None
    stencil, operands = _folded(scale, None, None, window)
    return stencil.unfold(_coverage(stencil, operands, None)[1])


class Layout(NamedTuple):
    """What is asked of the scales: the terms of each, the padding of all but the last and of the last, how to halve."""

    terms: tuple[tuple[str, ...], ...]
    window: Window
    paddings: tuple[str, str]
    rule: str | None


def term_means(terms, first: Scale, c1, c2, window: Window, paddings, rule=None) -> list[tuple[jax.Array, ...]]:
    """At each scale the mean of each of its terms over the positions that count, ``[..., C]``; NaN where none does.

    ``"product"`` comes with ``"similarity"`` and takes no part in derivatives, which would be the same.
    """
    layout = Layout(tuple(terms), window, paddings, rule)
    grid = _grid_of_two_scales(layout, first)
    if grid is None:
        return _scale_by_scale(layout, first, c1, c2)
    return _first_two_together(layout, grid, first, c1, c2)


def _scale_by_scale(layout: Layout, first: Scale, c1, c2):
    terms, window, paddings, rule = layout
    scales = scales_from(first, len(terms), rule, paddings, window, halve)
    means, after = [], None
    for terms_of_scale, scale in zip(reversed(terms), reversed(scales), strict=True):
        stencil, operands = _folded(scale, c1, c2, window)
        means.append(_means(stencil, terms_of_scale, operands._replace(after=after)))
        after = lax.stop_gradient(means[-1][0])
    return means[::-1]


def typical(x, where, spatial_ndim: int) -> jax.Array:
    """The middle pixel of the first channel: without a mean's rounding, a flat image is nothing but it."""
    del where  # masked pixels hold a mean
    for axis in range(x.ndim - spatial_ndim - 1, x.ndim):
        middle = x.shape[axis] // 2 if axis < x.ndim - 1 else 0
        x = lax.slice_in_dim(x, middle, middle + 1, axis=axis)
    return lax.stop_gradient(x)


def halve(scale: Scale, spatial_ndim: int):
    """The next scale's images, anchors and ``above``, and the share of valid pixels in each 2x2."""
    like = scale.images[0]
    weights = None if scale.valid is None else scale.valid.astype(like.dtype)
    stencil = _stencil_for(like, Window((1.0,), spatial_ndim))
    pixels, above = jax.tree.map(lax.stop_gradient, (scale.pixels, scale.above))
    anchors, above, share = stencil.per_platform(_halve_values, pixels, above, weights)
    images = stencil.per_platform(_halve_images, scale.images, weights, share)
    return images, anchors, above, share


def _halve_values(stencil: Stencil, *arrays):
    return stencil.run(_halve, *arrays)


def _halve_images(stencil: Stencil, images, weights, share):
    # Only to be differentiated. A sum over split axes, not the sums of slices below: its transpose repeats pixels,
    # theirs pads them. And a stage of its own: else the gradient of the first scale is one loop with those of all
    # others, each computed anew for every pixel (5.7 ms at 8x256x256x3).
    def mean(x):
        x = x if weights is None else weights * x
        for axis in range(-stencil.window.spatial_ndim - 1, -1):
            x = _split(x, axis).mean(axis)
        x = stencil.run(_apart, x)
        return x if share is None else x / _or_one(share)

    return tuple(map(mean, images))


@_stage()
def _apart(stencil: Stencil, x):
    kind = jnp.finfo(stencil.dtype)
    return lax.reduce_precision(x, exponent_bits=kind.nexp, mantissa_bits=kind.nmant)  # changes nothing


@_stage()
def _halve(stencil: Stencil, pixels, above, weights):
    # One axis after another, of slices of one that is split in two, [..., H/2, 2, W, C]: one loop for each result, four
    # times as fast on the CPU as reduce_window.
    share, above = weights, jax.tree.map(jnp.zeros_like, pixels) if above is None else above
    for axis in range(-stencil.window.spatial_ndim - 1, -1):
        pixels, others = _pairs(pixels, axis)
        first, second = _pairs(above, axis)
        second = tuple(map(lax.add, second, change(pixels, others)))
        if share is None:
            above = tuple((x + y) / 2 for x, y in zip(first, second, strict=True))
        else:
            (v,), (w,) = _pairs((share,), axis)
            above = tuple((v * x + w * y) / _or_one(v + w) for x, y in zip(first, second, strict=True))
            share = (v + w) / 2
    return pixels, above, share


def _pairs(arrays, axis):
    """The even lines of some arrays along an axis, and the odd ones."""
    split = [_split(x, axis) for x in arrays]
    return tuple(tuple(lax.index_in_dim(x, i, axis % x.ndim, keepdims=False) for x in split) for i in (0, 1))


def _split(x, axis):
    """An axis split in two, the second of size 2, by a reshape of no other: the batch may be sharded."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])


def _or_one(x):
    """To divide by, where nothing is left."""
    # Not jnp.where, a call inside this one: on that the partitioner of JAX 0.9 crashes where the batch is sharded.
    return lax.select(x > 0, x, lax.full_like(x, 1))


def _fold(x):
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _along_row(x, columns):
    """What is one number per channel, ``[..., 1, C]``, repeated along the row and folded."""
    return _fold(jnp.broadcast_to(x, (*x.shape[:-2], columns, x.shape[-1])))


def _stencil_for(image, window: Window) -> Stencil:
    """That of an image ``[..., *spatial, C]``, taken whole."""
    rows, columns = (image.shape[axis] - window.halo for axis in (-window.spatial_ndim - 1, -2))
    return Stencil(window, image.shape[-1], rows, columns, image.dtype.name)


def _folded(scale: Scale, c1, c2, window: Window) -> tuple[Stencil, Operands]:
    like = scale.images[0]
    *arrays, typical = scale
    images, anchors, above, valid = jax.tree.map(_fold, arrays)
    c1, c2, typical = jax.tree.map(lambda x: x[..., 0], (c1, c2, typical))
    a, b = images
    return _stencil_for(like, window), Operands(a, b, c1, c2, anchors, above, valid, typical)


# --- local moments ----------------------------------------------------------------------------------------


class Local(NamedTuple):
    """Of each window, the means of the sum and the difference above those of its pivot, and their variances."""

    mean_sum: jax.Array
    variance_sum: jax.Array
    mean_difference: jax.Array
    variance_difference: jax.Array


def _part(stencil: Stencil, x, start, offsets, sizes):
    """Of the block of a whole image that begins at row and column ``start`` (None: the first), some along each axis.

    In the type of the arithmetic: a mask is not converted whole.
    """
    begin, size = [0] * x.ndim, list(x.shape)
    for (axis, step), offset, length in zip(stencil.axes, offsets, sizes, strict=True):
        begin[axis], size[axis] = offset * step, length * step
    if start is None:
        part = lax.slice(x, begin, [first + n for first, n in zip(begin, size, strict=True)])
    else:
        for (axis, step), first in zip((stencil.axes[0], stencil.axes[-1]), start, strict=True):
            begin[axis] += first * step
        part = lax.dynamic_slice(x, begin, size)
    return part.astype(stencil.dtype)


def _block(stencil: Stencil, x, start):
    """The block's own pixels, with their halo."""
    sizes = _sizes(stencil, x)
    return _part(stencil, x, start, [0] * len(sizes), sizes)


def _pivots(stencil: Stencil, x, start):
    """The pixel under the largest tap of each window of the block."""
    sizes = [size - stencil.window.halo for size in _sizes(stencil, x)]
    return _part(stencil, x, start, [stencil.window.pivot] * len(sizes), sizes)


def _sizes(stencil: Stencil, x) -> list[int]:
    """Pixels of a block along each axis."""
    sizes = [x.shape[axis] // step for axis, step in stencil.axes]
    sizes[-1] = stencil.columns + stencil.window.halo
    sizes[0] = stencil.rows + stencil.window.halo  # of a signal, which has one axis, this one
    return sizes


@_stage(4)
def _changes(stencil: Stencil, operands: Operands, means, start, n) -> Pair:
    """From each sample to the next along the n-th axis; a sample is the mean of a window over the axes before it."""
    pivot, halo = stencil.window.pivot, stencil.window.halo
    ahead = min(1, halo)  # a window of one pixel has no next one: all changes are 0
    sizes = _sizes(stencil, operands.a)
    sizes = [*(size - halo for size in sizes[:n]), sizes[n] - ahead, *sizes[n + 1 :]]

    def samples(x, i):
        offsets = [*[pivot] * n, i, *[0] * (len(sizes) - n - 1)]
        return _part(stencil, x, start, offsets, sizes)

    changes = change(*(tuple(samples(x, i) for x in operands.pixels) for i in (0, ahead)))
    if operands.above is not None:
        steps = (samples(x, ahead) - samples(x, 0) for x in operands.above)
        changes = tuple(map(lax.add, changes, steps))
    if n > 0:
        axis, step = stencil.axes[n]
        pairs = (_shifted(x, axis, step, ahead + 1) for x in means)
        changes = tuple(x + (pair[-1] - pair[0]) for x, pair in zip(changes, pairs, strict=True))
    return changes


def _shifted(x, axis, step, count):
    """So many slices of an array along an axis, each one sample on."""
    size = x.shape[axis] - (count - 1) * step
    return [lax.slice_in_dim(x, i * step, i * step + size, axis=axis % x.ndim) for i in range(count)]


def _weighted_sum(weights, parts):
    """Of the parts that are not None, which is 0."""
    # Operators would do, and take three times as long to trace: there are thousands of them.
    products = (lax.mul(weight, part) for weight, part in zip(weights, parts, strict=True) if part is not None)
    return functools.reduce(lax.add, products)


def _blur_axis(stencil: Stencil, x, axis, step):
    return _weighted_sum(stencil.taps, _shifted(x, axis, step, len(stencil.taps)))


@_stage(2, 3)
def _blur_all(stencil: Stencil, arrays, axis, step):
    return tuple(_blur_axis(stencil, x, axis, step) for x in arrays)


@_stage()
def _blur_rows(stencil: Stencil, arrays, offset):
    """Along the first axis, a block of rows from ``offset`` on; all where that is None."""
    axis, step = stencil.axes[0]
    if offset is None:
        return tuple(_blur_axis(stencil, x, axis, step) for x in arrays)

    def row(x, k):
        return lax.dynamic_slice_in_dim(x, (offset + k) * step, stencil.rows * step, axis % x.ndim)

    taps = stencil.taps
    return tuple(_weighted_sum(taps, [row(x, k) for k in range(len(taps))]) for x in arrays)


@_stage(2)
def _with_margins(stencil: Stencil, arrays, axes):
    # A stage: fused into the one that makes the arrays or the one that blurs them it makes scalar code of that.
    margins = [(0, 0, 0)] * arrays[0].ndim
    for axis, step in axes:
        margins[axis] = (stencil.window.halo * step, stencil.window.halo * step, 0)
    return tuple(lax.pad(x, lax.full((), 0, x.dtype), margins) for x in arrays)


@_stage()
def _between(stencil: Stencil, above, arrays, below):
    # A stage for the same reason.
    axis, _ = stencil.axes[0]
    return tuple(lax.concatenate((x, y, below), axis % y.ndim) for x, y in zip(above, arrays, strict=True))


def _blur(stencil: Stencil, x):
    for axis, step in stencil.axes:
        x = _blur_axis(stencil, x, axis, step)
    return x


def _moments_along(stencil: Stencil, changes, mean, variance, mass, n):
    """Mean above the pivot and variance of windows along the n-th axis, and their mass where pixels are masked."""
    window, (axis, step) = stencil.window, stencil.axes[n]
    if not window.halo:
        return changes, changes, mass
    changes = _shifted(changes, axis, step, window.halo)
    after = itertools.accumulate(changes[window.pivot :], lax.add)
    before = [lax.neg(e) for e in itertools.accumulate(changes[: window.pivot][::-1], lax.add)]
    deviations = [*before[::-1], None, *after]  # None is 0, not an array of zeros: see _partials

    def samples(x):
        return _shifted(x, axis, step, len(deviations))

    def squares(deviations):
        terms = [e if e is None else lax.square(e) for e in deviations]
        if variance is None:
            return terms
        return [v if x is None else lax.add(x, v) for x, v in zip(terms, samples(variance), strict=True)]

    if mass is None:
        # From the changes, not the deviations: half the work where the mean is a stage's only result.
        new_mean = _weighted_sum(np.asarray(window.weights_of_changes, stencil.dtype), changes)
        new_variance = _weighted_sum(stencil.taps, squares(deviations)) - lax.square(new_mean)
    else:
        weights = list(map(lax.mul, stencil.taps, samples(mass)))
        mass = functools.reduce(lax.add, weights)
        share = 1 / _or_one(mass)
        new_mean = share * _weighted_sum(weights, deviations)
        # A masked pivot may be far from the valid pixels, and the square of the mean most of that of the deviations.
        new_variance = share * _weighted_sum(weights, squares([(0 if e is None else e) - new_mean for e in deviations]))
    if mean is not None:
        new_mean += samples(mean)[window.pivot]
    return new_mean, new_variance, mass


@_stage(5)
def _pass(stencil: Stencil, changes, mean, variance, mass, n):
    return _moments_along(stencil, changes, mean, variance, mass, n)


def _before_last_pass(stencil: Stencil, operands: Operands, start):
    """The last axis, and what the pass along it takes for the sum and for the difference."""
    last = len(stencil.axes) - 1
    moments = [(None, None, None if operands.valid is None else _block(stencil, operands.valid, start))] * 2
    for n in range(last):
        changes = stencil.run(_changes, operands, tuple(mean for mean, *_ in moments), start, n)
        moments = [stencil.run(_pass, x, *rest, n) for x, rest in zip(changes, moments, strict=True)]
    changes = stencil.run(_changes, operands, tuple(mean for mean, *_ in moments), start, last)
    return last, [(x, *rest) for x, rest in zip(changes, moments, strict=True)]


def _local_of(moments) -> Local:
    (mean_sum, variance_sum, _), (mean_difference, variance_difference, _) = moments
    return Local(mean_sum, variance_sum, mean_difference, variance_difference)


def _passes(stencil: Stencil, operands: Operands, start) -> Local:
    last, arguments = _before_last_pass(stencil, operands, start)
    return _local_of([stencil.run(_pass, *each, last) for each in arguments])


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _local(stencil: Stencil, operands: Operands, start) -> Local:
    return stencil.per_platform(_passes, operands, start)


@_local.defjvp
def _local_jvp(stencil: Stencil, primals, tangents):
    # dM = G dx, above the pivot's dx, and dV = 2 G (x - M) dx. Differentiating the passes one by one gives the same and
    # compiles for a minute.
    operands, start = primals
    local = _local(stencil, operands, start)
    da, db = tangents[0].a, tangents[0].b
    mass = None if operands.valid is None else _coverage(stencil, operands, start)[0]
    valid = None if mass is None else _block(stencil, operands.valid, start)
    pixels = _above_typical(stencil, operands, start, _block)
    pivots = _above_typical(stencil, operands, start, _pivots)
    derivative = []
    for x, pivot, mean, whole in zip(pixels, pivots, local[::2], (da + db, da - db), strict=True):
        dx = _block(stencil, whole, start)
        dx = dx if valid is None else valid * dx
        by_mean, by_square = _blur(stencil, dx), _blur(stencil, x * dx)
        if mass is not None:
            by_mean, by_square = by_mean / mass, by_square / mass
        derivative += [by_mean - _pivots(stencil, whole, start), 2 * (by_square - (pivot + mean) * by_mean)]
    return local, Local(*derivative)


def _above_typical(stencil: Stencil, operands: Operands, start, part) -> Pair:
    """What the sum and the difference of a part of the images are above those of a typical pixel."""
    a, b = (part(stencil, x, start) for x in operands.pixels)
    typical_a, typical_b = operands.typical
    above = (a - typical_a) + (b - typical_b), (a - b) - (typical_a - typical_b)
    if operands.above is None:
        return above
    return tuple(x + part(stencil, y, start) for x, y in zip(above, operands.above, strict=True))


def _coverage(stencil: Stencil, operands: Operands, start) -> tuple[jax.Array, jax.Array]:
    """The window's weight of valid pixels (1 where there is none, to divide by), and where a position counts."""
    valid = _block(stencil, operands.valid, start)
    weights = valid, 1 - valid
    for axis, step in stencil.axes:
        weights = stencil.run(_blur_all, weights, axis, step)
    mass, missing = weights
    # Nothing missing is exactly 0, in any precision, so full coverage can be asked for.
    return _or_one(mass), (mass > 0) & (missing <= 1 - stencil.window.min_coverage)


def _value_of(stencil: Stencil, term, local: Local, operands: Operands, start):
    """The term at every window of a block."""
    return value_of(term, *_statistics(stencil, local, operands, start))


def _statistics(stencil: Stencil, local: Local, operands: Operands, start):
    """What a term is made of: how to compute the means, if need be, the variances, and the constants."""

    def means() -> Means:
        s, d = local.mean_sum, local.mean_difference
        if operands.above is not None:
            s, d = (x + _pivots(stencil, y, start) for x, y in zip((s, d), operands.above, strict=True))
        a, b = (_pivots(stencil, x, start) for x in operands.pixels)
        return Means(a + (s + d) / 2, b + (s - d) / 2, (a + b) + s, (a - b) + d)

    scale = stencil.window.covariance_scale
    variances = Variances(scale * local.variance_sum, scale * local.variance_difference)
    return means, variances, operands.c1, operands.c2


# --- means and their derivative ---------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _means(stencil: Stencil, terms, operands: Operands):
    return _means_and_gradients(stencil, terms, (), operands)[0]


def _means_and_gradients(stencil: Stencil, terms, wrt, operands: Operands):
    return stencil.per_platform(lambda chosen, operands: _over_blocks(chosen, terms, wrt, operands), operands)


def _means_jvp(stencil: Stencil, terms, primals, tangents):
    # A mean weighs every position alike, so its gradient image depends on the cotangent only through a
    # factor per image and channel. It is computed with the value, block by block; what is kept for the
    # backward pass is that image and none of the maps. What is not perturbed is not computed. Anchors and the
    # reference are not differentiated: pixels do not depend on what they are measured from.
    (operands,), (tangent,) = primals, tangents
    perturbed = {
        name: getattr(tangent, name)
        for name in (*IMAGES, "c1", "c2")
        if not isinstance(getattr(tangent, name), jax.custom_derivatives.SymbolicZero)
    }
    means, derivatives = [], []
    for group in [terms] if "product" in terms else [(term,) for term in terms]:
        (mean, *others), gradients = _means_and_gradients(stencil, group, tuple(perturbed), operands)
        derivative = jnp.zeros_like(mean)
        for (name, dx), gradient in zip(perturbed.items(), gradients, strict=True):
            if name in IMAGES:
                derivative += _mean_of_positions(stencil, mean_by_axis, gradient * dx)
            else:
                derivative += gradient * dx.reshape(*dx.shape[: -stencil.window.spatial_ndim], 1)
        means += [mean, *others]
        derivatives += [derivative, *map(jnp.zeros_like, others)]
    return tuple(means), tuple(derivatives)


_means.defjvp(_means_jvp, symbolic_zeros=True)


def _over_blocks(stencil: Stencil, terms, wrt, operands: Operands):
    """Means of the terms' values and, of the first term, gradients by the names in ``wrt``.

    Those by images are times the number of pixels, so that a derivative is a mean. Were it a mean times a number, the
    backward pass would begin with that product, and overflow: decibels of nearly equal images have 1e37.
    """
    like, valid = operands.a, operands.valid
    grid = _grid(stencil, like.shape)
    if grid is None:
        spread, sums = _spread_and_sums(stencil, terms, wrt, operands, None, None)
        images = {}
        if spread:
            spread = stencil.run(_with_margins, spread, stencil.axes[:1])
            images = _adjoint(stencil, wrt, spread, operands, None, None)
    else:
        images, sums = _block_by_block(stencil, grid, terms, wrt, operands)
    if valid is None:
        positions = _number_of_windows(stencil, like.shape)
        along_row, undefined = positions, 0
    else:
        # Where no position counts the mean is NaN, and its gradient 0.
        undefined = jnp.where(sums["positions"] > 0, 0, jnp.nan)
        positions = jnp.maximum(sums["positions"], 1)
        *batch, channels = positions.shape
        spatial = (1,) * stencil.window.spatial_ndim
        along_row = _along_row(positions.reshape(*batch, *spatial, channels), like.shape[-1] // channels)
    pixels = _number_of_positions(stencil, like)
    gradients = (images[name] * (pixels / along_row) if name in IMAGES else sums[name] / positions for name in wrt)
    return tuple(sums[term] / positions + undefined for term in terms), tuple(gradients)


# --- blocks -----------------------------------------------------------------------------------------------


class Grid(NamedTuple):
    """How the first and the last axis of an image are cut into blocks: so many rows and columns of pixels in each."""

    rows: int
    columns: int
    height: int
    width: int

    @property
    def down(self) -> int:
        return -(-self.rows // self.height)

    @property
    def across(self) -> int:
        return -(-self.columns // self.width)

    def stencil(self, stencil: Stencil, overlap: int = 0) -> Stencil:
        """That of a block: it has as many positions as pixels, and ``overlap`` more columns of them."""
        columns = min(self.width + overlap, self.columns - stencil.window.halo)
        return stencil._replace(rows=self.height, columns=columns)

    def block(self, i, k, halo: int, overlap: int = 0):
        """Of one block, its first row and column of positions and of pixels, and the rows and columns that are new."""
        rows = _place(i, self.height, self.rows, halo, 0)
        columns = _place(k, self.width, self.columns, halo, overlap)
        return tuple(zip(rows, columns, strict=True))


def _place(i, size: int, pixels: int, halo: int, overlap: int):
    # Blocks at the end are moved up to end with the image. Positions that were in an earlier one count once.
    if size == pixels:
        return 0, 0, None
    first = jnp.minimum(i * size, pixels - size)
    start = jnp.clip(i * size - overlap, 0, pixels - halo - size - overlap)
    positions = jnp.arange(size + overlap) + start
    return start, first, (positions >= i * size) & (positions < (i + 1) * size)


def _grid(stencil: Stencil, shape, multiple: int = 1) -> Grid | None:
    """Blocks for a folded image of a shape, whose sides are multiples of a number; None if it is best taken whole."""
    (axis, step), halo = stencil.axes[0], stencil.window.halo
    rows, columns = shape[axis] // step, shape[-1] // stencil.channels
    if not stencil.on_cpu or not isinstance(rows, int) or not isinstance(columns, int):  # unknown, as when exported
        return None
    # A batch of unknown size counts as 1.
    samples_in_row = max(math.prod(n for n in shape if isinstance(n, int)) // rows, 1)
    height, width = _BLOCK_SAMPLES // samples_in_row, columns
    if stencil.window.spatial_ndim > 1:  # the "rows" of a signal are single samples
        if height < _BLOCK_MIN_ROWS:
            width = max(_BLOCK_SAMPLES * columns // samples_in_row // _BLOCK_MAX_ROWS, _BLOCK_MIN_COLUMNS)
            height = _BLOCK_SAMPLES * columns // samples_in_row // width
        height = min(height, _BLOCK_MAX_ROWS)
    height = _cut(rows, max(height, _BLOCK_MIN_ROWS), halo, multiple)
    grid = Grid(rows, columns, height, _cut(columns, width, halo, multiple))
    return None if grid.down == 1 else grid


def _cut(size: int, most: int, halo: int, multiple: int) -> int:
    """The side of a block: one of which two fit with all their windows, or all there is."""
    if size <= most or size < most + 2 * halo:
        return size
    most -= most % multiple
    count = -(-size // most)
    return -(-size // (count * multiple)) * multiple


def _block_by_block(stencil: Stencil, grid: Grid, terms, wrt, operands: Operands):
    """The gradient images, and the sums over all positions, by name.

    A block has as many rows of pixels as of positions, each of which has a window that begins there. A row of pixels
    takes part in the windows of its own and of the ``halo`` positions above, which are kept from block to block.
    Thus each gradient is complete when it is written, and none is computed twice, but for ``halo`` columns of positions
    to the left of a block.
    """
    like, halo, channels = operands.a, stencil.window.halo, stencil.channels
    axis, step = stencil.axes[0]
    axis %= like.ndim
    images = tuple(name for name in wrt if name in IMAGES)
    overlap = halo if images and grid.across > 1 else 0
    stencil = grid.stencil(stencil, overlap)
    sizes = [size - halo for size in _sizes(stencil, like)]
    nothing = jnp.zeros_like(_part(stencil, like, None, [0] * len(sizes), [halo, *sizes[1:]]))

    def strip(k, totals):
        def block(i, state):
            gradients, above, sums = state
            start, first, new = grid.block(i, k, halo, overlap)
            spread, more = _spread_and_sums(stencil, terms, wrt, operands, start, new)
            if images:
                spread = stencil.run(_between, above, spread, nothing)
                own = _adjoint(stencil, wrt, spread, operands, (first[0], start[1]), first[0] - start[0])
                for name in images:
                    x = own[name]
                    if grid.across > 1:
                        left, width = (first[1] - start[1]) * channels, grid.width * channels
                        x = lax.dynamic_slice_in_dim(x, left, width, x.ndim - 1)
                    gradients = gradients | {name: _put(stencil, gradients[name], x, first)}
                below, _, _ = grid.block(i + 1, k, halo)
                kept = (below[0] - start[0]) * step
                above = [lax.dynamic_slice_in_dim(x, kept, halo * step, axis) for x in spread]
            return gradients, above, {name: sums[name] + x for name, x in more.items()}

        gradients, sums = totals
        above = [nothing] * (len(images) + 2 if images else 0)  # is spread above the first position and below the last
        gradients, _, sums = lax.fori_loop(0, grid.down, block, (gradients, above, sums))
        return gradients, sums

    # What the gradient images hold before does not matter. It is a number of the scale worked through before, so that
    # they come after that and take the memory of its images: 0.75 instead of 1.39 times that of the pair at 1080p.
    if operands.after is None:
        anything = jnp.zeros_like(like)
    else:
        number = operands.after[..., :1]
        anything = jnp.broadcast_to(number.reshape(*number.shape, *[1] * (len(sizes) - 1)), like.shape)
    names = (*terms, *(name for name in wrt if name not in IMAGES))
    names = names if operands.valid is None else (*names, "positions")
    totals = dict.fromkeys(images, anything), dict.fromkeys(names, _zero(stencil, like))
    return strip(0, totals) if grid.across == 1 else lax.fori_loop(0, grid.across, strip, totals)


def _zero(stencil: Stencil, like):
    """A sum of nothing: ``[..., C]``."""
    return jnp.zeros_like(like[(..., *(0,) * (len(stencil.axes) - 1), slice(stencil.channels))])


def _put(stencil: Stencil, whole, part, first):
    """A whole folded image with a part of it replaced, which begins at row and column ``first``."""
    begin = [0] * whole.ndim
    for (axis, step), place in zip((stencil.axes[-1], stencil.axes[0]), reversed(first), strict=True):
        begin[axis] = place * step
    return lax.dynamic_update_slice(whole, part, begin)


# --- two scales in one loop, for values of large images ----------------------------------------------------


def _grid_of_two_scales(layout: Layout, first: Scale) -> Grid | None:
    """The blocks of the first scale where the second is better not held whole, and can be made block by block."""
    like, ndim = first.images[0], layout.window.spatial_ndim
    if len(layout.terms) < 3 or layout.paddings[0] != "valid" or first.valid is not None or ndim == 1:
        return None
    if not all(isinstance(n, int) for n in like.shape) or any(like.shape[i] % 4 for i in spatial_axes(like, ndim)):
        return None
    *shape, columns, channels = like.shape
    stencil = _stencil_for(like, layout.window)._replace(on_cpu=True)
    return _grid(stencil, (*shape, columns * channels), 4) if like.size > _LARGE_SAMPLES else None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _first_two_together(layout: Layout, grid: Grid, first: Scale, c1, c2):
    """The means at all scales where nothing is differentiated.

    Of the second scale nothing but a block is ever held, and that is made of pixels that are in the cache.
    """
    stencil, operands = _folded(first, c1, c2, layout.window)

    def means(stencil, operands):
        if not stencil.on_cpu:
            return _scale_by_scale(layout, first, c1, c2)
        two, anchors, above = _two_scales(stencil, grid, layout.terms[:2], operands)
        anchors, above = jax.tree.map(stencil.unfold, (anchors, above))
        third = Scale(anchors, anchors, above, None, first.typical)
        return [*two, *_scale_by_scale(layout._replace(terms=layout.terms[2:]), third, c1, c2)]

    return stencil.per_platform(means, operands)


def _first_two_together_jvp(layout: Layout, grid: Grid, primals, tangents):
    # A gradient is as large as the second scale, and takes its memory. Only what is perturbed is differentiated.
    leaves, tree = jax.tree.flatten(primals)
    tangents = jax.tree.leaves(tangents)
    moving = [i for i, x in enumerate(tangents) if not isinstance(x, jax.custom_derivatives.SymbolicZero)]

    def means(*moved):
        values = dict(enumerate(leaves)) | dict(zip(moving, moved, strict=True))
        return _scale_by_scale(layout, *tree.unflatten(values.values()))

    return jax.jvp(means, [leaves[i] for i in moving], [tangents[i] for i in moving])


_first_two_together.defjvp(_first_two_together_jvp, symbolic_zeros=True)


def _two_scales(stencil: Stencil, grid: Grid, terms, operands: Operands):
    """The means at the first scale and at the second, and of the third the anchors and ``above``."""
    like, halo = operands.a, stencil.window.halo
    shapes = [like.shape]
    for _ in range(2):
        halved = list(shapes[-1])
        for axis, _ in stencil.axes:
            halved[axis] //= 2
        shapes.append(tuple(halved))
    grids = grid, Grid(*(size // 2 for size in grid))
    stencils = [each.stencil(stencil) for each in grids]

    def block(n, state):
        sums, third = state
        i, k = n % grid.down, n // grid.down
        start, _, new = grids[0].block(i, k, halo)
        _, at_first = _spread_and_sums(stencils[0], terms[0], (), operands, start, new)
        # The second scale's block comes with its halo, which the blocks around it make as well.
        start, first, new = grids[1].block(i, k, halo)
        size = stencils[1].rows + halo, stencils[1].columns + halo
        anchors, above = _halve_block(stencils[0], operands, start, size)
        second = operands._replace(a=anchors[0], b=anchors[1], anchors=anchors, above=above)
        _, at_second = _spread_and_sums(stencils[1], terms[1], (), second, None, new)
        # The third's has none, and is all that is kept.
        start = [(x - y) // 2 for x, y in zip(first, start, strict=True)]
        pixels = _halve_block(stencils[1], second, start, (grids[1].height // 2, grids[1].width // 2))
        first = [x // 2 for x in first]
        third = jax.tree.map(lambda whole, part: _put(stencil, whole, part, first), third, pixels)
        return jax.tree.map(lax.add, sums, [at_first, at_second]), third

    sums = [dict.fromkeys(each, _zero(stencil, like)) for each in terms]
    blank = jnp.zeros_like(lax.slice(like, [0] * like.ndim, shapes[2]))
    sums, (anchors, above) = lax.fori_loop(0, grid.down * grid.across, block, (sums, ((blank,) * 2, (blank,) * 2)))
    means = []
    for names, total, shape in zip(terms, sums, shapes[:2], strict=True):
        means.append(tuple(total[name] / _number_of_windows(stencil, shape) for name in names))
    return means, anchors, above


def _halve_block(stencil: Stencil, operands: Operands, start, size):
    """Anchors and ``above`` of a block of the next scale, so many rows and columns from row and column ``start`` on.

    In two stages: along the row, the mean of each pixel and the next is computed at every pixel, and then every second
    is taken. In one, where XLA reads every second of four samples of two images, it takes 1.7 times as long.
    """
    above = stencil.run(_halve_all_but_last, operands, start, size)
    return stencil.run(_every_second, operands, above, start, size)


def _samples(stencil: Stencil, x, start, size, half, columns):
    """Of each 2 x 2 in a block the samples in one half along each axis; along the row so many columns from there on."""
    batch = x.ndim - len(stencil.axes)
    begin, shape = [0] * batch, list(x.shape[:batch])
    for n, which in enumerate(half[:-1]):
        x = _split(x, batch + 2 * n)
        begin += [0 if n else start[0], which]
        shape += [x.shape[batch + 2 * n] if n else size[0], 1]
    begin.append((2 * start[1] + half[-1]) * stencil.channels)
    shape.append(columns * stencil.channels)
    return lax.squeeze(lax.dynamic_slice(x, begin, shape), range(batch + 1, x.ndim - 1, 2))


@_stage(3)
def _halve_all_but_last(stencil: Stencil, operands: Operands, start, size):
    def mean(*half):
        """Of the samples that lie in some halves along the first axes: the anchors, and the mean above those."""
        if len(half) == len(stencil.axes):
            read = functools.partial(_samples, stencil, start=start, size=size, half=half, columns=2 * size[1] - 1)
            return jax.tree.map(read, (operands.pixels, operands.above))
        (anchors, first), (others, second) = mean(*half, 0), mean(*half, 1)
        steps = change(anchors, others)
        if first is None:
            return anchors, tuple(x / 2 for x in steps)
        return anchors, tuple((x + (y + step)) / 2 for x, y, step in zip(first, second, steps, strict=True))

    _, above = mean()
    return above


@_stage(4)
def _every_second(stencil: Stencil, operands: Operands, above, start, size):
    half = (0,) * len(stencil.axes)
    anchors = tuple(_samples(stencil, x, start, size, half, 2 * size[1]) for x in operands.pixels)

    def every_second(x):
        return _fold(lax.slice_in_dim(stencil.unfold(x), 0, None, 2, axis=x.ndim - 1))

    return jax.tree.map(every_second, (anchors, above))


# --- the terms of a block ----------------------------------------------------------------------------------


def _spread_and_sums(stencil: Stencil, terms, wrt, operands: Operands, start, new):
    """Of one block: what is to be spread over the windows to give the gradient images, and sums by name."""
    mass, counted = (None, None) if operands.valid is None else _coverage(stencil, operands, start)
    new = jax.tree.map(lambda x: x.astype(stencil.dtype), new)
    if not wrt:
        last, arguments = _before_last_pass(stencil, operands, start)
        shared = operands, start, new, counted
        maps = {term: stencil.run(_weighted_map, term, last, arguments, *shared) for term in terms}
        spread = ()
    else:
        local = _local(stencil, operands, start)
        maps, spread = stencil.run(_partials, terms, wrt, local, operands, start, new, counted, mass)
    if counted is not None:
        maps["positions"] = _weights(stencil, mass, new, counted)
    return spread, {name: stencil.run(_sum_positions, x) for name, x in maps.items()}


def _weights(stencil: Stencil, like, new, counted):
    """1 at positions that count and 0 at the others: those of an earlier block, and windows with too much masked."""
    weights = 1 if counted is None else counted.astype(like.dtype)
    for (axis, step), each in zip((stencil.axes[0], stencil.axes[-1]), new or (), strict=False):
        if each is not None:
            shape = [1] * like.ndim
            shape[axis] = -1
            weights *= jnp.repeat(each, step, axis=0).reshape(shape)
    return weights


@_stage(1, 2)
def _weighted_map(stencil: Stencil, term, last, arguments, operands: Operands, start, new, counted):
    local = _local_of([_moments_along(stencil, *each, n=last) for each in arguments])
    out = _value_of(stencil, term, local, operands, start)
    return _weights(stencil, out, new, counted) * out


@_stage(1, 2)
def _partials(stencil: Stencil, terms, wrt, local: Local, operands: Operands, start, new, counted, mass):
    """Maps to be summed, by name, and the partials by the moments, ready for the adjoint."""
    images = tuple(name for name in wrt if name in IMAGES)
    constants = tuple(name for name in wrt if name not in IMAGES)
    with_means = terms[0] != "contrast_structure"
    moments = {name: getattr(local, name) for name in (Local._fields if with_means else Local._fields[1::2])}

    def fraction(moments, *at_each_window):
        with_constants = operands._replace(**dict(zip(constants, at_each_window, strict=True)))
        return fraction_of(terms[0], *_statistics(stencil, local._replace(**moments), with_constants, start))

    # Not the derivative of the quotient, nor by means that a term does not have: of that come arrays of ones and of
    # zeros. JAX takes what is the same in every block out of the loop, and then each stage reads it from memory: these,
    # and the zeros of the pivots, took a tenth of the time and a quarter of the memory.
    at_each_window = (jnp.broadcast_to(getattr(operands, name), local.mean_sum.shape) for name in constants)
    (part, whole), pullback = jax.vjp(fraction, moments, *at_each_window)
    reciprocal = 1 / whole
    out = part * reciprocal
    by_part = _weights(stencil, out, None, counted) * reciprocal
    by_moments, *by_constants = pullback((by_part, -out * by_part))
    values = [out, *(_value_of(stencil, term, local, operands, start) for term in terms[1:])]
    weights = _weights(stencil, out, new, counted)
    maps = {name: weights * x for name, x in zip((*terms, *constants), (*values, *by_constants), strict=True)}
    if not images:
        return maps, ()
    if mass is not None:
        by_moments = {name: x / mass for name, x in by_moments.items()}
    by_variance_s, by_variance_d = by_moments["variance_sum"], by_moments["variance_difference"]
    pivot_s, pivot_d = _above_typical(stencil, operands, start, _pivots)
    by_s = -2 * (pivot_s + local.mean_sum) * by_variance_s
    by_d = -2 * (pivot_d + local.mean_difference) * by_variance_d
    if with_means:
        by_s, by_d = by_s + by_moments["mean_sum"], by_d + by_moments["mean_difference"]
    means = by_s, by_d
    if len(images) == 1:
        means = (by_s + by_d if images == ("a",) else by_s - by_d,)
    return maps, (*means, by_variance_s, by_variance_d)


def _adjoint(stencil: Stencil, wrt, spread, operands: Operands, start, offset):
    """The gradient images of a block that begins at ``start``: what is spread begins ``offset`` rows above.

    The adjoint of the local moments, dM = G dx and dV = 2 (G (x dx) - M G dx), in three linear blurs where one of a and
    b is differentiated and four otherwise. Pass by pass about the local means it costs 1.35 times as much and differs
    by 3e-7 of the gradient, as x is measured from a typical pixel.
    """
    stencil, others = stencil.transposed, stencil.axes[1:]
    # Rows first, and alone: fused into the last stage it reads 11 rows of all three, at 8K 3 MB.
    spread = stencil.run(_blur_rows, spread, offset)
    if others:
        spread = stencil.run(_with_margins, spread, others)
    for axis, step in others[:-1]:
        spread = stencil.run(_blur_all, spread, axis, step)
    return stencil.run(_gradients, wrt, spread, operands, start)


@_stage(1)
def _gradients(stencil: Stencil, wrt, spread, operands: Operands, start):
    if len(stencil.axes) > 1:  # a signal has rows alone
        spread = [_blur_axis(stencil, x, *stencil.axes[-1]) for x in spread]
    *means, variance_s, variance_d = spread
    sizes = [variance_s.shape[axis] // step for axis, step in stencil.axes]

    def part(stencil, x, start):
        return _part(stencil, x, start, [0] * len(sizes), sizes)

    s, d = _above_typical(stencil, operands, start, part)
    by_s, by_d = 2 * s * variance_s, 2 * d * variance_d
    if len(means) == 2:
        by_s, by_d = by_s + means[0], by_d + means[1]
    gradients = {"a": by_s + by_d, "b": by_s - by_d}
    rest = means[0] if len(means) == 1 else 0
    valid = 1 if operands.valid is None else part(stencil, operands.valid, start)
    return {name: valid * (gradients[name] + rest) for name in wrt if name in IMAGES}


@_stage()
def _sum_positions(stencil: Stencil, x):
    """Sums over the spatial axes: ``[..., C]``."""
    return _mean_of_positions(stencil, mean_of_map, x) * _number_of_positions(stencil, x)


def _number_of_windows(stencil: Stencil, shape):
    """In a folded array of a shape."""
    return math.prod(shape[axis] // step - stencil.window.halo for axis, step in stencil.axes)


def _number_of_positions(stencil: Stencil, x):
    """Of a folded array, along its spatial axes."""
    return math.prod(x.shape[axis] // step for axis, step in stencil.axes)


def _mean_of_positions(stencil: Stencil, mean, x):
    """Means over the spatial axes, rows first, so that every step but the last adds long rows: ``[..., C]``."""
    start = x.ndim - stencil.window.spatial_ndim
    rows = mean(x, range(start, x.ndim - 1))
    return mean(stencil.unfold(rows), range(start, start + 1))
