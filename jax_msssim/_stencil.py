"""The hot loop: the mean of each term over one scale, by shifted slices, with its derivative.

Local moments are computed pass by pass, one axis after another, and always about the mean of the very
window they belong to (the law of total variance):

    first axis      m = sum g x        v = sum g (x - m)^2
    each next axis  M = sum g m        V = sum g v + sum g (m - M)^2

so nothing cancels: a variance is a sum of squares, never ``E[x^2] - E[x]^2``. With a mask the same passes carry
the window's mass ``s = sum g w`` and weigh by it. A pass adds up shifted slices, which vectorises on every
platform and is exact float32 even where convolutions are not (TPU, GPU).

Images are folded: the last spatial axis and the channels are one axis, so a tap there is ``channels``
apart and every row is long. No axis of the batch is ever merged with another, so a sharded batch stays put.

What is peculiar to the CPU, measured on two cores at 8x256x256x3 and 1x1080x1920x3 (docs/notes/speed.md):

* XLA's CPU backend fuses a pass into the next one and then computes the first anew for each of the
  second's taps. Each stage here is a call that it may not inline, hence not fuse.
* A reduction fused with the division before it is scalar code. The maps are a stage, their sums another.
* Memory touched for the first time is paid for page by page. Working through the image in blocks of rows
  reuses a few buffers that stay in the cache. The loop runs over rows, never over the batch.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jax_msssim._pyramid import Scale, mean_by_axis, mean_of_map, sum_and_difference
from jax_msssim._terms import Brightness, Moments, value_of
from jax_msssim._windows import Window

# Samples (batch x rows x columns x channels) in a block: about 1.5 MB a map in float32, a dozen of which
# are alive at once. With fewer than 16 rows the halo of a block costs more than the cache gives; with no more
# than 64 a batch that is hidden from this code by vmap fits as well.
_BLOCK_SAMPLES = 400_000
_BLOCK_MIN_ROWS, _BLOCK_MAX_ROWS = 16, 64


IMAGES = ("first", "second")


class Stencil(NamedTuple):
    """What a pass has to know: the window, the folded layout, and whether stages are kept apart (None: undecided)."""

    window: Window
    channels: int
    staged: bool | None = None

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """Spatial axes of a folded image, first to last, each with the distance between its samples."""
        return (*((axis, 1) for axis in range(-self.window.spatial_ndim, -1)), (-1, self.channels))

    @property
    def transposed(self) -> "Stencil":
        """The stencil of the adjoint blur."""
        return self._replace(window=self.window._replace(taps=self.window.taps[::-1]))

    def unfold(self, x):
        """The last axis of a folded array as columns and channels."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.channels, self.channels)

    def run(self, stage, *args):
        """Calls a jitted stage, on the CPU as a computation of its own."""
        if not self.staged:
            return stage(self, *args)
        with set_xla_metadata(inlineable="false"):
            return stage(self, *args)

    def per_platform(self, function, *arrays):
        """``function(stencil, *arrays)`` with the stages kept apart on the CPU alone."""
        if self.staged is not None:
            return function(self, *arrays)
        return lax.platform_dependent(
            *arrays,
            cpu=functools.partial(function, self._replace(staged=True)),
            default=functools.partial(function, self._replace(staged=False)),
        )


def _stage(*static_argnums):
    return functools.partial(jax.jit, static_argnums=(0, *static_argnums))


# --- one scale --------------------------------------------------------------------------------------------


class Operands(NamedTuple):
    """The arrays of one scale in folded layout; what is one number per channel is repeated along the row."""

    first: jax.Array
    second: jax.Array
    c1: jax.Array
    c2: jax.Array
    means: tuple[jax.Array, jax.Array, jax.Array] | None
    brightness: Brightness
    valid: jax.Array | None


def term_map(term, scale: Scale, c1, c2, window: Window) -> jax.Array:
    """The term's value at every position, ``[..., *positions, C]``, whether it counts or not."""
    stencil, operands = _folded(scale, c1, c2, window)
    s, d = sum_and_difference((operands.first, operands.second), operands.means)
    valid = None if operands.valid is None else operands.valid.astype(s.dtype)
    moments = _moments(stencil, s, d, valid)
    return stencil.unfold(_value_of(stencil, term, moments, operands.brightness, operands.c1, operands.c2))


