"""MS-SSIM without a pyramid (Zhao et al. 2017): windows of five widths at full resolution, a value at every pixel.

1 - l_M(p) prod_j cs_j(p),    sigma_j = 0.5, 1, 2, 4, 8,    M = 5, zeros around the image
"""

import jax
import jax.numpy as jnp
import numpy as np

from jax_msssim._means import mean_positions, spatial_axes
from jax_msssim._options import Images, Options
from jax_msssim._scales import padded
from jax_msssim._ssim import IMPLEMENTATIONS, first_scale
from jax_msssim._windows import gaussian_window

SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)
RADIUS = 16  # of the widest window: two sigmas, as the paper and its code cut it
SINGLE_RESOLUTION_OPTIONS = frozenset(
    {"max_val", "k1", "k2", "where", "min_coverage", "spatial_ndim", "implementation"}
)


def single_resolution(options: Options, images: Images) -> tuple[jax.Array, np.ndarray]:
    """The mean dissimilarity per image, and what the widest window weighs each pixel with, ``[*spatial, 1]``."""
    implementation, spatial_ndim = IMPLEMENTATIONS[options.implementation], options.window.spatial_ndim
    first, constants = first_scale(options, images)
    dissimilarity = jnp.zeros((), options.dtype)
    taps, window, scale = (), options.window, first
    for sigma in SIGMAS:
        radius = min(RADIUS, round(8 * sigma))  # beyond 8 sigmas a tap is below 1e-14
        taps = tuple(gaussian_window(2 * radius + 1, sigma).tolist())
        window = window._replace(taps=taps)
        scale = padded(first, "same", window)
        term = "similarity" if sigma == SIGMAS[-1] else "contrast_structure"
        one_more = implementation.term_map(term, scale, constants, window)
        dissimilarity = dissimilarity + one_more - dissimilarity * one_more  # 1 - (1 - x)(1 - y)
    axes = spatial_axes(dissimilarity, spatial_ndim)
    mean = mean_positions(dissimilarity, implementation.counted(scale, window), axes)
    # What the widest window around every pixel, cut off at the borders, weighs each pixel with in all.
    weights = np.ones((1,) * (spatial_ndim + 1))
    for axis, size in enumerate(first.images[0].shape[-spatial_ndim - 1 : -1]):
        inside = np.convolve(np.ones(size), taps)[RADIUS : RADIUS + size]
        weights = weights * inside.reshape([-1 if i == axis else 1 for i in range(spatial_ndim + 1)])
    return mean.mean(-1), weights.astype(options.dtype)
