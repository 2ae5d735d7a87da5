r"""The terms of SSIM at one position, from the local moments of the sum and the difference of two images.

With ``s = a + b`` and ``d = a - b``, and ``M``, ``V`` the local mean and variance,

    l  = (2 Ma Mb + C1) / (Ma^2 + Mb^2 + C1) = 1 - 2 Md^2 / (Ms^2 + Md^2 + 2 C1)
    cs = (2 Cab   + C2) / (Va   + Vb   + C2) = 1 - 2 Vd   / (Vs   + Vd   + 2 C2)

which is the papers' definition (Wang et al. 2004, equations 6 and 13) with ``Vs - Vd = 4 Cab`` and
``Vs + Vd = 2 (Va + Vb)``. The right-hand form says more to a computer: a covariance, which is a
difference of large numbers, is gone; what is left is a ratio of non-negative numbers that is exactly 0
for identical images and keeps its relative accuracy as they approach each other. So the library carries
the *dissimilarities* ``1 - l``, ``1 - cs`` and ``1 - l cs`` and subtracts from 1 once, at the very end.

Where next to nothing is left of 1, as for black against white, that subtraction has few digits, and a power of 0.13
makes them felt (1e-5 of MS-SSIM). For that case there is the ``product`` of ``l`` and ``cs`` itself.
"""

from typing import NamedTuple

import jax

TERMS = ("luminance", "contrast_structure", "similarity")


class Moments(NamedTuple):
    """Local means and variances of the centred sum and the centred difference of two images."""

    mean_sum: jax.Array
    variance_sum: jax.Array
    mean_difference: jax.Array
    variance_difference: jax.Array


class Brightness(NamedTuple):
    """The means that centring took from the sum, from the difference and from each image; luminance adds them back."""

    sum: jax.Array
    difference: jax.Array
    a: jax.Array
    b: jax.Array


def value_of(term: str, moments: Moments, brightness: Brightness, c1: jax.Array, c2: jax.Array) -> jax.Array:
    """``1 - l``, ``1 - cs`` or ``1 - l cs`` at every position, by the term's name; ``"product"`` is ``l cs``."""
    if term == "product":
        return product(moments, brightness, c1, c2)
    if term == "luminance":
        mean_sum = moments.mean_sum + brightness.sum
        mean_difference = moments.mean_difference + brightness.difference
        return _share(mean_sum * mean_sum, mean_difference * mean_difference, 2 * c1)
    structure = _share(moments.variance_sum, moments.variance_difference, 2 * c2)
    if term == "contrast_structure":
        return structure
    luminance = value_of("luminance", moments, brightness, c1, c2)
    return structure + luminance * (1 - structure)


def product(moments: Moments, brightness: Brightness, c1: jax.Array, c2: jax.Array) -> jax.Array:
    """``l cs`` with digits where it is small: a dark mean is not the difference of two bright ones."""
    mean_a = (moments.mean_sum + moments.mean_difference) / 2 + brightness.a
    mean_b = (moments.mean_sum - moments.mean_difference) / 2 + brightness.b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a * mean_a + mean_b * mean_b + c1)
    covariance, variance = (
        moments.variance_sum - moments.variance_difference,
        moments.variance_sum + moments.variance_difference,
    )
    return luminance * (covariance + 2 * c2) / (variance + 2 * c2)


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
