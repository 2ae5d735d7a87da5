"""``"conv"`` and ``"matmul"``: local statistics by linear blurs of images and of their squares; JAX differentiates.

Variances are ``E[x^2] - E[x]^2``. With each image's mean subtracted first that is accurate to 1e-6 for photographs at
any brightness and to 4e-5 at an edge from black to white, but not for an image whose halves differ by ten ``max_val``.
"""

import math
from abc import abstractmethod

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._implementation import Implementation
from jax_msssim._means import channel_means, mean_by_axis, mean_positions, or_one, selected, spatial_axes, stacked
from jax_msssim._scales import Pyramid, Scale, centred, halved, inside
from jax_msssim._terms import Constants, Means, Term, Variances, value_of
from jax_msssim._windows import Window

EXACT = lax.Precision.HIGHEST  # else bfloat16 on a TPU and TF32 on a GPU
UNIT = 128  # the side of the matrices that a TPU multiplies


class Linear(Implementation):
    """Local statistics by a linear blur."""

    @abstractmethod
    def blur(self, x: jax.Array, window: Window) -> jax.Array:
        """The weighted sum over each window of ``[..., *spatial, C]``."""

    @abstractmethod
    def halve(self, x: jax.Array, spatial_ndim: int) -> jax.Array:
        """The 2x2 means of ``[..., *spatial, C]``, every side even."""

    def in_tiles(self, scale: Scale, constants: Constants, window: Window) -> tuple[Scale, Constants, jax.Array | None]:
        """A scale as tiles, along batch axes after the others, and what each window weighs in the mean; None: whole.

        Weights are ``[..., *tiles, *windows of a tile, 1]``: 0 for a window that another tile has, and 1 in the mean; 0
        for those beyond an image, too, of which nothing else is then known.
        """
        del window
        return scale, constants, None

    def centre(self, image: jax.Array, counts: jax.Array | None, window: Window) -> jax.Array:
        return channel_means(image, counts, window.spatial_ndim, window.cut_over)

    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        return value_of(term, *self._moments(_centred(scale), window), constants)

    def covered(self, scale: Scale, window: Window) -> jax.Array | None:
        valid = scale.weights
        if valid is None:
            return None
        return (self.blur(1 - valid, window) <= 1 - window.min_coverage) & (self.blur(valid, window) > 0)

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        return [
            self.means(terms, scale, constants, pyramid.window)
            for terms, scale in zip(pyramid.terms, self.scales(pyramid, first), strict=True)
        ]

    def scales(self, pyramid: Pyramid, first: Scale) -> list[Scale]:
        """All scales, centred and padded."""

        def halve(scale: Scale) -> tuple[jax.Array, jax.Array | None]:
            images, share = halved([*scale.images], scale, lambda x: self.halve(x, pyramid.window.spatial_ndim))
            return stacked(*images), share

        return pyramid.scales(_centred(first), halve)

    def means(self, terms: tuple[Term, ...], scale: Scale, constants: Constants, window: Window):
        """The means of the terms of a centred and padded scale."""
        batch, sized = spatial_axes(scale.images[0], window.spatial_ndim).start, bool(scale.sizes)
        scale, constants, weights = self.in_tiles(scale, constants, window)
        moments, counted = self._moments(scale, window), self.counted(scale, window)
        maps = [value_of(term, *moments, constants) for term in terms]
        axes = spatial_axes(maps[0], window.spatial_ndim)
        if weights is None:
            return tuple(mean_positions(x, counted, axes, window.cut_over) for x in maps)
        if counted is None and not sized:
            return tuple(_mean_of_tiles(x, weights, range(batch, axes.start), axes) for x in maps)
        counted = weights > 0 if counted is None else counted & (weights > 0)
        return tuple(mean_positions(x, counted, range(batch, axes.stop), window.cut_over) for x in maps)

    def _moments(self, scale: Scale, window: Window) -> tuple[Means, Variances]:
        mass = None if scale.weights is None else or_one(self.blur(scale.weights, window))

        def mean(x):
            return self.blur(x, window) if mass is None else self.blur(scale.weights * x, window) / mass

        s, d = (mean(x) for x in scale.images)
        squares = (mean(x * x) for x in scale.images)
        variances = (jnp.maximum(x - m * m, 0) for x, m in zip(squares, (s, d), strict=True))
        return Means.of(s, d, *scale.centres), Variances(*variances)


class Conv(Linear):
    """Depthwise convolutions along one spatial axis after another."""

    def blur(self, x: jax.Array, window: Window) -> jax.Array:
        spatial_ndim = window.spatial_ndim
        batch, channels = x.shape[: -spatial_ndim - 1], x.shape[-1]
        x = x.reshape(math.prod(batch), *x.shape[-spatial_ndim - 1 :])
        spatial = "DHW"[-spatial_ndim:]
        layout = ("N" + spatial + "C", spatial + "IO", "N" + spatial + "C")
        for axis, taps in enumerate(window.taps):
            shape = [1] * spatial_ndim
            shape[axis] = len(taps)
            kernel = jnp.broadcast_to(jnp.asarray(taps, x.dtype).reshape(*shape, 1, 1), (*shape, 1, channels))
            x = lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(1,) * spatial_ndim,
                padding="VALID",
                dimension_numbers=layout,
                feature_group_count=channels,
                precision=EXACT,
            )
        return x.reshape(*batch, *x.shape[1:])

    def halve(self, x: jax.Array, spatial_ndim: int) -> jax.Array:
        window = [2 if axis in spatial_axes(x, spatial_ndim) else 1 for axis in range(x.ndim)]
        zero = np.zeros((), x.dtype)  # a concrete one, by which lax knows a sum, which it can differentiate
        return lax.reduce_window(x, zero, lax.add, window, window, "VALID") / 2**spatial_ndim