def counted(scale: Scale, window: Window) -> jax.Array | None:
    """Which positions count: those whose window holds little enough that is masked. None: all."""
    if scale.valid is None:
        return None
    stencil = Stencil(window, scale.valid.shape[-1])
    return stencil.unfold(_coverage(stencil, _fold(scale.valid).astype(scale.images[0].dtype))[1])


def term_means(terms, scale: Scale, c1, c2, window: Window) -> tuple[jax.Array, ...]:
    """The mean of each term's value over the positions that count, ``[..., C]``; NaN where none does.

    ``"product"`` comes with ``"similarity"`` and takes no part in derivatives, which would be the same.
    """
    stencil, operands = _folded(scale, c1, c2, window)
    return _means(stencil, terms, operands)


def halve(images, means, spatial_ndim: int) -> tuple[jax.Array, jax.Array]:
    """2x2 means of the sum and of the difference of two images with even sides."""
    stencil = Stencil(Window((), spatial_ndim), images[0].shape[-1])
    return stencil.per_platform(lambda chosen, *arrays: chosen.run(_halve, *arrays), images, means)


@_stage()
def _halve(stencil: Stencil, images, means):
    # Sums of slices, with each axis split in two, [..., H/2, 2, W/2, 2, C]: vectorised on the CPU, unlike
    # reduce_window (0.3 against 2 ms at 8x256x256x3), and so is its transpose, unlike that of strided slices.
    spatial_ndim = stencil.window.spatial_ndim

    def pooled(x):
        for axis in range(-spatial_ndim - 1, -1):  # one split per reshape: the batch may be sharded
            axis += x.ndim
            x = x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
            x = lax.index_in_dim(x, 0, axis + 1, keepdims=False) + lax.index_in_dim(x, 1, axis + 1, keepdims=False)
        return x / 2**spatial_ndim

    s, d = sum_and_difference(images, means)
    return pooled(s), pooled(d)


def _fold(x):
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def _along_row(x, columns):
    """What is one number per channel, ``[..., 1, C]``, repeated along the row and folded."""
    return _fold(jnp.broadcast_to(x, (*x.shape[:-2], columns, x.shape[-1])))


def _folded(scale: Scale, c1, c2, window: Window) -> tuple[Stencil, Operands]:
    *_, columns, channels = scale.images[0].shape
    operands = Operands(
        first=_fold(scale.images[0]),
        second=_fold(scale.images[1]),
        c1=c1[..., 0],
        c2=c2[..., 0],
        means=jax.tree.map(lambda x: _along_row(x, columns), scale.means),
        brightness=jax.tree.map(lambda x: _along_row(x, columns - window.halo), scale.brightness),
        valid=None if scale.valid is None else _fold(scale.valid),
    )
    return Stencil(window, channels), operands


# --- local moments ----------------------------------------------------------------------------------------


def _shifted(stencil: Stencil, x, axis, step):
    size = x.shape[axis] - stencil.window.halo * step
    starts = range(0, x.shape[axis] - size + 1, step)
    return [lax.slice_in_dim(x, start, start + size, axis=axis % x.ndim) for start in starts]


def _weighted_sum(stencil: Stencil, parts):
    return functools.reduce(lax.add, [tap * part for tap, part in zip(stencil.window.taps, parts, strict=True)])


def _blur_axis(stencil: Stencil, x, axis, step):
    return _weighted_sum(stencil, _shifted(stencil, x, axis, step))


@_stage(2, 3)
def _blur_all(stencil: Stencil, spread, axis, step):
    return tuple(_blur_axis(stencil, x, axis, step) for x in spread)


def _blur(stencil: Stencil, x):
    for axis, step in stencil.axes:
        x = _blur_axis(stencil, x, axis, step)
    return x


@_stage(3, 4)
def _pass(stencil: Stencil, mean, variance, axis, step):
    parts = _shifted(stencil, mean, axis, step)
    new_mean = _weighted_sum(stencil, parts)
    new_variance = _weighted_sum(stencil, [(part - new_mean) ** 2 for part in parts])
    if variance is not None:
        new_variance += _blur_axis(stencil, variance, axis, step)
    return new_mean, new_variance


