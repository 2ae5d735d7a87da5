"""The scales of MS-SSIM: two images, halved again and again, and padded for the window.

An array may be larger than the images in it, which then have ``sizes`` of their own: what lies beyond them, whatever it
holds, takes no part in anything.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._means import below, or_one, places, selected, spatial_axes, stacked
from jax_msssim._shards import CutOver, finest, repeated, with_neighbours
from jax_msssim._terms import Term
from jax_msssim._windows import Window

Padding = Literal["valid", "same", "reflect", "symmetric", "edge"]
Downsample = Literal["edge", "floor", "zero", "edge_start", "start"]
Pair = tuple[jax.Array, ...]  # one of a and one of b, or of their sum and their difference


class Scale(NamedTuple):
    """Two images at one scale, each ``[..., *spatial, C]``.

    At the first scale they are ``a`` and ``b``, as the caller gave them and uncopied, bytes as bytes. At the others,
    and wherever ``centred``, they are one array ``[2, ..., *spatial, C]``: ``s`` and ``d``, the sum and the difference
    of ``a`` and ``b``, less those of ``centres``, a number for each image (or channel), so that an offset costs no
    digits.

    ``valid`` tells which pixels count (None: all); the others hold finite numbers without meaning. ``sizes`` are the
    sides of each image along each spatial axis, ``[..., 1, ..., 1]`` (none: those of the array). Beyond it lies
    anything at the first scale, and finite numbers at the others.
    """

    images: Pair | jax.Array
    centres: Pair = ()
    valid: jax.Array | None = None
    sizes: tuple[jax.Array, ...] = ()

    @property
    def centred(self) -> bool:
        """Whether the images are ``s`` and ``d``."""
        return not isinstance(self.images, tuple)

    @property
    def dtype(self) -> np.dtype:
        """The type of the arithmetic, that of the images unless they are integers."""
        return self.centres[0].dtype

    @property
    def weights(self) -> jax.Array | None:
        """1 where a pixel is valid, 0 elsewhere; None: all are."""
        return None if self.valid is None else self.valid.astype(self.images[0].dtype)

    def windows(self, window: Window) -> jax.Array | None:
        """Which windows lie inside an image, ``[..., *positions, 1]``; None: all do."""
        *batch, channels = self.images[0].shape
        start = len(batch) - len(self.sizes)
        halo = window.halo if self.sizes else ()
        shape = (*batch[:start], *map(operator.sub, batch[start:], halo), channels)
        return inside([*map(operator.sub, self.sizes, halo)], shape)

    @property
    def counts(self) -> jax.Array | None:
        """Which pixels are of an image and valid; None: all."""
        return inside(self.sizes, self.images[0].shape) if self.valid is None else self.valid


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
            even = _evened(scales[-1], self.downsample, self.window)
            images, share = halve(even)
            valid = None if share is None else share == 1 if self.downsample == "floor" else share > 0
            more = 0 if self.downsample == "floor" else 1
            sizes = tuple((size + more) // 2 for size in scales[-1].sizes)
            scales.append(even._replace(images=images, valid=valid, sizes=sizes))
        before, at_last = self.paddings
        *others, last = scales
        return [*(padded(scale, before, self.window) for scale in others), padded(last, at_last, self.window)]


def centred(a: jax.Array, b: jax.Array, centre_a: jax.Array, centre_b: jax.Array) -> Pair:
    """The sum and the difference of two images, less those of a number for each."""
    a, b = a.astype(centre_a.dtype), b.astype(centre_b.dtype)
    above_a, above_b, apart = a - centre_a, b - centre_b, centre_a - centre_b
    # Images of about one brightness are subtracted first, which is exact where they are nearly equal.
    alike = jnp.broadcast_to(abs(apart) <= abs(centre_a) / 2, a.shape)
    return above_a + above_b, lax.select(alike, (a - b) - apart, above_a - above_b)


def inside(sizes: Sequence[jax.Array], shape: Sequence[int]) -> jax.Array | None:
    """Which pixels of an array ``[..., *spatial, C]`` belong to images of these sizes; None: all."""
    return below(shape, range(len(shape) - 1 - len(sizes), len(shape) - 1), sizes) if sizes else None


def halved(images: Sequence[jax.Array], scale: Scale, mean: Callable[[jax.Array], jax.Array]):
    """The 2x2 means of those pixels of a scale that count, and the share of those if some are masked."""
    counts = scale.counts
    if counts is None:
        return [mean(x) for x in images], None
    means = [mean(selected(counts, x)) for x in images]
    if scale.valid is None:
        return [doubled(x, scale.sizes) for x in means], None
    share = mean(scale.valid.astype(images[0].dtype))
    return [x / or_one(share) for x in means], share


def doubled(x: jax.Array, sizes: Sequence[jax.Array]) -> jax.Array:
    """2x2 means, twice as large where the second line of a pair was 0, beyond the image: that is the first's mean."""
    for axis, size in zip(spatial_axes(x, len(sizes)), sizes, strict=True):
        x = x * (1 + (2 * places(x.shape, axis) + 1 == size).astype(x.dtype))
    return x


def padded(scale: Scale, padding: Padding, window: Window) -> Scale:
    """The scale with a margin around it, so that every pixel is the centre of a window."""
    if padding == "valid" and not window.cut_over:
        return scale
    margins = window.margins if padding != "valid" else ((0, 0),) * window.spatial_ndim

    def with_margin(x, black):
        axes = spatial_axes(x, window.spatial_ndim)
        sizes = _over_stack(scale.sizes, x)
        if padding == "same":
            pixels = inside(sizes, x.shape)
            x = x if pixels is None else jnp.where(pixels, x, black)
        for axis, (before, after), halo, size in zip(
            axes, margins, window.halo, sizes or [None] * len(axes), strict=True
        ):
            over = window.cut_over if axis == axes.start else ()
            if over and padding in ("valid", "same"):
                x = with_neighbours(over, x, axis, before, halo - before, black)
            elif over:
                x = repeated(over, x, axis, _sources(padding, before), _sources(padding, after), size)
            elif padding == "same":
                x = _surrounded(x, axis, before, after, black)
            elif padding != "valid":
                x = _repeated(x, axis, _sources(padding, before), _sources(padding, after), size)
        return x

    return _mapped(scale, with_margin)._replace(sizes=tuple(map(operator.add, scale.sizes, map(sum, margins))))


