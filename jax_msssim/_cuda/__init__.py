"""``"cuda"``: a kernel for NVIDIA GPUs, and the stencil where that does not serve.

The kernel (``scale.cu``) gives the means of one scale and its gradient images in one pass over the images. XLA launches
it (``_launch``), on any mesh (``_everywhere``). For maps, second derivatives, and derivatives by ``max_val`` there is
the stencil.
"""

import math

import jax

from jax_msssim._cuda._everywhere import like, with_kernel
from jax_msssim._scales import Pyramid, Scale
from jax_msssim._stencil import Stencil
from jax_msssim._stencil._platforms import Program
from jax_msssim._stencil._term_means import term_means
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window

# What launches the kernel is not documented. So a release of JAX is here once it was tried: on a GPU, where the numbers
# of tests/on_gpu are right (make gpu-check), or by compiling whole programs for one (make gpu-compile).
RELEASES = (
    "0.11.2",  # on a GPU
    "0.12.0.1",  # compiled
)

TERMS = [("contrast_structure",), ("similarity",), ("similarity", "product")]


class Cuda(Stencil):
    """The kernel, or an error that tells why it cannot be had."""

    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        raise ValueError('implementation="cuda" has no maps, only their means: leave implementation out.')

    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        if reason := refusal(pyramid, first):
            raise ValueError(f'implementation="cuda" {reason}; leave implementation out, which then takes another.')
        return term_means(Program(with_kernel, "cuda", like()), pyramid, first, constants)


def refusal(pyramid: Pyramid, first: Scale) -> str | None:
    """Why the kernel cannot serve; None: it can."""
    window, image = pyramid.window, first.images[0]
    if not has_device():
        return f"needs an NVIDIA GPU, and JAX sees none, only {jax.default_backend()}"
    if jax.__version__ not in RELEASES:
        return f"was tried with JAX {' and '.join(RELEASES)}, not with {jax.__version__}"
    if window.spatial_ndim != 2:
        return f"takes spatial_ndim=2, got {window.spatial_ndim}"
    taps, *others = set(window.taps)
    if others or len(taps) != 11 or min(taps[3:8]) < 0.02:
        return "takes equal windows of 11 taps, of which the middle five are at least 0.02, as by filter_size=11"
    if first.valid is not None:
        return "takes no mask (where)"
    if first.sizes:
        return "takes no sizes, nor images that are cut over devices"
    if first.dtype != "float32":
        return f"computes in float32, got {image.dtype} images"
    if not all(isinstance(size, int) and size > 0 for size in image.shape):
        return f"takes images of known shape that are not empty, got {image.shape}"
    if not 1 <= image.shape[-1] <= 4:
        return f"takes images of 1 to 4 channels, got {image.shape[-1]}"
    if math.prod(image.shape[-3:]) >= 2**31:
        return f"takes images of less than 2^31 samples, got {image.shape[-3:]}"
    if any(terms not in TERMS for terms in pyramid.terms):
        return "has no luminance by itself (ms_ssim_terms)"
    return None


def has_device() -> bool:
    """Whether JAX sees an NVIDIA GPU."""
    try:
        return bool(jax.devices("cuda"))
    except RuntimeError:
        return False