@_stage(4, 5)
def _masked_pass(stencil: Stencil, mass, mean, variance, axis, step):
    masses, parts, variances = (_shifted(stencil, x, axis, step) for x in (mass, mean, variance))
    new_mass = _weighted_sum(stencil, masses)
    # Not jnp.where, a call inside this one: on that the partitioner of JAX 0.9 crashes where the batch is sharded.
    share = 1 / lax.select(new_mass > 0, new_mass, lax.full_like(new_mass, 1))
    new_mean = share * _weighted_sum(stencil, [w * m for w, m in zip(masses, parts, strict=True)])
    within = [w * (v + (m - new_mean) ** 2) for w, m, v in zip(masses, parts, variances, strict=True)]
    return new_mass, new_mean, share * _weighted_sum(stencil, within)


def _passes(stencil: Stencil, s, d, valid) -> Moments:
    moments = []
    for mean in (s, d):
        mass, variance = valid, None if valid is None else jnp.zeros_like(mean)
        for axis, step in stencil.axes:
            if valid is None:
                mean, variance = stencil.run(_pass, mean, variance, axis, step)
            else:
                mass, mean, variance = stencil.run(_masked_pass, mass, mean, variance, axis, step)
        moments += [mean, variance]
    return Moments(*moments)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moments(stencil: Stencil, s, d, valid) -> Moments:
    return stencil.per_platform(_passes, s, d, valid)


@_moments.defjvp
def _moments_jvp(stencil: Stencil, primals, tangents):
    # dV = 2 sum g (x - M) dx. Differentiating the passes one by one gives the same and compiles for a minute.
    *images, valid = primals
    moments = _moments(stencil, *primals)
    mass = None if valid is None else _coverage(stencil, valid)[0]
    derivative = []
    for x, mean, dx in zip(images, moments[::2], tangents, strict=False):
        dx = dx if valid is None else valid * dx
        by_mean, by_square = _blur(stencil, dx), _blur(stencil, x * dx)
        if mass is not None:
            by_mean, by_square = by_mean / mass, by_square / mass
        derivative += [by_mean, 2 * (by_square - mean * by_mean)]
    return moments, Moments(*derivative)


