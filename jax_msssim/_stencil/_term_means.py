"""The means of all scales as one operation, and its derivative.

A mean weighs every position alike, so its gradient image depends on the cotangent only through a factor for each image
and channel. It is computed with the value; what is kept for the backward pass is that image, one for each scale, and
none of the maps. The derivative by an image of the first scale is the mean of ``gradient * tangent`` at each scale,
where the tangent is halved and padded as the image is.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jax_msssim._means import mean_by_axis, spatial_axes, stacked
from jax_msssim._scales import Pair, Pyramid, Scale, centred, halved
from jax_msssim._stencil._blocks import IMAGES, differentiated, folded, names, sum_columns, sums
from jax_msssim._stencil._layout import Layout, stage, unstacked
from jax_msssim._stencil._platforms import apart, per_platform
from jax_msssim._terms import Constants


class Operands(NamedTuple):
    """What is differentiated, by its name, and what is not."""

    a: jax.Array
    b: jax.Array
    c1: jax.Array
    c2: jax.Array
    centres: Pair
    valid: jax.Array | None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def term_means(pyramid: Pyramid, program: Callable, operands: Operands) -> list[tuple[jax.Array, ...]]:
    """The means of the terms at each scale, by a program called as :func:`all_scales`."""
    return [means for means, _ in _means_and_gradients(pyramid, program, (), operands)]


@functools.partial(term_means.defjvp, symbolic_zeros=True)
def _term_means_jvp(pyramid: Pyramid, program: Callable, primals, tangents):
    (operands,), (tangent,) = primals, tangents
    moving = {
        name: x for name, x in zip(Operands._fields[:4], tangent[:4], strict=True) if not isinstance(x, SymbolicZero)
    }
    at_scales = {
        name: _tangents(pyramid, dx, operands.valid) if name in IMAGES else [dx] * len(pyramid.terms)
        for name, dx in moving.items()
    }
    results = _means_and_gradients(pyramid, program, tuple(moving), operands)
    derivatives = []
    for j, (means, gradients) in enumerate(results):
        of_terms = dict(zip(pyramid.terms[j], map(jnp.zeros_like, means), strict=True))
        for (term, name), gradient in gradients.items():
            dx = at_scales[name][j]
            if name in IMAGES:
                of_terms[term] += mean_by_axis(gradient * dx, spatial_axes(dx, pyramid.window.spatial_ndim))
            else:
                of_terms[term] += gradient * dx.reshape(*dx.shape[: -pyramid.window.spatial_ndim - 1], 1)
        derivatives.append(tuple(of_terms.values()))
    return [means for means, _ in results], derivatives


def _means_and_gradients(pyramid: Pyramid, program: Callable, wrt: tuple[str, ...], operands: Operands):
    """At each scale the means of the terms, and what their derivatives are made of, by term and operand."""
    results = iter(per_platform(program, _outline, (pyramid, wrt), operands))
    return [
        (tuple(next(results) for _ in terms), {pair: next(results) for pair in differentiated(terms, wrt)})
        for terms in pyramid.terms
    ]


def _scales(platform: str | None, pyramid: Pyramid, operands: Operands) -> tuple[Layout, list[Scale]]:
    layout = Layout(pyramid.window, operands.a.shape[-1], platform)
    first = Scale((operands.a, operands.b), operands.centres, operands.valid)
    return layout, pyramid.scales(first, functools.partial(_halve, layout))


def _outline(_, static: tuple[Pyramid, tuple[str, ...]], operands: Operands):
    """Arrays like those of :func:`all_scales`."""
    (pyramid, wrt), results = static, []
    for terms, scale in zip(pyramid.terms, _scales(None, pyramid, operands)[1], strict=True):
        image = scale.images[0]
        number = image[(..., *(0,) * pyramid.window.spatial_ndim, slice(None))]
        results += [number] * len(terms)
        results += [image if name in IMAGES else number for _, name in differentiated(terms, wrt)]
    return results


def all_scales(platform: str, static: tuple[Pyramid, tuple[str, ...]], operands: Operands):
    """The results of all scales, the coarsest first computed: its images' memory can be the finer gradients'."""
    pyramid, wrt = static
    layout, scales = _scales(platform, pyramid, operands)
    scales = [folded(scale, Constants(operands.c1, operands.c2)) for scale in scales]
    found, after = [], None
    for terms, scale in zip(reversed(pyramid.terms), reversed(scales), strict=True):
        found = [sums(layout, terms, wrt, *scale, after), *found]
        after = found[0].rows[0][-1]
    totals = iter(unstacked(layout.stage(sum_columns, [parts for each in found for parts in each.rows])))
    results = []
    for terms, (scale, _), each in zip(pyramid.terms, scales, found, strict=True):
        masked = scale.valid is not None
        numbers = {name: next(totals) for stack in names(terms, wrt, masked) for name in stack}
        shape, undefined = scale.images[0].shape, 0
        positions = at_pixels = layout.count(shape, layout.window.halo)
        if masked:  # where no position counts the mean is NaN, and its gradient 0
            positions = jnp.maximum(numbers["positions"], 1)
            undefined = jnp.where(numbers["positions"] > 0, 0, jnp.nan)
            at_pixels = jnp.expand_dims(positions, range(positions.ndim - 1, positions.ndim - 1 + len(layout.axes)))
        results += [numbers[term] / positions + undefined for term in terms]
        # Gradient images are times the number of pixels, so that a derivative is a mean. Were it a mean times a number,
        # the backward pass would begin with that product, and overflow: decibels of nearly equal images have 1e37.
        factor = layout.count(shape) / at_pixels
        for pair in differentiated(terms, wrt):
            image = each.gradients.get(pair)
            results.append(numbers[pair] / positions if image is None else layout.unfold(image) * factor)
    return results


# --- halving ------------------------------------------------------------------------------------------------


def _halve(layout: Layout, scale: Scale) -> tuple[Scale, jax.Array | None]:
    images, share = layout.stage(_halved, scale.images, () if scale.centred else scale.centres, scale.weights)
    return scale._replace(images=images, centred=True), share


@stage()
def _halved(layout: Layout, images, centres, weights):
    def mean(x):
        for axis in range(-layout.window.spatial_ndim - 1, -1):
            x = _split(x, axis)  # of size 2 is then the axis itself
            x = lax.index_in_dim(x, 0, axis, False) + lax.index_in_dim(x, 1, axis, False)
        return x / 2**layout.window.spatial_ndim

    pair, share = halved(centred(*images, *centres) if centres else unstacked(images), weights, mean)
    return stacked(*pair), share


def _tangents(pyramid: Pyramid, dx: jax.Array, valid: jax.Array | None) -> list[jax.Array]:
    """The tangent of an image at each scale."""

    # Means over split axes, not sums of slices as above: their transpose repeats pixels, that of the others pads them.
    def mean(x):
        for axis in range(-pyramid.window.spatial_ndim - 1, -1):
            x = _split(x, axis).mean(axis)
        return apart(x)  # else the gradient of the first scale is one loop with all others in it, for every pixel anew

    def halve(scale: Scale) -> tuple[Scale, jax.Array | None]:
        images, share = halved(scale.images, scale.weights, mean)
        return scale._replace(images=tuple(images)), share

    return [scale.images[0] for scale in pyramid.scales(Scale((dx,), (), valid), halve)]


def _split(x, axis):
    """An axis split in two, the second of size 2, by a reshape of no other: the batch may be sharded."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
