"""The hot loop: the mean of each term over one scale, by shifted slices, with its derivative.

Local moments are computed pass by pass, one axis after another, and always about the mean of the very
window they belong to (the law of total variance):

    first axis      m = sum g x        v = sum g (x - m)^2
    each next axis  M = sum g m        V = sum g v + sum g (m - M)^2

so nothing cancels: a variance is a sum of squares, never ``E[x^2] - E[x]^2``. A pass adds up shifted
slices, which vectorises on every platform and is exact float32 even where convolutions are not (TPU, GPU).

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
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jax_msssim._pyramid import Scale
from jax_msssim._terms import Moments, dissimilarity

# Samples (batch x rows x columns x channels) in a block: about 1.5 MB a map in float32, a dozen of which
# are alive at once. With fewer than 16 rows the halo of a block costs more than the cache gives; with no more
# than 64 a batch that is hidden from this code by vmap fits as well.
_BLOCK_SAMPLES = 400_000
_BLOCK_MIN_ROWS, _BLOCK_MAX_ROWS = 16, 64


class Stencil(NamedTuple):
    """What a pass has to know: the window, the folded layout, and whether stages are kept apart (None: undecided)."""

    taps: tuple[float, ...]
    spatial_ndim: int
    channels: int
    staged: bool | None = None

    @property
    def axes(self) -> tuple[tuple[int, int], ...]:
        """Spatial axes of a folded image, first to last, each with the distance between its samples."""
        return (*((axis, 1) for axis in range(-self.spatial_ndim, -1)), (-1, self.channels))

    @property
    def halo(self) -> int:
        return len(self.taps) - 1

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


_stage = functools.partial(jax.jit, static_argnums=0)


# --- passes -----------------------------------------------------------------------------------------------


def _shifted(stencil: Stencil, x, axis, step):
    size = x.shape[axis] - stencil.halo * step
    return [lax.slice_in_dim(x, i * step, i * step + size, axis=axis % x.ndim) for i in range(len(stencil.taps))]


def _weighted_sum(stencil: Stencil, parts):
    return functools.reduce(lax.add, [tap * part for tap, part in zip(stencil.taps, parts, strict=True)])


def _blur_axis(stencil: Stencil, x, axis, step):
    return _weighted_sum(stencil, _shifted(stencil, x, axis, step))


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _moments_pass(stencil: Stencil, mean, variance, axis, step):
    parts = _shifted(stencil, mean, axis, step)
    new_mean = _weighted_sum(stencil, parts)
    new_variance = _weighted_sum(stencil, [(part - new_mean) ** 2 for part in parts])
    if variance is not None:
        new_variance += _blur_axis(stencil, variance, axis, step)
    return new_mean, new_variance


def _passes(stencil: Stencil, *images):
    moments = []
    for mean in images:
        variance = None
        for axis, step in stencil.axes:
            mean, variance = stencil.run(_moments_pass, mean, variance, axis, step)
        moments += [mean, variance]
    return Moments(*moments)


def _blur(stencil: Stencil, x):
    for axis, step in stencil.axes:
        x = _blur_axis(stencil, x, axis, step)
    return x


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _moments(stencil: Stencil, s, d) -> Moments:
    return stencil.per_platform(_passes, s, d)


@_moments.defjvp
def _moments_jvp(stencil: Stencil, primals, tangents):
    # dV = 2 sum g (x - M) dx. Differentiating the passes one by one gives the same and compiles for a minute.
    moments = _moments(stencil, *primals)
    derivative = []
    for x, mean, dx in zip(primals, moments[::2], tangents, strict=True):
        mean_tangent = _blur(stencil, dx)
        derivative += [mean_tangent, 2 * (_blur(stencil, x * dx) - mean * mean_tangent)]
    return moments, Moments(*derivative)


@_stage
def _sum_and_difference(stencil: Stencil, a, b, shift_a, shift_b):
    # Each in the order that keeps it exact: a bright pair is centred before it is added, and a pair of
    # nearly equal images is subtracted before anything is rounded.
    return (a - shift_a) + (b - shift_b), (a - b) - (shift_a - shift_b)


def _true_means(moments: Moments, brightness_a, brightness_b) -> Moments:
    return moments._replace(
        mean_sum=moments.mean_sum + (brightness_a + brightness_b),
        mean_difference=moments.mean_difference + (brightness_a - brightness_b),
    )


# --- one scale --------------------------------------------------------------------------------------------


def term_map(term, scale: Scale, c1, c2, taps, spatial_ndim) -> jax.Array:
    """The dissimilarity at every position, ``[..., *positions, C]``."""
    stencil = Stencil(taps, spatial_ndim, scale.a.shape[-1])
    a, b, c1, c2, *shifts, brightness_a, brightness_b = _folded(stencil, scale, c1, c2)
    moments = _moments(stencil, *_sum_and_difference(stencil, a, b, *shifts))
    out = dissimilarity(term, _true_means(moments, brightness_a, brightness_b), c1, c2)
    return stencil.unfold(out)


def term_means(terms, scale: Scale, c1, c2, taps, spatial_ndim) -> tuple[jax.Array, ...]:
    """The mean over positions of each term's dissimilarity, ``[..., C]``."""
    stencil = Stencil(taps, spatial_ndim, scale.a.shape[-1])
    return _means(stencil, terms, *_folded(stencil, scale, c1, c2))


