"""SSIM and MS-SSIM as the papers print them: float64 NumPy, one offset of the window after another.

Slow, short, and without a line in common with the package. Wang et al. 2004, equations 6 and 13; Wang, Simoncelli
and Bovik 2003, equation 7.
"""

import itertools
import math

import numpy as np

WANG2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def gaussian(size=11, sigma=1.5):
    weights = [math.exp(-((i - (size - 1) / 2) ** 2) / (2 * sigma**2)) for i in range(size)]
    return [weight / sum(weights) for weight in weights]


def local_terms(a, b, *, window=None, max_val=1.0, k1=0.01, k2=0.03, padding="valid"):
    """Maps of ``l`` and ``cs`` of one pair ``[*spatial, C]``."""
    window = gaussian() if window is None else window
    if padding == "same":
        margin = [(len(window) // 2, len(window) // 2)] * (a.ndim - 1) + [(0, 0)]
        a, b = np.pad(a, margin), np.pad(b, margin)
    positions = [size - len(window) + 1 for size in a.shape[:-1]]

    def expectation(function):
        total = np.zeros((*positions, a.shape[-1]))
        for offsets in itertools.product(range(len(window)), repeat=len(positions)):
            here = tuple(slice(i, i + n) for i, n in zip(offsets, positions, strict=True))
            total += math.prod(window[i] for i in offsets) * function(a[here], b[here])
        return total

    mean_a, mean_b = expectation(lambda x, y: x), expectation(lambda x, y: y)
    variance_a = expectation(lambda x, y: (x - mean_a) ** 2)
    variance_b = expectation(lambda x, y: (y - mean_b) ** 2)
    covariance = expectation(lambda x, y: (x - mean_a) * (y - mean_b))
    c1, c2 = (k1 * max_val) ** 2, (k2 * max_val) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast_structure = (2 * covariance + c2) / (variance_a + variance_b + c2)
    return luminance, contrast_structure


def halve(image, downsample="edge"):
    """The 2x2 mean; an odd axis repeats its last line or drops it."""
    for axis in range(image.ndim - 1):
        if image.shape[axis] % 2 and downsample == "edge":
            image = np.concatenate([image, np.take(image, [-1], axis)], axis)
        pairs = image.shape[axis] // 2
        image = (np.take(image, range(0, 2 * pairs, 2), axis) + np.take(image, range(1, 2 * pairs, 2), axis)) / 2
    return image


def positive(x, negative="relu"):
    """What stands for a per-scale mean below its power."""
    if negative == "relu":
        return np.maximum(x, 0)
    if negative == "shift":
        return (1 + x) / 2
    return np.where(x >= 0.01, x, 0.01**2 / (0.02 - np.minimum(x, 0.01)))


def each_pair(function):
    """``function`` of one pair, applied to every pair of a batch."""

    def over_batch(a, b, *, spatial_ndim=2, **options):
        a, b = a.astype(np.float64), b.astype(np.float64)
        batch = a.shape[: -spatial_ndim - 1]
        values = [np.asarray(function(a[index], b[index], **options)) for index in np.ndindex(batch)]
        return np.stack(values).reshape(batch + values[0].shape)

    return over_batch


@each_pair
def ssim_map(a, b, **options):
    luminance, contrast_structure = local_terms(a, b, **options)
    return luminance * contrast_structure


@each_pair
def ssim(a, b, **options):
    luminance, contrast_structure = local_terms(a, b, **options)
    return np.mean(luminance * contrast_structure)


def terms_of_pair(a, b, scales=5, downsample="edge", **options):
    means = []
    for scale in range(scales):
        if scale > 0:
            a, b = halve(a, downsample), halve(b, downsample)
        luminance, contrast_structure = local_terms(a, b, **options)
        maps = (luminance, contrast_structure, luminance * contrast_structure)
        means.append([term.reshape(-1, term.shape[-1]).mean(0) for term in maps])
    return np.stack(means, axis=1)


@each_pair
def ms_ssim_terms(a, b, **options):
    """Means of ``l``, ``cs`` and ``l cs``: ``[..., 3, scales, C]``."""
    return terms_of_pair(a, b, **options)


@each_pair
def ms_ssim(a, b, *, power_factors=WANG2003, luminance="last", negative="relu", channel_mean="after", **options):
    _, contrast_structure, similarity = terms_of_pair(a, b, scales=len(power_factors), **options)
    means = similarity if luminance == "all" else np.concatenate([contrast_structure[:-1], similarity[-1:]])
    if channel_mean == "before":
        means = means.mean(-1, keepdims=True)
    powers = [positive(mean, negative) ** weight for mean, weight in zip(means, power_factors, strict=True)]
    return np.prod(powers, axis=0).mean()