def _coverage(stencil: Stencil, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The window's weight of valid pixels (1 where there is none, to divide by), and where a position counts."""
    weights = valid, 1 - valid
    for axis, step in stencil.axes:
        weights = stencil.run(_blur_all, weights, axis, step)
    mass, missing = weights
    some = mass > 0
    # Nothing missing is exactly 0, in any precision, so full coverage can be asked for.
    return jnp.where(some, mass, 1), some & (missing <= 1 - stencil.window.min_coverage)


@_stage()
def _sum_and_difference(stencil: Stencil, images, means):
    del stencil
    return sum_and_difference(images, means)


def _value_of(stencil: Stencil, term, moments: Moments, brightness: Brightness, c1, c2):
    scale = stencil.window.covariance_scale
    moments = moments._replace(
        variance_sum=scale * moments.variance_sum, variance_difference=scale * moments.variance_difference
    )
    return value_of(term, moments, brightness, c1, c2)


# --- means and their derivative ---------------------------------------------------------------------------


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _means(stencil: Stencil, terms, operands: Operands):
    return _means_and_gradients(stencil, terms, (), operands)[0]


def _means_and_gradients(stencil: Stencil, terms, wrt, operands: Operands):
    return stencil.per_platform(lambda chosen, operands: _over_blocks(chosen, terms, wrt, operands), operands)


def _means_jvp(stencil: Stencil, terms, primals, tangents):
    # A mean weighs every position alike, so its gradient image depends on the cotangent only through a
    # factor per image and channel. It is computed with the value, block by block; what is kept for the
    # backward pass is that image and none of the maps. What is not perturbed is not computed. What centres
    # the images cancels out, and the caller stops its gradient.
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
                derivative += _sum_positions(stencil, mean_by_axis, gradient * dx)
            else:
                derivative += gradient * dx.reshape(*dx.shape[: -stencil.window.spatial_ndim], 1)
        means += [mean, *others]
        derivatives += [derivative, *map(jnp.zeros_like, others)]
    return tuple(means), tuple(derivatives)


_means.defjvp(_means_jvp, symbolic_zeros=True)


def _over_blocks(stencil: Stencil, terms, wrt, operands: Operands):
    """Means of the terms' values and, of the first term, gradients by the names in ``wrt``."""
    like, valid = operands.first, operands.valid
    axis, step = stencil.axes[0]
    rows = like.shape[axis] // step - stencil.window.halo
    count, height = _block_rows(stencil, like, rows)

    def rows_of(x, start):
        return lax.dynamic_slice_in_dim(x, start * step, (height + stencil.window.halo) * step, axis % x.ndim)

    def row_of_block(x, length):
        # A signal is cut into blocks along its row; what repeats along the row is the same in all of them.
        return x[..., : length * step] if stencil.window.spatial_ndim == 1 else x

    def block(i, totals):
        # The last block is moved up to end with the image; rows it shares with the one before count once.
        start = jnp.minimum(i * height, rows - height)
        fresh = (jnp.arange(height) + start >= i * height).astype(like.dtype)
        part = operands._replace(
            first=rows_of(operands.first, start),
            second=rows_of(operands.second, start),
            valid=None if valid is None else rows_of(valid, start),
            means=jax.tree.map(lambda x: row_of_block(x, height + stencil.window.halo), operands.means),
            brightness=jax.tree.map(lambda x: row_of_block(x, height), operands.brightness),
        )
        images, sums = _block(stencil, terms, wrt, part, fresh)
        for name, x in images.items():
            total = totals[0][name]
            images[name] = lax.dynamic_update_slice_in_dim(
                total, rows_of(total, start) + x, start * step, axis % x.ndim
            )
        return images, {name: totals[1][name] + x for name, x in sums.items()}

    if count == 1:
        images, sums = _block(stencil, terms, wrt, operands, None)
    else:
        zero = jnp.zeros_like(like[(..., *(0,) * (stencil.window.spatial_ndim - 1), slice(stencil.channels))])
        names = (*terms, *(name for name in wrt if name not in IMAGES), *(() if valid is None else ("positions",)))
        empty = {name: jnp.zeros_like(like) for name in wrt if name in IMAGES}, dict.fromkeys(names, zero)
        images, sums = lax.fori_loop(0, count, block, empty)

    if valid is None:
        positions = math.prod(like.shape[axis] // step - stencil.window.halo for axis, step in stencil.axes)
        along_row, undefined = positions, 0
    else:
        # Where no position counts the mean is NaN, and its gradient 0.
        undefined = jnp.where(sums["positions"] > 0, 0, jnp.nan)
        positions = jnp.maximum(sums["positions"], 1)
        *batch, channels = positions.shape
        spatial = (1,) * stencil.window.spatial_ndim
        along_row = _along_row(positions.reshape(*batch, *spatial, channels), like.shape[-1] // channels)
    gradients = (images[name] / along_row if name in IMAGES else sums[name] / positions for name in wrt)
    return tuple(sums[term] / positions + undefined for term in terms), tuple(gradients)


def _block_rows(stencil: Stencil, image, rows) -> tuple[int, int]:
    """Number of blocks and of rows in each, blocks being alike."""
    if not stencil.staged or not isinstance(rows, int):  # rows of unknown number, in an exported program, stay together
        return 1, rows
    axis, step = stencil.axes[0]
    # A batch or a width of unknown size counts as 1.
    samples_in_row = math.prod(n for n in image.shape if isinstance(n, int)) // (image.shape[axis] // step)
    height = max(_BLOCK_SAMPLES // max(samples_in_row, 1), _BLOCK_MIN_ROWS)
    if stencil.window.spatial_ndim > 1:  # the "rows" of a signal are single samples
        height = min(height, _BLOCK_MAX_ROWS)
    count = -(-rows // height)
    return count, -(-rows // count)


def _block(stencil: Stencil, terms, wrt, operands: Operands, fresh):
    """The gradient images of one block of rows, and the sums over its positions, by name."""
    s, d = stencil.run(_sum_and_difference, (operands.first, operands.second), operands.means)
    valid = None if operands.valid is None else operands.valid.astype(s.dtype)
    moments = _moments(stencil, s, d, valid)
    mass, counted = (None, None) if valid is None else _coverage(stencil, valid)
    constants = operands.brightness, operands.c1, operands.c2
    if not wrt:
        maps = {term: stencil.run(_weighted_map, term, moments, *constants, fresh, counted) for term in terms}
        images = {}
    else:
        rotated = operands.means is not None  # the images are a and b, not yet their sum and difference
        maps, spread = stencil.run(_partials, terms, wrt, rotated, moments, *constants, fresh, counted, mass)
        # The adjoint of the local moments, dM = G dx and dV = 2 (G (x dx) - M G dx), in three linear blurs where
        # one of a and b is differentiated and four otherwise. Pass by pass about the local means it costs 1.35
        # times as much and differs by 3e-7 of the gradient, once the image's mean is out of x.
        for axis, step in stencil.axes[:0:-1]:
            spread = stencil.transposed.run(_blur_all, spread, axis, step)
        images = stencil.transposed.run(_gradients, wrt, rotated, s, d, spread, valid)
    if valid is not None:
        maps["positions"] = _weights(stencil, moments.mean_sum, fresh, counted)
    return images, {name: stencil.run(_sum_positions, mean_of_map, x) for name, x in maps.items()}


def _weights(stencil: Stencil, like, fresh, counted):
    """1 at positions that count and 0 at the others: rows of an earlier block, and windows with too much masked."""
    weights = jnp.ones_like(like) if counted is None else counted.astype(like.dtype)
    if fresh is None:
        return weights
    axis, step = stencil.axes[0]
    shape = [1] * like.ndim
    shape[axis] = -1
    return weights * jnp.repeat(fresh, step, axis=0).reshape(shape)


@_stage(1)
def _weighted_map(stencil: Stencil, term, moments: Moments, brightness, c1, c2, fresh, counted):
    out = _value_of(stencil, term, moments, brightness, c1, c2)
    return _weights(stencil, out, fresh, counted) * out


@_stage(1, 2, 3)
def _partials(stencil: Stencil, terms, wrt, rotated, moments: Moments, brightness, c1, c2, fresh, counted, mass):
    """Maps to be summed, by name, and the partials by the moments, ready for the transposed blurs."""

    def value(moments, c1, c2):
        return _value_of(stencil, terms[0], moments, brightness, c1, c2)

    shape = moments.mean_sum.shape
    out, pullback = jax.vjp(value, moments, jnp.broadcast_to(c1, shape), jnp.broadcast_to(c2, shape))
    weights = jnp.ones_like(out) * _weights(stencil, out, fresh, counted)
    by_moments, by_c1, by_c2 = pullback(weights)
    if mass is not None:
        by_moments = Moments(*(x / mass for x in by_moments))
    by_s = by_moments.mean_sum - 2 * moments.mean_sum * by_moments.variance_sum
    by_d = by_moments.mean_difference - 2 * moments.mean_difference * by_moments.variance_difference
    images = tuple(name for name in wrt if name in IMAGES)
    if not images:
        means = ()
    elif rotated and len(images) == 1:
        means = (by_s + by_d if images == ("first",) else by_s - by_d,)
    else:
        means = (by_s, by_d)
    spread = (*means, by_moments.variance_sum, by_moments.variance_difference) if images else ()
    margins = [stencil.window.halo * step for _, step in stencil.axes]
    margin = [(n, n) for n in [0] * (len(shape) - len(margins)) + margins]
    values = [out, *(_value_of(stencil, term, moments, brightness, c1, c2) for term in terms[1:])]
    maps = {term: weights * value for term, value in zip(terms, values, strict=True)} | {"c1": by_c1, "c2": by_c2}
    return {name: x for name, x in maps.items() if name in (*terms, *wrt)}, tuple(jnp.pad(x, margin) for x in spread)


@_stage(1, 2)
def _gradients(stencil: Stencil, wrt, rotated, s, d, spread, valid):
    if not spread:
        return {}
    *means, variance_s, variance_d = (_blur_axis(stencil, x, *stencil.axes[0]) for x in spread)
    by_s, by_d = 2 * s * variance_s, 2 * d * variance_d
    if len(means) == 1:
        (name,) = (name for name in wrt if name in IMAGES)
        gradients = {name: means[0] + (by_s + by_d if name == "first" else by_s - by_d)}
    else:
        by_s, by_d = by_s + means[0], by_d + means[1]
        gradients = {"first": by_s + by_d, "second": by_s - by_d} if rotated else {"first": by_s, "second": by_d}
    return {name: x if valid is None else valid * x for name, x in gradients.items() if name in wrt}


@_stage(1)
def _sum_positions(stencil: Stencil, mean, x):
    """Sums over the spatial axes, rows first, so that every step but the last adds long rows: ``[..., C]``."""
    start = x.ndim - stencil.window.spatial_ndim
    positions = math.prod(x.shape[start:]) // stencil.channels
    rows = mean(x, range(start, x.ndim - 1))
    return mean(stencil.unfold(rows), range(start, start + 1)) * positions
