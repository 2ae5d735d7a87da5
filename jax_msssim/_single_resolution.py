"""MS-SSIM without a pyramid (Zhao et al. 2017): windows of five widths at full resolution, a value at every pixel.

1 - l_M(p) prod_j cs_j(p),    sigma_j = 0.5, 1, 2, 4, 8,    M = 5, zeros around the image
"""

import jax
import jax.numpy as jnp
import numpy as np

from jax_msssim._checks import Array
from jax_msssim._means import mean_positions, places, spatial_axes
from jax_msssim._options import Images, Options
from jax_msssim._scales import Scale, padded
from jax_msssim._shards import first_line
from jax_msssim._ssim import IMPLEMENTATIONS, first_scale
from jax_msssim._windows import Window, gaussian_window

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
RADIUS = 16  # of the widest window: two sigmas, as the paper and its code cut it
SINGLE_RESOLUTION_OPTIONS = frozenset(
    {"max_val", "k1", "k2", "where", "min_coverage", "sizes", "spatial_ndim", "implementation"}
)


def single_resolution(options: Options, images: Images) -> tuple[jax.Array, Array]:
    """The mean dissimilarity per image, and what the widest window weighs each pixel with, ``[..., *spatial, 1]``."""
    implementation, spatial_ndim = IMPLEMENTATIONS[options.implementation], options.window.spatial_ndim
    first, constants = first_scale(options, images)
    dissimilarity = jnp.zeros((), options.dtype)
    window, scale = options.window, first
    for sigma in SIGMAS:
        radius = min(RADIUS, round(8 * sigma))  # beyond 8 sigmas a tap is below 1e-14
        taps = tuple(gaussian_window(2 * radius + 1, sigma).tolist())
        window = window._replace(taps=(taps,) * spatial_ndim)
        scale = padded(first, "same", window)
        term = "similarity" if sigma == SIGMAS[-1] else "contrast_structure"
        one_more = implementation.term_map(term, scale, constants, window)
        dissimilarity = dissimilarity + one_more - dissimilarity * one_more  # 1 - (1 - x)(1 - y)
    axes = spatial_axes(dissimilarity, spatial_ndim)
    mean = mean_positions(dissimilarity, implementation.counted(scale, window), axes, window.cut_over)
    return mean.mean(-1), _weights_of_pixels(first, window)


def _weights_of_pixels(first: Scale, window: Window) -> Array:
    """What the windows around every pixel, cut off at the borders, weigh each pixel with in all."""
    image = first.images[0]
    weights: Array = np.ones((1,) * image.ndim, first.dtype)
    for i, axis in enumerate(spatial_axes(image, window.spatial_ndim)):
        side, begin = image.shape[axis], 0
        if first.sizes:
            pixel, size = places(image.shape, axis), first.sizes[i]
            begin = -first_line(window.cut_over, side) if i == 0 else 0
        else:  # constants
            pixel, size = np.expand_dims(np.arange(side), [k for k in range(image.ndim) if k != axis]), side
        centres = [pixel + offset for offset in range(-RADIUS, RADIUS + 1)]
        has_window = [((at >= begin) & (at < size)).astype(first.dtype) for at in centres]
        weights = weights * sum(tap * x for tap, x in zip(window.taps[i], has_window, strict=True))
    return weights
