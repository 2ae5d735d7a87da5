"""``"conv"``: local statistics by ``lax.conv_general_dilated``, halving by ``lax.reduce_window``; JAX differentiates.

Variances are ``E[x^2] - E[x]^2``. With each image's mean subtracted first that is accurate to 1e-6 for photographs at
any brightness and to 4e-5 at an edge from black to white, but not for an image whose halves differ by ten ``max_val``.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._implementation import Implementation
from jax_msssim._means import channel_means, mean_positions, or_one, spatial_axes, stacked
from jax_msssim._scales import Pyramid, Scale, centred, halved
from jax_msssim._terms import Constants, Means, Term, Variances, value_of
from jax_msssim._windows import Window


class Conv(Implementation):
    """Local statistics by convolutions."""

    def centre(self, image: jax.Array, where: jax.Array | None, spatial_ndim: int) -> jax.Array:
        return channel_means(image, where, spatial_ndim)

    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        return value_of(term, *_moments(_centred(scale), window), constants)

    def counted(self, scale: Scale, window: Window) -> jax.Array | None:
        valid = scale.weights
        if valid is None:
            return None
        return (_blur(1 - valid, window) <= 1 - window.min_coverage) & (_blur(valid, window) > 0)

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        window, means = pyramid.window, []
        scales = pyramid.scales(_centred(first), lambda scale: _halve(scale, window.spatial_ndim))
        for terms, scale in zip(pyramid.terms, scales, strict=True):
            moments, counted = _moments(scale, window), self.counted(scale, window)
            maps = (value_of(term, *moments, constants) for term in terms)
            means.append(tuple(mean_positions(x, counted, spatial_axes(x, window.spatial_ndim)) for x in maps))
        return means


def _centred(scale: Scale) -> Scale:
    if scale.centred:
        return scale
    return scale._replace(images=stacked(*centred(*scale.images, *scale.centres)))


def _halve(scale: Scale, spatial_ndim: int) -> tuple[jax.Array, jax.Array | None]:
    def mean(x):
        window = [2 if axis in spatial_axes(x, spatial_ndim) else 1 for axis in range(x.ndim)]
        zero = np.zeros((), x.dtype)  # a concrete one, by which lax knows a sum, which it can differentiate
        return lax.reduce_window(x, zero, lax.add, window, window, "VALID") / 2**spatial_ndim

    images, share = halved(scale.images, scale.weights, mean)
    return stacked(*images), share


def _moments(scale: Scale, window: Window) -> tuple[Means, Variances]:
    (s, variance_s), (d, variance_d) = (_mean_and_variance(x, scale.weights, window) for x in scale.images)
    return Means.of(s, d, *scale.centres), Variances(variance_s, variance_d)


def _mean_and_variance(x, weights, window: Window):
    if weights is None:
        mean, square = _blur(x, window), _blur(x * x, window)
    else:
        mass = or_one(_blur(weights, window))
        mean, square = _blur(weights * x, window) / mass, _blur(weights * x * x, window) / mass
    return mean, jnp.maximum(square - mean * mean, 0)


def _blur(x, window: Window):
    """Depthwise convolution along one spatial axis after another."""
    taps, spatial_ndim = window.taps, window.spatial_ndim
    batch, channels = x.shape[: -spatial_ndim - 1], x.shape[-1]
    x = x.reshape(math.prod(batch), *x.shape[-spatial_ndim - 1 :])
    spatial = "DHW"[-spatial_ndim:]
    layout = ("N" + spatial + "C", spatial + "IO", "N" + spatial + "C")
    for axis in range(spatial_ndim):
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
            precision=lax.Precision.HIGHEST,  # else bfloat16 on a TPU and TF32 on a GPU
        )
    return x.reshape(*batch, *x.shape[1:])
