"""The default: means by a kernel on a GPU, by matrices on a TPU, and all else by shifted slices.

A TPU multiplies matrices a hundred times as fast as it does all else. Which platform a program is for is known when it
is lowered, so the choice is made there, inside the operation that gives the means of all scales.
"""

import math

import jax
import jax.numpy as jnp

from jax_msssim._cuda import like, refusal, with_kernel
from jax_msssim._linear import Matmul
from jax_msssim._means import spatial_axes
from jax_msssim._scales import Pyramid, Scale
from jax_msssim._shards import shards
from jax_msssim._stencil import Stencil
from jax_msssim._stencil._blocks import differentiated
from jax_msssim._stencil._platforms import Program
from jax_msssim._stencil._term_means import Static, all_scales, term_means
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window

MATMUL = Matmul()


class Default(Stencil):
    """On each platform the means that are the fastest there."""

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        program = Program(_without_kernel) if refusal(pyramid, first) else Program(_with_kernel, None, like())
        return term_means(program, pyramid, first, constants)


def _with_kernel(platform: str, static: Static, first: Scale, constants: Constants) -> list[jax.Array]:
    return (with_kernel if platform == "cuda" else _without_kernel)(platform, static, first, constants)


def _without_kernel(platform: str, static: Static, first: Scale, constants: Constants) -> list[jax.Array]:
    # Not of a signal, which may have thousands of tiles: each is an operation to compile.
    if platform == "tpu" and static[0].window.spatial_ndim > 1:
        return _by_matrices(static, first, constants)
    return all_scales(platform, static, first, constants)


def _by_matrices(static: Static, first: Scale, constants: Constants) -> list[jax.Array]:
    """What :func:`all_scales` returns. JAX differentiates the means of each scale."""
    (pyramid, wrt), results = static, []
    window = pyramid.window
    centres = tuple(MATMUL.centre(x.astype(first.dtype), first.counts, window) for x in first.images)
    # One for each channel, as their derivatives.
    constants = Constants(*(jnp.broadcast_to(c, centres[0].shape) for c in constants))
    scales = MATMUL.scales(pyramid, first._replace(centres=centres))
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
    pixels = math.prod(s.shape[axis] for axis in spatial_axes(s, window.spatial_ndim)) * shards(window.cut_over)
    c1, c2 = (x.reshape(value.shape) for x in numbers)
    return {"a": pixels * (s + d), "b": pixels * (s - d), "c1": c1, "c2": c2}