def halve(x, shift, spatial_ndim: int) -> jax.Array:
    """The mean of 2x2 pixels of ``x - shift``, whose sides are even."""
    return Stencil((), spatial_ndim, x.shape[-1]).per_platform(_halve_apart, x, shift)


def _halve_apart(stencil: Stencil, x, shift):
    return stencil.run(_halve, x, shift)


@_stage
def _halve(stencil: Stencil, x, shift):
    # Slices of one reshape, [..., H/2, 2, W/2, 2 C]: vectorised on the CPU, unlike reduce_window (0.3 against
    # 2 ms at 8x256x256x3), and so is its transpose, unlike that of strided slices.
    channels, first = stencil.channels, x.ndim - 1 - stencil.spatial_ndim
    halves = [part for size in x.shape[first:-1] for part in (size // 2, 2)]
    pairs = (x - shift).reshape(*x.shape[:first], *halves[:-1], 2 * channels)
    corners = [
        pairs[(..., *(i for row in rows for i in (slice(None), row)), slice(None), slice(column, column + channels))]
        for *rows, column in itertools.product(*[(0, 1)] * (stencil.spatial_ndim - 1), (0, channels))
    ]
    return functools.reduce(lax.add, corners) / 2**stencil.spatial_ndim


def _folded(stencil: Stencil, scale: Scale, c1, c2):
    """The arrays of a scale in folded layout; what is one number per channel is repeated along the row."""

    def fold(x):
        return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])

    def along_row(x, columns):
        return fold(jnp.broadcast_to(x, (*x.shape[:-2], columns, x.shape[-1])))

    columns = scale.a.shape[-2]
    return (
        fold(scale.a),
        fold(scale.b),
        c1[..., 0],
        c2[..., 0],
        *(along_row(x, columns) for x in scale.shift),
        *(along_row(x, columns - stencil.halo) for x in scale.brightness),
    )


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _means(stencil: Stencil, terms, *operands):
    return _means_and_gradients(stencil, terms, (), operands)[0]


def _means_and_gradients(stencil: Stencil, terms, wrt, operands):
    return stencil.per_platform(lambda chosen, *arrays: _over_blocks(chosen, terms, wrt, *arrays), *operands)