def smallest_side(size: int, rule: Downsample, times: int) -> int:
    """The shortest axis that is still ``size`` long after it was halved some times."""
    return size * 2**times if rule == "floor" else (size - 1) * 2**times + 1


def sharded_alike(*arrays: jax.Array) -> list[jax.Array]:
    """On an explicit mesh, arrays that every device holds whole are sharded like the others, by local slices.

    Else the partitioner gathers the others, at every scale.
    """
    sharding = finest(*arrays)
    return [x if jax.typeof(x).sharding.spec == sharding.spec else jax.sharding.reshard(x, sharding) for x in arrays]


def _evened(scale: Scale, rule: Downsample, window: Window) -> Scale:
    """The scale with an even number of pixels along each spatial axis, but where half a pair counts."""

    def begun(sides):
        if rule == "start":
            return [True] * len(sides)
        odd = [side % 2 == 1 for side in sides]
        return [functools.reduce(operator.or_, odd)] * len(odd) if rule == "edge_start" else odd

    def even(x, black):
        axes = spatial_axes(x, window.spatial_ndim)
        sides = [x.shape[axis] for axis in axes]
        for axis, side, more in zip(axes, sides, begun(_over_stack(scale.sizes, x) or sides), strict=True):
            over = window.cut_over if axis == axes.start else ()
            if rule == "zero":  # a line of zeros at both ends, the second of which is left without a partner
                x = _begun(x, axis, _line(x, axis, black), more, over)
            elif rule in ("edge_start", "start"):  # the first line once more, on every axis if one is odd, or always
                x = _begun(x, axis, lax.slice_in_dim(x, 0, 1, axis=axis), more, over)
            elif rule == "edge" and side % 2 == 1:  # the last line once more, or one that is beyond all images
                last = lax.slice_in_dim(x, side - 1, side, axis=axis)
                x = jnp.concatenate([x, jnp.zeros_like(last) if scale.sizes else last], axis)
            x = lax.slice_in_dim(x, 0, x.shape[axis] // 2 * 2, axis=axis)
        return x

    sizes = scale.sizes
    if sizes and rule not in ("edge", "floor"):
        sizes = tuple(jnp.where(more, size + 1, size) for size, more in zip(sizes, begun(sizes), strict=True))
    return _mapped(scale, even)._replace(sizes=sizes)


def _begun(x, axis, line, where: bool | jax.Array, over: CutOver):
    """``x`` with a line before it, for all images or for some."""
    if where is False:
        return x
    begun = with_neighbours(over, x, axis, 1, 0, line) if over else jnp.concatenate([line, x], axis)
    return begun if where is True else jnp.where(where, begun, jnp.concatenate([x, line], axis))


def _over_stack(sizes, x) -> list[jax.Array]:
    """Sizes of as many axes as ``x``, which may be a stack."""
    return [size.reshape((1,) * (x.ndim - size.ndim) + size.shape) for size in sizes]


def _mapped(scale: Scale, function) -> Scale:
    """A function of each array of pixels, and of what a black pixel is in it. Black pixels are valid."""
    if scale.centred:
        a, b = scale.centres
        images = function(scale.images, stacked(-(a + b), b - a))
    else:
        images = tuple(function(x, 0) for x in scale.images)
    return scale._replace(images=images, valid=None if scale.valid is None else function(scale.valid, True))


def _line(x, axis, value):
    return jnp.zeros_like(lax.slice_in_dim(x, 0, 1, axis=axis)) + value


def _surrounded(x, axis, before, after, value):
    # Not jnp.pad, which slices the other axes as well, and a sharded batch cannot be sliced.
    line = _line(x, axis, value)
    return jnp.concatenate([line] * before + [x] + [line] * after, axis)


def _sources(padding: Padding, margin: int) -> Sequence[int]:
    """The lines that are repeated beyond an end of the image, the nearest first, each by its distance from that end."""
    return {"reflect": range(1, margin + 1), "symmetric": range(margin), "edge": (0,) * margin}[padding]


def _repeated(x, axis, before: Sequence[int], after: Sequence[int], size=None):
    """The image with some of its lines repeated before its first and after its last."""
    begun = [*_turned(x, axis, before), x]
    if size is None:
        side = x.shape[axis]
        return jnp.concatenate([*begun, *_turned(x, axis, [side - 1 - source for source in after])], axis)
    # Each image ends somewhere else: its last lines are found by comparisons, which keep a sharded batch in its place.
    out = _surrounded(x, axis, 0, len(after), 0)
    for k, source in enumerate(after):
        line = selected(places(x.shape, axis) == size - 1 - source, x).sum(axis, x.dtype, keepdims=True)
        out = jnp.where(places(out.shape, axis) == size + k, line, out)
    return jnp.concatenate([*begun[:-1], out], axis)


def _turned(x, axis, lines: Sequence[int]) -> list[jax.Array]:
    """Neighbouring lines in reverse, or as often one line."""
    if not lines:
        return []
    part = lax.slice_in_dim(x, min(lines), max(lines) + 1, axis=axis)
    return [jnp.flip(part, axis)] * (len(lines) // part.shape[axis])
