"""The means of all scales as one operation, and its derivative.

A mean weighs every position alike, so its gradient image depends on the cotangent only through a factor for each image
and channel. It is computed with the value; what is kept for the backward pass is that image, one for each scale, and
none of the maps. The derivative by an image of the first scale is the mean of ``gradient * tangent`` at each scale,
where the tangent is halved and padded as the image is.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jax_msssim._means import mean_by_axis, or_one, selected, spatial_axes, stacked, unstacked
from jax_msssim._scales import Pair, Pyramid, Scale, centred, doubled, halved
from jax_msssim._shards import mean_over
from jax_msssim._stencil._blocks import IMAGES, averages, differentiated, mean_of_columns, quantities
from jax_msssim._stencil._layout import Layout, fold, stage
from jax_msssim._stencil._platforms import Program, on_any_platform, per_platform
from jax_msssim._terms import Constants

Static = tuple[Pyramid, tuple[str, ...]]  # and the names of the operands that are differentiated


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def term_means(program: Program, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
    """The means of the terms at each scale, by :func:`all_scales` or what gives the same another way."""
    return [tuple(found.values()) for found in _means_and_gradients(program, pyramid, (), first, constants)]


@functools.partial(term_means.defjvp, symbolic_zeros=True)
def _term_means_jvp(program: Program, pyramid: Pyramid, primals, tangents):
    (first, constants), (d_first, d_constants) = primals, tangents
    operands = zip((*IMAGES, *Constants._fields), (*d_first.images, *d_constants), strict=True)
    moving = {name: dx for name, dx in operands if not isinstance(dx, SymbolicZero)}
    axes, at_scales = spatial_axes(first.images[0], pyramid.window.spatial_ndim), {}
    over = pyramid.window.cut_over
    for name, dx in moving.items():
        if name in IMAGES:
            at_scales[name] = _tangents(pyramid, dx, first)
        else:
            at_scales[name] = [dx.reshape(*dx.shape[: axes.start], 1)] * len(pyramid.terms)
    found = _means_and_gradients(program, pyramid, tuple(moving), first, constants)
    values, derivatives = [], []
    for j, terms in enumerate(pyramid.terms):
        values.append(tuple(found[j][term] for term in terms))
        of_terms = {term: jnp.zeros_like(found[j][term]) for term in terms}
        for term, name in differentiated(terms, tuple(moving)):
            change = found[j][term, name] * at_scales[name][j]
            of_terms[term] += mean_over(over, mean_by_axis(change, axes)) if name in IMAGES else change
        derivatives.append(tuple(of_terms.values()))
    return values, derivatives


def _means_and_gradients(program: Program, pyramid: Pyramid, wrt: tuple[str, ...], first: Scale, constants: Constants):
    """At each scale the means of the terms, and by term and operand what their derivatives are made of."""
    results = iter(per_platform(program, _outline, (pyramid, wrt), first, constants))
    return [{key: next(results) for key in (*terms, *differentiated(terms, wrt))} for terms in pyramid.terms]


def scales_of(platform: str | None, pyramid: Pyramid, first: Scale) -> tuple[Layout, list[Scale]]:
    """The images of all scales, and how those of the stencil are laid out."""
    layout = Layout(pyramid.window, first.images[0].shape[-1], platform)
    return layout, pyramid.scales(first, functools.partial(_halved, layout))


def _outline(_, static: Static, first: Scale, constants: Constants):
    """Arrays like those of :func:`all_scales`."""
    (pyramid, wrt), results = static, []
    # Only gradient images have the shapes of the other scales.
    scales = scales_of(None, pyramid, first)[1] if set(wrt) & set(IMAGES) else [first] * len(pyramid.terms)
    for terms, scale in zip(pyramid.terms, scales, strict=True):
        image = scale.images[0].astype(scale.dtype)
        number = mean_over(pyramid.window.cut_over, image[(..., *(0,) * pyramid.window.spatial_ndim, slice(None))])
        results += [number] * len(terms)
        results += [image if name in IMAGES else number for _, name in differentiated(terms, wrt)]
    return results


def all_scales(platform: str, static: Static, first: Scale, constants: Constants):
    """The results of all scales, the coarsest first computed: its images' memory can be the finer gradients'."""
    pyramid, wrt = static
    over = pyramid.window.cut_over
    layout, scales = scales_of(platform, pyramid, first)
    scales, constants = jax.tree.map(fold, (scales, constants))
    found, after = [], scales[0].centres[0]
    for terms, scale in zip(reversed(pyramid.terms), reversed(scales), strict=True):
        (rows, _), *_ = found = [averages(layout, terms, wrt, scale, constants, after), *found]
        after = rows[0][0, 0, ..., :1].reshape(after.shape)
    masked, shares = first.valid is not None, None
    wanted = [quantities(terms, wrt, masked) for terms in pyramid.terms]
    names = [(j, name) for j, (with_gradient, rest) in enumerate(wanted) for name in (*with_gradient, *rest)]
    windows = None if masked or not scales[0].sizes else _windows(layout, [scales[j] for j, _ in names])
    means = mean_over(over, mean_of_columns(layout, [x for rows, _ in found for x in rows], windows))
    positions = [layout.windows(scale.images[0].shape) for scale in scales]
    if masked:
        shares = stacked(*(lax.index_in_dim(means, names.index((j, "positions")), 0, False) for j, _ in names))
    elif windows is not None:
        in_array = np.array([positions[j] for j, _ in names], scales[0].dtype).reshape(-1, *(1,) * (windows.ndim - 3))
        shares = mean_over(over, functools.reduce(lax.mul, unstacked(windows))[..., 0] / in_array)
    if shares is not None:
        means = means / or_one(shares)
    mean, results = dict(zip(names, unstacked(means), strict=True)), []
    for j, (terms, scale, (_, gradients)) in enumerate(zip(pyramid.terms, scales, found, strict=True)):
        undefined, at_pixels = 0.0, 1.0
        if shares is not None:  # where no position counts the mean is NaN, and its gradient 0
            share = lax.index_in_dim(shares, names.index((j, terms[0])), 0, False)
            undefined, at_pixels = jnp.where(share > 0, 0, jnp.nan), or_one(share)
            at_pixels = lax.expand_dims(at_pixels, range(share.ndim - 1, share.ndim - 1 + len(layout.axes)))
        results += [mean[j, term] + undefined for term in terms]
        # Gradient images are times the number of pixels, so that a derivative is a mean. Were it a mean times a number,
        # the backward pass would begin with that product, and overflow: decibels of nearly equal images have 1e37.
        factor = layout.pixels(scale.images[0].shape) / positions[j] / at_pixels
        for pair in differentiated(terms, wrt):
            image = gradients.get(pair)
            results.append(mean[j, pair] if image is None else layout.unfold(image) * factor)
    return results


def _windows(layout: Layout, scales: list[Scale]) -> jax.Array:
    """How many windows images with sizes have along each axis at some scales, ``[axes, scales, ..., 1, 1]``."""
    batch = scales[0].centres[0].shape[: -len(layout.axes)]
    by_axis = zip(*(scale.sizes for scale in scales), strict=True)
    sizes = stacked(*(stacked(*(size.reshape(*batch, 1, 1) for size in of_scales)) for of_scales in by_axis))
    halo = layout.window.halo
    less = np.array(halo, np.int32).reshape(-1, *(1,) * (sizes.ndim - 1))
    numbers = lax.max(sizes - less, lax.full_like(sizes, 0))
    if layout.window.cut_over:  # an image may reach beyond this shard
        sides = [[x.images[0].shape[place] // step - halo[place] for x in scales] for place, step in layout.axes]
        numbers = jnp.minimum(numbers, np.array(sides, np.int32).reshape(*sizes.shape[:2], *(1,) * (sizes.ndim - 2)))
    return numbers.astype(scales[0].dtype)


@stage()
def _halved(layout: Layout, scale: Scale) -> tuple[jax.Array, jax.Array | None]:
    def mean(x):
        for axis in range(-layout.window.spatial_ndim - 1, -1):
            x = _split(x, axis)  # of size 2 is then the axis itself
            x = lax.index_in_dim(x, 0, axis, False) + lax.index_in_dim(x, 1, axis, False)
        return x / 2**layout.window.spatial_ndim

    pair = centred(*scale.images, *scale.centres) if isinstance(scale.images, tuple) else unstacked(scale.images)
    images, share = halved(pair, scale, mean)
    return stacked(*images), share


def _tangents(pyramid: Pyramid, dx: jax.Array, first: Scale) -> list[jax.Array]:
    """The tangent of an image at each scale."""

    # Means over split axes, not sums of slices as above: their transpose repeats pixels, that of the others pads them.
    def mean(x):
        for axis in range(-pyramid.window.spatial_ndim - 1, -1):
            x = _split(x, axis).mean(axis)
        # Else the gradient of the first scale is one loop with all others in it, for every pixel anew.
        return on_any_platform(lambda name, x: _with_axis(Layout(pyramid.window, 1, name), x)[0], x)

    def halve(scale: Scale) -> tuple[Pair, jax.Array | None]:
        if scale.valid is None and scale.sizes:
            return tuple(doubled(mean(x), scale.sizes) for x in scale.images), None
        images, share = halved([*scale.images], scale, mean)
        return tuple(images), share

    if first.sizes:  # rows of three samples a pixel would be compared one by one
        layout, folded = Layout(pyramid.window, dx.shape[-1]), fold(dx)
        dx = layout.unfold(selected(layout.inside(list(map(fold, first.sizes)), folded, 0), folded))
    return [scale.images[0] for scale in pyramid.scales(Scale((dx,), (), first.valid, first.sizes), halve)]


@stage()
def _with_axis(layout: Layout, x):
    return lax.expand_dims(x, (0,))  # a call that returns its argument is dropped


def _split(x, axis):
    """An axis split in two, the second of size 2, by a reshape of no other: the batch may be sharded."""
    axis %= x.ndim
    return x.reshape(*x.shape[:axis], x.shape[axis] // 2, 2, *x.shape[axis + 1 :])