def _means_jvp(stencil: Stencil, terms, primals, tangents):
    # A mean weighs every position alike, so its gradient image depends on the cotangent only through a
    # factor per image and channel. It is computed with the value, block by block; what is kept for the
    # backward pass is that image and none of the maps. What is not perturbed is not computed. The operands
    # after c2 centre the images: they cancel out, and the caller stops their gradient.
    perturbed = {
        name: tangent
        for name, tangent in zip(("a", "b", "c1", "c2"), tangents, strict=False)
        if not isinstance(tangent, jax.custom_derivatives.SymbolicZero)
    }
    means, derivatives = [], []
    for term in terms:
        (mean,), gradients = _means_and_gradients(stencil, (term,), tuple(perturbed), primals)
        derivative = jnp.zeros_like(mean)
        for (name, tangent), gradient in zip(perturbed.items(), gradients, strict=True):
            if name in ("a", "b"):
                derivative += _sum_positions(stencil, gradient * tangent)
            else:
                derivative += gradient * tangent.reshape(*tangent.shape[: -stencil.spatial_ndim], 1)
        means.append(mean)
        derivatives.append(derivative)
    return tuple(means), tuple(derivatives)


_means.defjvp(_means_jvp, symbolic_zeros=True)


# --- block by block ---------------------------------------------------------------------------------------