class Matmul(Linear):
    """Products with banded matrices, along one spatial axis after another."""

    def blur(self, x: jax.Array, window: Window) -> jax.Array:
        for axis, taps in zip(spatial_axes(x, window.spatial_ndim), window.taps, strict=True):
            x = _banded(taps, 1, x, axis)
        return x

    def halve(self, x: jax.Array, spatial_ndim: int) -> jax.Array:
        for axis in spatial_axes(x, spatial_ndim):
            size = x.shape[axis]
            ends = [*range(0, size, 2 * UNIT), size]
            parts = [lax.slice_in_dim(x, *ends[i : i + 2], axis=axis) for i in range(len(ends) - 1)]
            x = jnp.concatenate([_banded((0.5, 0.5), 2, part, axis) for part in parts], axis)
        return x

    def in_tiles(self, scale: Scale, constants: Constants, window: Window) -> tuple[Scale, Constants, jax.Array | None]:
        # The matrix of a long axis is zeros for the most part. A tile as long as a TPU's matrices has 118 windows of 11
        # taps. Images are cut before they are squared and blurred: to cut their maps and to join those costs more.
        ndim = window.spatial_ndim
        weights, windows_inside = jnp.ones((1,) * (ndim + 1), scale.images[0].dtype), scale.windows(window)
        for axis, halo in zip(range(-ndim - 1, -1), window.halo, strict=True):
            size, tile = scale.images[0].shape[axis], UNIT * max(1, -(-4 * halo // UNIT))
            if not isinstance(size, int) or size <= 2 * tile:
                continue
            own, windows = tile - halo, size - halo
            starts = np.arange(0, windows, own)
            begins = np.minimum(starts, windows - own)  # the last tile ends with the image

            def cut(x, length=tile, axis=axis, begins=begins):
                parts = [lax.slice_in_dim(x, begin, begin + length, axis=axis) for begin in begins.tolist()]
                return jnp.stack(parts, x.ndim - ndim - 1)

            def over_tiles(x):
                return jnp.expand_dims(x, x.ndim - ndim - 1)

            images, valid = jax.tree.map(cut, ((*scale.images,), scale.valid))
            centres, constants = jax.tree.map(over_tiles, (scale.centres, constants))
            scale = scale._replace(images=images, valid=valid, centres=centres)
            windows_inside = None if windows_inside is None else cut(windows_inside, own)
            new = (begins[:, None] + np.arange(own) >= starts[:, None]) * (len(starts) * own / windows)
            shape = [1] * (weights.ndim + 1)
            shape[-ndim - 2], shape[axis] = new.shape
            weights = over_tiles(weights) * jnp.asarray(new.reshape(shape), weights.dtype)
        if weights.ndim == ndim + 1:
            return scale, constants, None
        weights = jnp.expand_dims(weights, range(scale.images[0].ndim - weights.ndim))
        if windows_inside is not None:
            weights = weights * windows_inside.astype(weights.dtype)
        return scale._replace(sizes=()), constants, weights


def _mean_of_tiles(x: jax.Array, weights: jax.Array, tiles: range, axes: range) -> jax.Array:
    """The weighted mean over tiles and their windows, as the least number plus the mean of what others are above it.

    Sums of a flat map would be rounded one way. Not from a line of the map: where tiles are cut, that makes XLA lay a
    batch out with the images last.
    """
    least = lax.stop_gradient(x.min((*tiles, *axes), keepdims=True))
    return least.squeeze((*tiles, *axes)) + mean_by_axis(mean_by_axis(weights * (x - least), axes), tiles)


def _banded(taps: tuple[float, ...], stride: int, x: jax.Array, axis: int) -> jax.Array:
    """The weighted sums over windows that are ``stride`` apart along an axis, as a product with a banded matrix."""
    size = x.shape[axis]
    arange = np.arange if isinstance(size, int) else jnp.arange  # of unknown size, as when exported
    place = arange(size)[None] - stride * arange((size - len(taps)) // stride + 1)[:, None]
    matrix = sum((place == k).astype(x.dtype) * tap for k, tap in enumerate(taps))
    axes, new = list(range(x.ndim)), x.ndim
    return jnp.einsum(matrix, [new, axis], x, axes, [new if i == axis else i for i in axes], precision=EXACT)


def _centred(scale: Scale) -> Scale:
    if scale.centred:
        return scale
    images, pixels = centred(*scale.images, *scale.centres), inside(scale.sizes, scale.images[0].shape)
    if pixels is not None:  # there may be NaN beyond an image
        images = [selected(pixels, x) for x in images]
    return scale._replace(images=stacked(*images))
