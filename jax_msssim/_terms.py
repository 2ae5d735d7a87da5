r"""The terms of SSIM at one position, from local means and variances.

With ``s = a + b`` and ``d = a - b``, ``M`` the local means and ``V`` the local variances,

    l  = (2 Ma Mb + C1) / (Ma^2 + Mb^2 + C1) = 1 - 2 Md^2 / (Ms^2 + Md^2 + 2 C1)
    cs = (2 Cab   + C2) / (Va   + Vb   + C2) = 1 - 2 Vd   / (Vs   + Vd   + 2 C2)

which is the papers' definition (Wang et al. 2004, equations 6 and 13) with ``Vs - Vd = 4 Cab`` and ``Vs + Vd = 2 (Va +
Vb)``. The right-hand form says more to a computer: a covariance, which is a difference of large numbers, is gone; what
is left is a ratio of non-negative numbers that is exactly 0 for identical images and keeps its relative accuracy as
they approach each other. So the library carries the *dissimilarities* ``1 - l``, ``1 - cs`` and ``1 - l cs`` and
subtracts from 1 once, at the very end.

Where next to nothing is left of 1, as for black against white, that subtraction has few digits, and a power of 0.13
makes them felt (1e-5 of MS-SSIM). For that case there is the ``product`` of ``l`` and ``cs`` itself.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Term = Literal["luminance", "contrast_structure", "similarity", "product"]
TERMS: tuple[Term, ...] = ("luminance", "contrast_structure", "similarity")


class Constants(NamedTuple):
    """``C1`` and ``C2``, one for each image."""

    c1: jax.Array
    c2: jax.Array


class Means(NamedTuple):
    """Local means of two images, and of their sum and their difference."""

    a: jax.Array
    b: jax.Array
    sum: jax.Array
    difference: jax.Array

    @classmethod
    def of(cls, s: jax.Array, d: jax.Array, centre_a: jax.Array, centre_b: jax.Array) -> "Means":
        """From those of the sum and the difference, less those of the centres."""
        return cls(centre_a + (s + d) / 2, centre_b + (s - d) / 2, (centre_a + centre_b) + s, (centre_a - centre_b) + d)


class Variances(NamedTuple):
    """Local variances of the sum and of the difference of two images."""

    sum: jax.Array
    difference: jax.Array


def value_of(term: Term | tuple[Term, str], means: Means, variances: Variances, constants: Constants) -> jax.Array:
    """``1 - l``, ``1 - cs`` or ``1 - l cs`` at every position, by the term's name; ``"product"`` is ``l cs``.

    With the name of a constant beside that of the term it is the derivative by the constant.
    """
    if isinstance(term, tuple):
        term, name = term
        value = lambda x: value_of(term, means, variances, constants._replace(**{name: x}))  # noqa: E731
        constant = getattr(constants, name)
        return jax.jvp(value, (constant,), (jnp.ones_like(constant),))[1]
    if term != "product":
        return _ratio(*fraction_of(term, means, variances, constants))
    c1, c2 = constants
    l = _ratio(2 * means.a * means.b + c1, means.a**2 + means.b**2 + c1)  # noqa: E741
    return l * _ratio(_common(variances, c2), _contrast(variances, c2))


def fraction_of(term: Term, means: Means, variances: Variances, constants: Constants) -> tuple[jax.Array, jax.Array]:
    """Numerator and denominator of :func:`value_of`, for all terms but the product."""
    c1, c2 = constants
    contrast = _contrast(variances, c2)
    if term == "contrast_structure":
        return 2 * variances.difference, contrast
    luminance = 2 * means.difference**2, means.sum**2 + means.difference**2 + 2 * c1
    if term == "luminance":
        return luminance
    # (1 - cs) + cs (1 - l), in one division
    return 2 * variances.difference + _common(variances, c2) * _ratio(*luminance), contrast


def _contrast(variances: Variances, c2):
    return variances.sum + variances.difference + 2 * c2  # 2 (Va + Vb + C2)


def _common(variances: Variances, c2):
    return variances.sum - variances.difference + 2 * c2  # 2 (2 Cab + C2)


@jax.custom_jvp
def _ratio(part: jax.Array, whole: jax.Array) -> jax.Array:
    return part * (1 / whole)


@_ratio.defjvp
def _ratio_jvp(primals, tangents):
    # The textbook derivative divides by the square of the denominator, which overflows float32 when
    # max_val is tiny and underflows when pixels are huge; dividing the value once more does neither. By the
    # reciprocal, since a compiler computes a division once and keeps it.
    (part, whole), (d_part, d_whole) = primals, tangents
    reciprocal = 1 / whole
    value = part * reciprocal
    return value, (d_part - value * d_whole) * reciprocal