def _over_blocks(stencil: Stencil, terms, wrt, a, b, c1, c2, shift_a, shift_b, *brightness):
    """Means of the terms' dissimilarities and, of the only term, their gradients by the names in ``wrt``."""
    axis, step = stencil.axes[0]
    rows = a.shape[axis] // step - stencil.halo
    count, height = _block_rows(stencil, a, rows)

    def rows_of(x, start):
        return lax.dynamic_slice_in_dim(x, start * step, (height + stencil.halo) * step, axis % x.ndim)

    def block(i, carry):
        # The last block is moved up to end with the image; rows it shares with the one before count once.
        start = jnp.minimum(i * height, rows - height)
        counted = (jnp.arange(height) + start >= i * height).astype(a.dtype)
        s, d = stencil.run(_sum_and_difference, rows_of(a, start), rows_of(b, start), shift_a, shift_b)
        sums, gradients = _block(stencil, terms, wrt, s, d, c1, c2, brightness, counted)
        return (
            tuple(total + x for total, x in zip(carry[0], sums, strict=True)),
            tuple(
                lax.dynamic_update_slice_in_dim(image, rows_of(image, start) + x, start * step, axis % image.ndim)
                if name in ("a", "b")
                else image + x
                for name, image, x in zip(wrt, carry[1], gradients, strict=True)
            ),
        )

    if count == 1:
        s, d = stencil.run(_sum_and_difference, a, b, shift_a, shift_b)
        out = _block(stencil, terms, wrt, s, d, c1, c2, brightness, None)
    else:
        one_pixel = a[(..., *(0,) * (stencil.spatial_ndim - 1), slice(stencil.channels))]
        zero = jnp.zeros_like(one_pixel)
        empty = {"a": jnp.zeros_like(a), "b": jnp.zeros_like(b), "c1": zero, "c2": zero}
        out = lax.fori_loop(0, count, block, ((zero,) * len(terms), tuple(empty[name] for name in wrt)))
    positions = math.prod(a.shape[axis] // step - stencil.halo for axis, step in stencil.axes)
    return jax.tree.map(lambda x: x / positions, out)


def _block_rows(stencil: Stencil, image, rows) -> tuple[int, int]:
    """Number of blocks and of rows in each, blocks being alike."""
    if not stencil.staged:
        return 1, rows
    samples_in_row = math.prod(image.shape) // (image.shape[-stencil.spatial_ndim] // stencil.axes[0][1])
    height = min(max(_BLOCK_SAMPLES // max(samples_in_row, 1), _BLOCK_MIN_ROWS), _BLOCK_MAX_ROWS)
    count = -(-rows // height)
    return count, -(-rows // count)


def _block(stencil: Stencil, terms, wrt, s, d, c1, c2, brightness, counted):
    moments = _moments(stencil, s, d)
    if not wrt:
        maps = [stencil.run(_dissimilarity, term, moments, brightness, c1, c2, counted) for term in terms]
        return tuple(stencil.run(_sum_positions, x) for x in maps), ()
    (term,) = terms
    value, spread, c_partials = stencil.run(_partials, term, wrt, moments, brightness, c1, c2, counted)
    # The adjoint of the local moments, dM = G dx and dV = 2 (G (x dx) - M G dx), in three linear blurs where
    # one image is differentiated and four where both are. Pass by pass about the local means it costs 1.35
    # times as much and differs by 3e-7 of the gradient, once the image's mean is out of x.
    transposed = stencil._replace(taps=stencil.taps[::-1])
    for axis, step in stencil.axes[:0:-1]:
        spread = transposed.run(_blur_all, spread, axis, step)
    gradients = transposed.run(_gradients, wrt, s, d, spread)
    gradients |= {name: stencil.run(_sum_positions, x) for name, x in c_partials.items()}
    return (stencil.run(_sum_positions, value),), tuple(gradients[name] for name in wrt)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _dissimilarity(stencil: Stencil, term, moments: Moments, brightness, c1, c2, counted):
    out = dissimilarity(term, _true_means(moments, *brightness), c1, c2)
    return out * _row_weights(stencil, out, counted)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _partials(stencil: Stencil, term, wrt, moments: Moments, brightness, c1, c2, counted):
    """The dissimilarity, its partials by the moments, ready for the transposed blurs, and by the constants."""

    def value(moments, c1, c2):
        return dissimilarity(term, _true_means(moments, *brightness), c1, c2)

    shape = moments.mean_sum.shape
    out, pullback = jax.vjp(value, moments, jnp.broadcast_to(c1, shape), jnp.broadcast_to(c2, shape))
    weights = jnp.broadcast_to(_row_weights(stencil, out, counted), shape)
    by_moments, by_c1, by_c2 = pullback(weights)
    by_s = by_moments.mean_sum - 2 * moments.mean_sum * by_moments.variance_sum
    by_d = by_moments.mean_difference - 2 * moments.mean_difference * by_moments.variance_difference
    means = {("a",): (by_s + by_d,), ("b",): (by_s - by_d,), ("a", "b"): (by_s, by_d)}
    spread = means.get(tuple(name for name in wrt if name in ("a", "b")), ())
    if spread:
        spread += (by_moments.variance_sum, by_moments.variance_difference)
    margin = [(0, 0)] * (len(shape) - stencil.spatial_ndim) + [(stencil.halo * step,) * 2 for _, step in stencil.axes]
    return (
        out * weights,
        tuple(jnp.pad(x, margin) for x in spread),
        {name: x for name, x in (("c1", by_c1), ("c2", by_c2)) if name in wrt},
    )


@functools.partial(jax.jit, static_argnums=(0, 2, 3))
def _blur_all(stencil: Stencil, spread, axis, step):
    return tuple(_blur_axis(stencil, x, axis, step) for x in spread)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _gradients(stencil: Stencil, wrt, s, d, spread):
    *means, variance_s, variance_d = _blur_all(stencil, spread, *stencil.axes[0]) if spread else (0, 0)
    by_s, by_d = 2 * s * variance_s, 2 * d * variance_d
    match means:
        case (mean_s, mean_d):
            by_s, by_d = by_s + mean_s, by_d + mean_d
            return {"a": by_s + by_d, "b": by_s - by_d}
        case (mean,) if "a" in wrt:
            return {"a": mean + by_s + by_d}
        case (mean,):
            return {"b": mean + by_s - by_d}
    return {}


def _row_weights(stencil: Stencil, like, counted):
    """1 for rows that count and 0 for the others, of the rank of the map ``like``."""
    if counted is None:
        return jnp.ones_like(like)
    _, step = stencil.axes[0]
    shape = [1] * like.ndim
    shape[-stencil.spatial_ndim] = -1
    return jnp.repeat(counted, step).reshape(shape)


@_stage
def _sum_positions(stencil: Stencil, x):
    """Sums over the spatial axes, rows first, so that every step but the last adds long rows: ``[..., C]``."""
    for axis in range(-stencil.spatial_ndim, -1):
        x = x.sum(axis)
    return stencil.unfold(x).sum(-2)
