"""``"stencil"``: local statistics by shifted slices, the fast and accurate implementation.

Local moments are sums of slices of the image, one for each tap, axis after axis (``_moments``). On a CPU a scale is
worked through in blocks of rows (``_blocks``). The means of all scales are one operation with a derivative of its own
(``_term_means``), which is traced for the platform that it is lowered for (``_platforms``).
"""

import jax
from jax import lax

from jax_msssim._implementation import Implementation
from jax_msssim._scales import Pyramid, Scale
from jax_msssim._shards import of_first
from jax_msssim._stencil._blocks import map_of_term
from jax_msssim._stencil._layout import Layout, fold
from jax_msssim._stencil._moments import coverage
from jax_msssim._stencil._platforms import Program
from jax_msssim._stencil._term_means import all_scales, term_means
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window


class Stencil(Implementation):
    """Local statistics by shifted slices."""

    def centre(self, image: jax.Array, counts: jax.Array | None, window: Window) -> jax.Array:
        # One pixel of the first channel. A flat image is then nothing but its centre, without a mean's rounding. Where
        # some do not count, the first: it lies inside of any size, and a masked one holds a mean.
        sides = image.shape[-window.spatial_ndim - 1 : -1]
        pixel = [n // 2 if counts is None else 0 for n in sides]
        pixel = image[(..., *(slice(i, i + 1) for i in pixel), slice(0, 1))]
        return of_first(window.cut_over, lax.stop_gradient(pixel))

    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        layout = Layout(window, scale.images[0].shape[-1])
        return layout.unfold(map_of_term(layout, term, *jax.tree.map(fold, (scale, constants))))

    def covered(self, scale: Scale, window: Window) -> jax.Array | None:
        if scale.weights is None:
            return None
        layout = Layout(window, scale.images[0].shape[-1])
        return layout.unfold(coverage(layout, lax.expand_dims(fold(scale.weights), (0,)))[1])

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        return term_means(Program(all_scales), pyramid, first, constants)
