"""One scale: the terms of every window, block by block of rows, and their derivatives by the images.

On a CPU a scale is worked through in blocks, so that the maps between the stages stay in the cache and few pages of
memory are touched for the first time. The loop runs over rows, never over the batch. Images are folded.
"""

import functools
import math
import operator
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._means import mean_of_map, places, reference_line, selected, stacked
from jax_msssim._scales import Scale, centred
from jax_msssim._stencil._layout import Blocks, Layout, stage
from jax_msssim._stencil._moments import Moments, adjoint, along, coverage, moments, passes, sums_are_exact
from jax_msssim._stencil._platforms import on_one_device
from jax_msssim._terms import Constants, Term, fraction_of, value_of

# Samples in a block (batch x rows x columns x channels), and its fewest and most rows. With no more than 64 a batch
# that is hidden from this code, by vmap inside shard_map say, fits as well.
BLOCK_SAMPLES, BLOCK_MIN_ROWS, BLOCK_MAX_ROWS = 320_000, 32, 64

# The means over the rows of each block are a line; those of more blocks are added up, several to a line.
MAX_LINES = 512

IMAGES = ("a", "b")

# What is averaged over positions: a term, its derivative by a constant of that name, or 1 where a position counts.
Quantity = Term | tuple[Term, str] | Literal["positions"]


def differentiated(terms: tuple[Term, ...], wrt: tuple[str, ...]) -> list[tuple[Term, str]]:
    """The terms and the operands that there are derivatives of."""
    return [(term, name) for term in terms if term != "product" for name in wrt]


def quantities(terms: tuple[Term, ...], wrt: tuple[str, ...], masked: bool) -> tuple[list[Term], list[Quantity]]:
    """What is averaged: the terms that have gradient images, and the rest."""
    with_gradient: list[Term] = [term for term in terms if term != "product" and set(wrt) & set(IMAGES)]
    by_constants = [(term, name) for term, name in differentiated(terms, wrt) if name not in IMAGES]
    rest = [*(term for term in terms if term not in with_gradient), *by_constants]
    return with_gradient, [*rest, "positions"] if masked else rest


def map_of_term(layout: Layout, term: Term, scale: Scale, constants: Constants) -> jax.Array:
    """The term at every window."""
    local = Moments.of(layout, moments(layout, *_samples(layout, scale, None)))
    return value_of(term, *local.statistics(scale.centres), constants)


def averages(layout: Layout, terms, wrt: tuple[str, ...], scale: Scale, constants: Constants, after):
    """What a scale comes to. What ``after`` depends on, ``[..., 1, 1]``, is computed before.

    Returns:
      Means over the rows of each block, ``[lines, quantities, ..., columns * channels]``, in which positions that do
      not count are 0; and the derivatives of sums over all positions, by the names of term and image.
    """
    like, (place, step) = jax.ShapeDtypeStruct(scale.images[0].shape, scale.dtype), layout.axes[0]
    blocks = _blocks(layout, like.shape)
    layout = layout._replace(blocks=blocks, sums=sums_are_exact(layout.window, scale))
    if blocks is None:
        rows, gradients = _block(layout, terms, wrt, scale, constants, None)
        return [lax.expand_dims(x, (0,)) for x in rows], gradients

    def add(i, carry):
        (rows, wholes), i = carry, lax.convert_element_type(i, np.int32)  # of 64 bits under x64
        new, gradients = _block(layout, terms, wrt, scale, constants, i)
        put = functools.partial(lax.dynamic_update_slice_in_dim, allow_negative_indices=False)
        line = i
        if blocks.lines < blocks.number:
            line = lax.div(i * blocks.lines, np.int32(blocks.number))
            new = [x + lax.dynamic_index_in_dim(whole, line, 0, False) for whole, x in zip(rows, new, strict=True)]
        rows = [put(whole, x[None], line, 0) for whole, x in zip(rows, new, strict=True)]
        start = i * blocks.rows * step
        wholes = {name: put(x, layout.block(x, i) + gradients[name], start, place) for name, x in wholes.items()}
        return rows, wholes

    # Zeros, but not before ``after`` is there: by then the memory of the coarser images is free.
    zero = (after > 1e30).astype(like.dtype)
    wholes = {pair: jnp.broadcast_to(zero, like.shape) for pair in differentiated(terms, wrt) if pair[1] in IMAGES}
    zero = zero.reshape(*zero.shape[: -len(layout.axes)], 1)
    shapes = _rows(layout, blocks, like.shape, quantities(terms, wrt, scale.valid is not None))
    rows = [jnp.broadcast_to(zero, shape) for shape in shapes]
    number = blocks.number
    if scale.sizes and on_one_device.get():  # beyond all images there is nothing to add
        number = lax.div(scale.sizes[0].max() - layout.window.halo[0] + (blocks.rows - 1), np.int32(blocks.rows))
    return lax.fori_loop(0, number, add, (rows, wholes))


