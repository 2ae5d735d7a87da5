r"""The terms of SSIM at one position, from the local moments of the sum and the difference of two images.

With ``s = a + b`` and ``d = a - b``, and ``M``, ``V`` the local mean and variance,

    l  = (2 Ma Mb + C1) / (Ma^2 + Mb^2 + C1) = 1 - 2 Md^2 / (Ms^2 + Md^2 + 2 C1)
    cs = (2 Cab   + C2) / (Va   + Vb   + C2) = 1 - 2 Vd   / (Vs   + Vd   + 2 C2)

which is the papers' definition (Wang et al. 2004, equations 6 and 13) with ``Vs - Vd = 4 Cab`` and
``Vs + Vd = 2 (Va + Vb)``. The right-hand form says more to a computer: a covariance, which is a
difference of large numbers, is gone; what is left is a ratio of non-negative numbers that is exactly 0
for identical images and keeps its relative accuracy as they approach each other. So the library carries
the *dissimilarities* ``1 - l``, ``1 - cs`` and ``1 - l cs`` and subtracts from 1 once, at the very end.
"""

from typing import NamedTuple

import jax

TERMS = ("luminance", "contrast_structure", "similarity")


class Moments(NamedTuple):
    """Local means and variances of the sum and of the difference of two images."""

    mean_sum: jax.Array
    variance_sum: jax.Array
    mean_difference: jax.Array
    variance_difference: jax.Array


def dissimilarity(term: str, moments: Moments, c1: jax.Array, c2: jax.Array) -> jax.Array:
    """``1 - l``, ``1 - cs`` or ``1 - l cs`` at every position."""
    mean_sum, variance_sum, mean_difference, variance_difference = moments
    if term == "luminance":
        return _share(mean_sum * mean_sum, mean_difference * mean_difference, 2 * c1)
    structure = _share(variance_sum, variance_difference, 2 * c2)
    if term == "contrast_structure":
        return structure
    luminance = dissimilarity("luminance", moments, c1, c2)
    return structure + luminance * (1 - structure)


@jax.custom_jvp
def _share(s: jax.Array, d: jax.Array, c: jax.Array) -> jax.Array:
    return 2 * d / (s + d + c)


@_share.defjvp
def _share_jvp(primals, tangents):
    # The textbook derivative divides by the square of the denominator, which overflows float32 when
    # max_val is tiny and underflows when pixels are huge; dividing the value once more does neither.
    s, d, c = primals
    ds, dd, dc = tangents
    total = s + d + c
    value = 2 * d / total
    return value, ((2 - value) * dd - value * (ds + dc)) / total
