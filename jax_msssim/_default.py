"""The default: ``"stencil"``, and in programs for a TPU the means of ``"matmul"``.

A TPU multiplies matrices a hundred times as fast as it does all else. Which platform a program is for is known when it
is lowered, so the choice is made there, inside the operation that gives the means of all scales.
"""

import math

import jax
import jax.numpy as jnp

from jax_msssim._linear import Matmul
from jax_msssim._means import spatial_axes
from jax_msssim._scales import Pyramid, Scale
from jax_msssim._stencil import Stencil
from jax_msssim._stencil._blocks import differentiated
from jax_msssim._stencil._term_means import Operands, all_scales
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window

MATMUL = Matmul()


def _all_scales(platform: str, static: tuple[Pyramid, tuple[str, ...]], operands: Operands):
    # Not of a signal, which may have thousands of tiles: each is an operation to compile.
    if platform == "tpu" and static[0].window.spatial_ndim > 1:
        return _by_matrices(static, operands)
    return all_scales(platform, static, operands)


def _by_matrices(static: tuple[Pyramid, tuple[str, ...]], operands: Operands):
    """What :func:`all_scales` returns. JAX differentiates the means of each scale."""
    (pyramid, wrt), results = static, []
    window, images = pyramid.window, (operands.a, operands.b)
    centres = tuple(MATMUL.centre(x, operands.valid, window.spatial_ndim) for x in images)
    # One for each channel, as their derivatives.
    constants = Constants(*(jnp.broadcast_to(c, centres[0].shape) for c in (operands.c1, operands.c2)))
    scales = MATMUL.scales(pyramid, Scale(images, centres, operands.valid))
    for terms, scale in zip(pyramid.terms, scales, strict=True):
        results += MATMUL.means(terms, scale, constants, window)
        by_term = {term: _gradients(term, scale, constants, window) for term, _ in differentiated(terms, wrt)}
        results += [by_term[term][name] for term, name in differentiated(terms, wrt)]
    return results


def _gradients(term: Term, scale: Scale, constants: Constants, window: Window) -> dict[str, jax.Array]:
    """The derivatives of a mean by the images of a scale, times the number of pixels, and by the constants."""

    def mean(images, constants):
        return MATMUL.means((term,), scale._replace(images=images), constants, window)[0]

    value, pullback = jax.vjp(mean, (*scale.images,), constants)
    (s, d), numbers = pullback(jnp.ones_like(value))
    pixels = math.prod(s.shape[axis] for axis in spatial_axes(s, window.spatial_ndim))
    c1, c2 = (x.reshape(value.shape) for x in numbers)
    return {"a": pixels * (s + d), "b": pixels * (s - d), "c1": c1, "c2": c2}


class Default(Stencil):
    """Means by matrices on a TPU, all else by shifted slices."""

    all_scales = staticmethod(_all_scales)
