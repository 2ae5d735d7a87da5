"""The scales of MS-SSIM: two images, halved again and again, and padded for the window."""

from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jax_msssim._means import or_one, spatial_axes, stacked
from jax_msssim._terms import Term
from jax_msssim._windows import Window

Padding = Literal["valid", "same", "reflect", "symmetric"]
Downsample = Literal["edge", "floor", "zero", "edge_start"]
Pair = tuple[jax.Array, ...]  # one of a and one of b, or of their sum and their difference


class Scale(NamedTuple):
    """Two images at one scale, each ``[..., *spatial, C]``.

    At the first scale they are ``a`` and ``b``, as the caller gave them and uncopied. At the others, and wherever
    ``centred``, they are one array ``[2, ..., *spatial, C]``: ``s`` and ``d``, the sum and the difference of ``a`` and
    ``b``, less those of ``centres``, a number for each image (or channel), so that an offset costs no digits.

    ``valid`` tells which pixels count (None: all); the others hold finite numbers without meaning.
    """

    images: Pair | jax.Array
    centres: Pair = ()
    valid: jax.Array | None = None

    @property
    def centred(self) -> bool:
        """Whether the images are ``s`` and ``d``."""
        return not isinstance(self.images, tuple)

    @property
    def weights(self) -> jax.Array | None:
        """1 where a pixel is valid, 0 elsewhere; None: all are."""
        return None if self.valid is None else self.valid.astype(self.images[0].dtype)


Halve = Callable[[Scale], tuple[Pair | jax.Array, jax.Array | None]]


class Pyramid(NamedTuple):
    """Which means are wanted: of which terms at each scale, the finest first, and how the scales are made. Static.

    ``"product"`` only comes with ``"similarity"``, and has no derivative: that would be the same.
    """

    terms: tuple[tuple[Term, ...], ...]
    window: Window
    paddings: tuple[Padding, Padding]  # of all scales but the last, and of the last
    downsample: Downsample = "edge"

    def scales(self, first: Scale, halve: Halve) -> list[Scale]:
        """Each half the one before, padded. ``halve`` gives the 2x2 means and the share of valid pixels in each."""
        scales = [first]
        for _ in self.terms[1:]:
            even = _evened(scales[-1], self.downsample, self.window.spatial_ndim)
            images, share = halve(even)
            valid = None if share is None else share == 1 if self.downsample == "floor" else share > 0
            scales.append(even._replace(images=images, valid=valid))
        before, at_last = self.paddings
        *others, last = scales
        return [*(padded(scale, before, self.window) for scale in others), padded(last, at_last, self.window)]


def centred(a: jax.Array, b: jax.Array, centre_a: jax.Array, centre_b: jax.Array) -> Pair:
    """The sum and the difference of two images, less those of a number for each."""
    above_a, above_b, apart = a - centre_a, b - centre_b, centre_a - centre_b
    # Images of about one brightness are subtracted first, which is exact where they are nearly equal.
    alike = jnp.broadcast_to(abs(apart) <= abs(centre_a) / 2, a.shape)
    return above_a + above_b, lax.select(alike, (a - b) - apart, above_a - above_b)


def halved(images, weights: jax.Array | None, mean: Callable[[jax.Array], jax.Array]):
    """The 2x2 means of the pixels that count, and the share of those."""
    if weights is None:
        return [mean(x) for x in images], None
    share = mean(weights)
    return [mean(weights * x) / or_one(share) for x in images], share


def padded(scale: Scale, padding: Padding, window: Window) -> Scale:
    """The scale with a margin around it, so that every pixel is the centre of a window."""
    if padding == "valid":
        return scale
    margin = len(window.taps) // 2

    def with_margin(x, black):
        for axis in spatial_axes(x, window.spatial_ndim):
            if padding == "same":
                x = _surrounded(x, axis, margin, margin, black)
            else:
                x = _mirrored(x, axis, margin, skipped=1 if padding == "reflect" else 0)
        return x

    return _mapped(scale, with_margin)


def smallest_side(size: int, rule: Downsample, times: int) -> int:
    """The shortest axis that is still ``size`` long after it was halved some times."""
    return size * 2**times if rule == "floor" else (size - 1) * 2**times + 1


def sharded_alike(*arrays: jax.Array) -> list[jax.Array]:
    """On an explicit mesh, arrays that every device holds whole are sharded like the others, by local slices.

    Else the partitioner gathers the others, at every scale.
    """
    shardings = [jax.typeof(x).sharding for x in arrays]
    finest = min(shardings, key=lambda sharding: tuple(sharding.spec).count(None))
    return [x if own == finest else jax.sharding.reshard(x, finest) for x, own in zip(arrays, shardings, strict=True)]


def _evened(scale: Scale, rule: Downsample, spatial_ndim: int) -> Scale:
    """The scale with an even number of pixels along each spatial axis."""

    def even(x, black):
        axes = spatial_axes(x, spatial_ndim)
        odd = [axis for axis in axes if x.shape[axis] % 2 == 1]
        if rule == "zero":  # a line of zeros at both ends of an odd axis, the second of which is left without a partner
            for axis in odd:
                x = _surrounded(x, axis, 1, 0, black)
        elif rule == "edge_start" and odd:  # the first line once more, on every axis if one is odd
            for axis in axes:
                x = jnp.concatenate([lax.slice_in_dim(x, 0, 1, axis=axis), x], axis)
        elif rule == "edge":  # the last line once more
            for axis in odd:
                x = jnp.concatenate([x, lax.slice_in_dim(x, x.shape[axis] - 1, x.shape[axis], axis=axis)], axis)
        for axis in axes:
            x = lax.slice_in_dim(x, 0, x.shape[axis] // 2 * 2, axis=axis)
        return x

    return _mapped(scale, even)


def _mapped(scale: Scale, function) -> Scale:
    """A function of each array of pixels, and of what a black pixel is in it. Black pixels are valid."""
    if scale.centred:
        a, b = scale.centres
        images = function(scale.images, stacked(-(a + b), b - a))
    else:
        images = tuple(function(x, 0) for x in scale.images)
    return scale._replace(images=images, valid=None if scale.valid is None else function(scale.valid, True))


def _surrounded(x, axis, before, after, value):
    # Not jnp.pad, which slices the other axes as well, and a sharded batch cannot be sliced.
    line = jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis)) + value
    return jnp.concatenate([line] * before + [x] + [line] * after, axis)


def _mirrored(x, axis, margin, skipped):
    before = lax.slice_in_dim(x, skipped, skipped + margin, axis=axis)
    after = lax.slice_in_dim(x, x.shape[axis] - skipped - margin, x.shape[axis] - skipped, axis=axis)
    return jnp.concatenate([jnp.flip(before, axis), x, jnp.flip(after, axis)], axis)
