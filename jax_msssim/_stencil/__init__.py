"""``"stencil"``: local statistics by shifted slices, the fast and accurate implementation.

Local moments are sums of slices of the image, one for each tap, axis after axis (``_moments``). On a CPU a scale is
worked through in blocks of rows (``_blocks``). The means of all scales are one operation with a derivative of its own
(``_term_means``), which is traced for the platform that it is lowered for (``_platforms``).
"""

import jax
from jax import lax

from jax_msssim._implementation import Implementation
from jax_msssim._scales import Pyramid, Scale
from jax_msssim._stencil._blocks import folded, map_of_term
from jax_msssim._stencil._layout import Layout, fold
from jax_msssim._stencil._moments import coverage
from jax_msssim._stencil._term_means import Operands, all_scales, term_means
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window


class Stencil(Implementation):
    """Local statistics by shifted slices."""

    all_scales = staticmethod(all_scales)  # that gives the means, once the platform is known

    def centre(self, image: jax.Array, where: jax.Array | None, spatial_ndim: int) -> jax.Array:
        # The middle pixel of the first channel. A flat image is then nothing but its centre, without a mean's rounding.
        del where  # masked pixels hold a mean
        for axis in range(image.ndim - spatial_ndim - 1, image.ndim):
            middle = image.shape[axis] // 2 if axis < image.ndim - 1 else 0
            image = lax.slice_in_dim(image, middle, middle + 1, axis=axis)
        return lax.stop_gradient(image)

    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        layout = Layout(window, scale.images[0].shape[-1])
        return layout.unfold(map_of_term(layout, term, *folded(scale, constants)))

    def counted(self, scale: Scale, window: Window) -> jax.Array | None:
        if scale.weights is None:
            return None
        layout = Layout(window, scale.images[0].shape[-1])
        return layout.unfold(coverage(layout, lax.expand_dims(fold(scale.weights), (0,)))[1])

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        a, b = first.images
        return term_means(pyramid, self.all_scales, Operands(a, b, *constants, first.centres, first.valid))
