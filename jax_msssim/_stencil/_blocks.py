"""One scale: the terms of every window, block by block of rows, and their derivatives by the images.

On a CPU a scale is worked through in blocks, so that the maps between the stages stay in the cache and few pages of
memory are touched for the first time. The loop runs over rows, never over the batch. Images are folded.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_msssim._means import mean_of_map, reference_line, stacked
from jax_msssim._scales import Pair, Scale, centred
from jax_msssim._stencil._layout import Blocks, Layout, fold, stage
from jax_msssim._stencil._moments import Moments, adjoint, along, coverage, moments, passes, spread
from jax_msssim._terms import Constants, Means, Term, Variances, fraction_of, value_of

# Samples in a block (batch x rows x columns x channels), and its fewest and most rows. With no more than 64 a batch
# that is hidden from this code, by vmap inside shard_map say, fits as well.
BLOCK_SAMPLES, BLOCK_MIN_ROWS, BLOCK_MAX_ROWS = 320_000, 32, 64

IMAGES = ("a", "b")
Parts = tuple[jax.Array, ...]  # which add up to sums over rows, [n, ..., columns * channels]


class Sums(NamedTuple):
    """What a scale, or a block of it, comes to.

    ``rows``: sums over rows, of the maps that :func:`names` tells, one stack after another. ``gradients``: the
    derivatives of the sums over all positions, by the names of the term and the image.
    """

    rows: list[Parts]
    gradients: dict[tuple[str, str], jax.Array]


def differentiated(terms: tuple[Term, ...], wrt: tuple[str, ...]) -> list[tuple[Term, str]]:
    """The terms and the operands that there are derivatives of."""
    return [(term, name) for term in terms if term != "product" for name in wrt]


def names(terms: tuple[Term, ...], wrt: tuple[str, ...], masked: bool) -> list[list]:
    """What is summed over positions: terms, derivatives by the constants (term and constant), positions that count."""
    constants = [name for name in wrt if name not in IMAGES]
    stacks = [[term, *((term, name) for name in constants if term != "product")] for term in terms]
    return [*(stacks if wrt else [list(terms)]), *([["positions"]] if masked else [])]


def folded(scale: Scale, constants: Constants) -> tuple[Scale, Constants]:
    """A scale and its constants in folded layout."""
    images, valid = jax.tree.map(fold, (scale.images, scale.valid))
    centres, constants = jax.tree.map(lambda x: x[..., 0], (scale.centres, constants))
    return scale._replace(images=images, centres=centres, valid=valid), constants


def map_of_term(layout: Layout, term: Term, scale: Scale, constants: Constants) -> jax.Array:
    """The term at every window."""
    local = Moments.of(moments(layout, *_samples(layout, scale, None)))
    return value_of(term, *_statistics(layout, local, scale.centres), constants)


def sums(layout: Layout, terms, wrt: tuple[str, ...], scale: Scale, constants: Constants, after) -> Sums:
    """Of all positions of a scale. What ``after`` depends on is computed before (None: nothing)."""
    like = scale.images[0]
    blocks = _blocks(layout, like.shape)
    layout = layout._replace(blocks=blocks)
    if blocks is None:
        return _block(layout, terms, wrt, scale, constants, None)

    def add(i, total: Sums) -> Sums:
        rows, gradients = _block(layout, terms, wrt, scale, constants, i)
        for name, whole in total.gradients.items():
            part = layout.block(whole, i) + gradients[name]
            gradients[name] = lax.dynamic_update_slice(
                whole, part, layout.start(whole, i), allow_negative_indices=False
            )
        return Sums(jax.tree.map(lax.add, total.rows, rows), gradients)

    zeros = jnp.zeros_like(like)
    if after is not None:
        # 0 all the same, but not before that result is there: by then the memory of the coarser images is free.
        zero = lax.convert_element_type(after[0, ..., :1] > 1e30, like.dtype)
        zeros = jnp.broadcast_to(jnp.expand_dims(zero, range(zero.ndim, like.ndim)), like.shape)
    row = like
    for _ in layout.axes[1:]:
        row = row[..., 0, :]
    windows = blocks.rows if len(layout.axes) == 1 else row.shape[-1] // layout.channels - layout.window.halo
    row = jnp.zeros_like(row[..., : windows * layout.channels])
    stacks = names(terms, wrt, scale.valid is not None)
    nothing = Sums(
        [(stacked(*[row] * len(stack)),) * min(len(layout.axes), 2) for stack in stacks],
        {pair: zeros for pair in differentiated(terms, wrt) if pair[1] in IMAGES},
    )
    return lax.fori_loop(0, -(-blocks.total // blocks.rows), add, nothing)


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
    windows = rows - layout.window.halo
    count = -(-windows // most)
    return None if count == 1 else Blocks(-(-windows // count), windows)


def _block(layout: Layout, terms, wrt, scale: Scale, constants: Constants, i) -> Sums:
    samples, valid = _samples(layout, scale, i)
    mass, counted = (None, None) if valid is None else coverage(layout, valid)
    images = tuple(name for name in wrt if name in IMAGES)
    shared = scale.centres, constants, counted, i
    maps, gradients = [], {}
    if not wrt:
        so_far = passes(layout, samples, valid, layout.axes[:-1])
        maps.append((layout.stage(_values, terms, layout.axes[-1:], *so_far, *shared), len(terms)))
    else:
        local = moments(layout, samples, valid)
        for term in terms:
            if term == "product":
                maps.append((layout.stage(_values, (term,), (), local, mass, *shared), 1))
                continue
            stack, count = layout.stage(_partials, term, wrt, local, mass, *shared), 1 + len(wrt) - len(images)
            maps.append((stack, count))
            if images:
                of_images = adjoint(layout, images, stack, count, samples, valid)
                gradients |= {(term, name): x for name, x in of_images.items()}
    if counted is not None:
        maps.append((lax.expand_dims(_weights(layout, mass, counted, i), (0,)), 1))
    return Sums([layout.stage(_sum_rows, *each) for each in maps], gradients)


def _samples(layout: Layout, scale: Scale, i) -> tuple[jax.Array, jax.Array | None]:
    """The sum and the difference in a block, and 1 where a pixel is valid."""
    valid = scale.valid
    if valid is not None:
        valid = lax.expand_dims(layout.block(valid, i).astype(scale.images[0].dtype), (0,))
    if isinstance(scale.images, tuple):
        return layout.stage(_load, scale.images, scale.centres, i), valid
    return layout.block(scale.images, i), valid


@stage()
def _load(layout: Layout, images, centres, i):
    return stacked(*centred(*(layout.block(x, i) for x in images), *centres))


@stage(1, 2)
def _values(layout: Layout, terms, axes, so_far, mass, centres, constants: Constants, counted, i):
    """The values of terms at every position that counts, 0 at the others, after the passes along some more axes."""
    for axis in axes:  # fused with the values: that takes 0.9 of the time of two stages
        so_far, mass = along(layout, so_far, mass, axis)
    local = Moments.of(so_far)
    statistics, weights = _statistics(layout, local, centres), _weights(layout, local.mean_s, counted, i)
    return layout.stack(*(weights * value_of(term, *statistics, constants) for term in terms))


@stage(1, 2)
def _partials(layout: Layout, term, wrt, local, mass, centres, constants: Constants, counted, i):
    """Maps to be summed, and what the adjoint blurs, in one stack."""
    local, own = Moments.of(local), [name for name in wrt if name not in IMAGES]
    moving = Moments._fields if term != "contrast_structure" else ("variance_s", "variance_d")

    def fraction(moving, own_constants):
        statistics = _statistics(layout, local._replace(**moving), centres)
        return fraction_of(term, *statistics, constants._replace(**own_constants))

    # Not the derivative of the quotient, nor by means that a term does not have: of that come arrays of ones and of
    # zeros, which JAX takes out of the loop, and each stage reads from memory.
    at_each_window = {name: jnp.broadcast_to(getattr(constants, name), local.mean_s.shape) for name in own}
    (part, whole), pullback = jax.vjp(fraction, {name: getattr(local, name) for name in moving}, at_each_window)
    reciprocal = 1 / whole
    out = part * reciprocal
    weights = _weights(layout, out, counted, i)
    by_part = weights * reciprocal
    by_moments, by_constants = pullback((by_part, -out * by_part))
    images = tuple(name for name in wrt if name in IMAGES)
    if mass is not None:
        by_moments = {name: x / mass for name, x in by_moments.items()}
    to_blur = spread(images, local, by_moments) if images else ()
    return layout.stack(weights * out, *(by_constants[name] for name in own), *to_blur)


def _statistics(layout: Layout, local: Moments, centres: Pair) -> tuple[Means, Variances]:
    scale = layout.window.covariance_scale
    return Means.of(local.mean_s, local.mean_d, *centres), Variances(scale * local.variance_s, scale * local.variance_d)


def _weights(layout: Layout, like, counted, i):
    """1 at positions that count and 0 at the others: those of the block before, and windows with too much masked."""
    weights = 1 if counted is None else counted.astype(like.dtype)
    if layout.blocks is None:
        return weights
    place, step = layout.axes[0]
    rows = lax.iota(jnp.int32, like.shape[place] // step) + layout.blocks.first(i)
    new = (rows >= i * layout.blocks.rows).astype(like.dtype)
    shape = [1] * like.ndim
    shape[place] = -1
    return weights * jnp.repeat(new, step, axis=0).reshape(shape)


@stage(2)
def _sum_rows(layout: Layout, maps, count: int) -> Parts:
    """Sums of some maps over all spatial axes but the last, of which a signal has none."""
    x = stacked(*maps[:count]) if isinstance(maps, tuple) else maps[:count]
    first = x.ndim - len(layout.axes)
    while x.ndim > first + 2:
        x = mean_of_map(x, range(first, first + 1)) * x.shape[first]
    if x.ndim == first + 1:
        return (x,)
    line = reference_line(x, first)
    return x.shape[first] * lax.squeeze(line, (first,)), (x - line).sum(first)


@stage()
def sum_columns(layout: Layout, rows: list[Parts]) -> jax.Array:
    """Sums over the last spatial axis, ``[K, ..., C]``, of all K sums over rows: those of all scales in one loop."""
    columns = [layout.unfold(functools.reduce(lax.add, parts)) for parts in rows]
    axis, margins = columns[0].ndim - 2, [(0, 0, 0)] * columns[0].ndim
    longest = max(x.shape[axis] for x in columns)
    whole, above = [], []
    for x in columns:
        line = reference_line(x, axis)
        margins[axis] = (0, longest - x.shape[axis], 0)
        whole.append(x.shape[axis] * lax.squeeze(line, (axis,)))
        above.append(lax.pad(x - line, lax.full((), 0, x.dtype), margins))
    return lax.concatenate(whole, 0) + lax.concatenate(above, 0).sum(axis)