def _rows(layout: Layout, blocks: Blocks, shape, wanted: tuple[list[Term], list[Quantity]]) -> list[tuple[int, ...]]:
    """The shapes of the means over the rows of each block."""
    (with_gradient, rest), step = wanted, layout.channels
    width = blocks.rows * step if len(layout.axes) == 1 else shape[-1] - layout.window.halo[-1] * step
    lengths = [1] * len(with_gradient) + [len(rest)] * bool(rest)
    return [(blocks.lines, n, *shape[: -len(layout.axes)], width) for n in lengths]


def _blocks(layout: Layout, shape) -> Blocks | None:
    """The division of an image (None: it is taken whole)."""
    place, step = layout.axes[0]
    rows = shape[place] // step
    if layout.platform != "cpu" or not isinstance(rows, int):  # of unknown number, as when exported
        return None
    samples_in_row = max(math.prod(n for n in shape if isinstance(n, int)) // rows, 1)
    most = max(BLOCK_SAMPLES // samples_in_row, BLOCK_MIN_ROWS)
    if layout.window.spatial_ndim > 1:  # the "rows" of a signal are single samples
        most = min(most, BLOCK_MAX_ROWS)
    windows = rows - layout.window.halo[0]
    number = -(-windows // most)
    return None if number == 1 else Blocks(number, -(-windows // number), windows, min(number, MAX_LINES))


def _block(layout: Layout, terms, wrt, scale: Scale, constants: Constants, i):
    samples, valid = _samples(layout, scale, i)
    mass, counted = (None, None) if valid is None else coverage(layout, valid)
    images = tuple(name for name in wrt if name in IMAGES)
    with_gradient, rest = quantities(terms, wrt, valid is not None)
    shared = scale.centres, constants, counted, scale.sizes, i
    rows, gradients = [], {}
    if images:
        last, local = (), moments(layout, samples, valid)
    else:  # on a CPU the last pass is fused with the values: that takes 0.9 of the time of two stages
        last = layout.axes[-1:] if layout.platform == "cpu" else ()
        local, mass = passes(layout, samples, valid, layout.axes[: len(layout.axes) - len(last)])
    for term in with_gradient:
        partials = _partials(layout, term, images, local, mass, *shared)
        gradients |= {(term, name): x for name, x in adjoint(layout, images, partials, samples, valid).items()}
        rows.append(_mean_of_rows(layout, partials, 1))
    if rest:
        rows.append(_mean_of_rows(layout, _values(layout, tuple(rest), last, local, mass, *shared), len(rest)))
    return rows, gradients


def _samples(layout: Layout, scale: Scale, i) -> tuple[jax.Array, jax.Array | None]:
    """The sum and the difference in a block, and 1 where a pixel is valid."""
    valid = scale.weights
    if valid is not None:
        valid = lax.expand_dims(layout.block(valid, i), (0,))
    if isinstance(scale.images, tuple):
        images = scale.images if layout.blocks is None else _cut(layout, scale.images, i)
        return _load(layout, images, scale.centres, scale.sizes, i), valid
    return layout.block(scale.images, i), valid


@stage()
def _cut(layout: Layout, images, i):
    # A stage of its own: fused into the next, it makes scalar code of that.
    return [layout.block(x, i) for x in images]


@stage()
def _load(layout: Layout, images, centres, sizes, i):
    s, d = centred(*images, *centres)
    if sizes:  # there may be NaN beyond an image
        pixels = layout.inside(sizes, s, i)
        s, d = selected(pixels, s), selected(pixels, d)
    return stacked(s, d)


@stage(1, 2)
def _values(layout: Layout, wanted: tuple[Quantity, ...], axes, so_far, mass, centres, constants, counted, sizes, i):
    """The quantities at every position that counts, 0 at the others, after the passes along some more axes."""
    for axis in axes:
        so_far, mass = along(layout, so_far, mass, axis)
    local = Moments.of(layout, so_far)
    statistics, weights = local.statistics(centres), _weights(layout, local.mean_s, counted, sizes, i)

    def value(quantity: Quantity):
        return jnp.ones_like(local.mean_s) if quantity == "positions" else value_of(quantity, *statistics, constants)

    return stacked(*(weights * value(quantity) for quantity in wanted))


@stage(1, 2)
def _partials(layout: Layout, term, images, local, mass, centres, constants: Constants, counted, sizes, i):
    """A term at every position that counts, and what the adjoint blurs."""
    local = Moments.of(layout, local)
    moving = Moments._fields if term != "contrast_structure" else ("variance_s", "variance_d")

    def fraction(moving):
        return fraction_of(term, *local._replace(**moving).statistics(centres), constants)

    # Not the derivative of the quotient, nor by means that a term does not have: of that come arrays of ones and of
    # zeros, which JAX takes out of the loop, and each stage reads from memory.
    (part, whole), pullback = jax.vjp(fraction, {name: getattr(local, name) for name in moving})
    reciprocal = 1 / whole
    out = part * reciprocal
    weights = _weights(layout, out, counted, sizes, i)
    by_part = weights * reciprocal
    (by_moments,) = pullback((by_part, -out * by_part))
    if mass is not None:
        by_moments = {name: x / mass for name, x in by_moments.items()}
    by_variances = by_moments["variance_s"], by_moments["variance_d"]
    by_s, by_d = -2 * local.mean_s * by_variances[0], -2 * local.mean_d * by_variances[1]
    if "mean_s" in by_moments:
        by_s, by_d = by_s + by_moments["mean_s"], by_d + by_moments["mean_d"]
    by_mean = {"a": by_s + by_d, "b": by_s - by_d}
    return stacked(weights * out, *(by_mean[name] for name in images), *by_variances)


def _weights(layout: Layout, like, counted, sizes, i):
    """1 at positions that count and 0 at the others.

    Those are windows of the block before, windows beyond the image, and those with too much masked.
    """
    marks = [] if counted is None else [counted]
    if sizes:
        marks.append(layout.inside([*map(operator.sub, sizes, layout.window.halo)], like, i))
    if layout.blocks is not None:
        (place, step), (_, rows, total, _) = layout.axes[0], layout.blocks
        before = lax.max(i * rows - (total - rows), np.int32(0)) * step
        marks.append(places(like.shape, place) >= before)
    return functools.reduce(lax.mul, [x.astype(like.dtype) for x in marks]) if marks else 1


@stage(2)
def _mean_of_rows(layout: Layout, maps, count: int) -> jax.Array:
    """The means of some maps over all spatial axes but the last, of which a signal has none."""
    blocks, axes = layout.blocks, range(maps.ndim - len(layout.axes), maps.ndim - 1)
    mean = mean_of_map(maps[:count], axes)
    return mean * (blocks.lines * blocks.rows / blocks.total) if blocks else mean


@stage()
def mean_of_columns(layout: Layout, rows: list[jax.Array], windows) -> jax.Array:
    """The means over blocks and over the last spatial axis, a stack of ``[..., C]``: of all scales in one loop.

    With ``windows``, how many there are of each along each axis, the columns beyond are 0.
    """
    columns = [layout.unfold(mean_of_map(x, range(1)) if len(x) > 1 else x[0]) for x in rows]
    axis = columns[0].ndim - 2
    longest, lines, rest = max(x.shape[axis] for x in columns), [], []
    for x in columns:
        size = x.shape[axis]
        if windows is not None and layout.window.spatial_ndim > 1:  # a signal has columns of all blocks
            at = sum(map(len, lines))
            line, number = lax.slice_in_dim(x, 0, 1, axis=axis), windows[-1, at : at + len(x)]
            above = (places(x.shape, axis).astype(x.dtype) < number).astype(x.dtype) * (x - line)
            line = line * (number / size)
        else:
            line = reference_line(x, axis)
            above = x - line
        lines.append(line)
        margins = [(0, longest - size if i == axis else 0, 0) for i in range(x.ndim)]
        rest.append(lax.pad(above / size, lax.full((), 0, x.dtype), margins))
    return lax.squeeze(lax.concatenate(lines, 0), (axis,)) + lax.concatenate(rest, 0).sum(axis)
