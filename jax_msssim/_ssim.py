"""SSIM: the mean over all windows of luminance times contrast-structure."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Unpack

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_msssim._cuda import Cuda
from jax_msssim._default import Default
from jax_msssim._implementation import Implementation
from jax_msssim._linear import Conv, Matmul
from jax_msssim._means import channel_means
from jax_msssim._options import Images, ImplementationName, Options, SSIMOptions, evaluate, prepare
from jax_msssim._scales import Pyramid, Scale, inside, padded, sharded_alike
from jax_msssim._shards import refuse_shards
from jax_msssim._signatures import takes
from jax_msssim._stencil import Stencil
from jax_msssim._terms import Constants

IMPLEMENTATIONS: Mapping[ImplementationName | None, Implementation] = {
    None: Default(),
    "stencil": Stencil(),
    "conv": Conv(),
    "matmul": Matmul(),
    "cuda": Cuda(),
}


@takes(prepare)
def ssim(a: ArrayLike, b: ArrayLike, **options: Unpack[SSIMOptions]) -> jax.Array:
    r"""Structural similarity of pairs of images.

    The mean over positions and channels of

    .. math::
      \mathrm{SSIM} = l \cdot cs, \qquad
      l = \frac{2 \mu_a \mu_b + C_1}{\mu_a^2 + \mu_b^2 + C_1}, \qquad
      cs = \frac{2 \sigma_{ab} + C_2}{\sigma_a^2 + \sigma_b^2 + C_2}

    with Gaussian-weighted local means, variances and covariance (of the population), :math:`C_1 = (k_1 L)^2`,
    :math:`C_2 = (k_2 L)^2` and :math:`L` = ``max_val``. It is 1 for identical images and never above, symmetric in
    ``a`` and ``b``, and differentiable in both, also where they are flat or equal.

    Args:
      a, b: images of one shape ``[..., H, W, C]``: channels last, any leading batch axes (``[..., T, C]`` and ``[...,
        D, H, W, C]`` with ``spatial_ndim`` 1 and 3). Grey images have a channel axis of size 1. Any floating or integer
        type; pixels may lie outside ``[0, max_val]``.
      max_val: the largest value a pixel can have, :math:`L`. By default 1.0 for floating images, 255 for uint8, 65535
        for uint16; other types must say. A number, or an array over the batch, which may be traced, mapped and
        differentiated.
      filter_size: taps of the Gaussian window along each axis. If even, it is centred between two pixels.
      filter_sigma: its standard deviation, in pixels.
      window: taps of another window, used along each axis, in place of ``filter_size`` and ``filter_sigma``: not
        negative, summing to 1. Or one such sequence for each spatial axis, which may differ in length.
      k1, k2: the constants of the definition, above 0; plain Python numbers.
      padding: ``"valid"`` uses the positions where the window lies inside the image, as the papers do and most
        programs: position ``i`` is the window that begins at pixel ``i``. The others use every pixel: ``"same"`` with
        zeros around the image (fused-ssim), ``"reflect"`` with the image mirrored at its outermost pixels
        (torchmetrics, kornia, OpenCV), ``"symmetric"`` with those pixels repeated (Julia), ``"edge"`` with nothing but
        those (ImageMagick). A window of even length ``n`` then has ``n // 2`` pixels before its own and one less after
        it, as SciPy's filters have.
      covariance: ``"population"``, as the papers, or ``"sample"``, ``n / (n - 1)`` times as large for the ``n`` pixels
        of a window (scikit-image's default).
      where: boolean mask, True for the pixels that count; of the images' rank, each axis of their length or 1. The
        others take no part in any statistic, whatever they hold, NaN included, and have gradient 0. Windows that hold
        some of each use the valid ones, renormalised.
      min_coverage: a position counts if at least this share of its window's weight is valid; 1.0 uses the windows
        without a masked pixel.
      sizes: the true sides of each image in a batch of images that were padded to one shape, integers ``[...,
        spatial_ndim]``, which may be traced. Each image has the value that it has alone, whatever lies beyond it, NaN
        included, where gradients are 0 and maps are NaN. :func:`pad_images` makes such batches.
      spatial_ndim: number of spatial axes: 1, 2 or 3.
      implementation: ``"stencil"`` (moments from shifted slices: the fast and accurate one), ``"conv"``
        (``lax.conv_general_dilated``), ``"matmul"`` (banded matrices, what a TPU is made for) or ``"cuda"`` (a kernel
        for NVIDIA GPUs, or an error that tells why it cannot serve). By default the stencil, but in programs lowered
        for a GPU means by the kernel where it serves, and in those for a TPU means over images and volumes by matrices.
        Exported programs have no kernel.

    Returns:
      One value per image, shape ``[...]``: float64 if an image is, else float32. NaN, with gradient 0, for an image
      with a channel in which no position counts, or with traced ``sizes`` that are too small or larger than the array.

    Raises:
      TypeError: an image is not an array of real numbers, or a Python argument is traced.
      ValueError: shapes differ, the channel axis is missing, the window does not fit into the image, ``sizes`` are
        not within the array, ``max_val`` is needed, or an option is unknown.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.linspace(0, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
      >>> ssim(a, a)
      Array([1., 1.], dtype=float32)
      >>> [f"{value:.3f}" for value in ssim(a, 0.9 * a)]
      ['0.992', '0.992']

    References:
      Wang et al., `Image quality assessment: from error visibility to structural similarity
      <https://doi.org/10.1109/TIP.2003.819861>`_, 2004, equation 13.
    """
    return evaluate(similarity, *prepare(("a", "b"), a, b, **options))


@takes(prepare)
def ssim_map(a: ArrayLike, b: ArrayLike, **options: Unpack[SSIMOptions]) -> jax.Array:
    """Structural similarity at every position, the map whose mean is :func:`ssim`.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ssim`.
      **options: the keyword arguments of :func:`ssim`. With ``padding="valid"`` the map is ``filter_size - 1`` smaller
        than the image along each axis; with the others it is as large.

    Returns:
      The map, ``[..., H', W', C]``, one value per position and channel, in float32 or float64 as :func:`ssim`. With
      ``"valid"`` padding, position ``i`` is the window that begins at pixel ``i``.

    Raises:
      TypeError, ValueError: as for :func:`ssim`.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.zeros((32, 32, 1)).at[16, 16].set(1.0)
      >>> similarity = ssim_map(a, jnp.zeros_like(a))
      >>> similarity.shape
      (22, 22, 1)
      >>> f"{similarity[11, 11, 0]:.4f}, {similarity[0, 0, 0]:.4f}"  # at the odd pixel, and out of its reach
      '0.0003, 1.0000'

    References:
      Wang et al., `Image quality assessment: from error visibility to structural similarity
      <https://doi.org/10.1109/TIP.2003.819861>`_, 2004, section III-C.
    """
    static, images = prepare(("a", "b"), a, b, **options)
    refuse_shards("a map", ("a", "b"), images.a, images.b, static.window.spatial_ndim)
    return evaluate(similarity_map, static, images)


def similarity(options: Options, images: Images) -> jax.Array:
    """SSIM per image."""
    return 1 - dissimilarity(options, images)


def dissimilarity(options: Options, images: Images) -> jax.Array:
    """``1 - SSIM`` per image, without the subtraction: accurate however close the images are."""
    with jax.named_scope("jax_msssim.ssim"):
        implementation = IMPLEMENTATIONS[options.implementation]
        first, constants = first_scale(options, images)
        pyramid = Pyramid((("similarity",),), options.window, options.padding)
        ((mean,),) = implementation.term_means(pyramid, first, constants)
        return mean.mean(-1)


def similarity_map(options: Options, images: Images) -> jax.Array:
    """SSIM at every position, NaN where it does not count."""
    with jax.named_scope("jax_msssim.ssim_map"):
        implementation, window = IMPLEMENTATIONS[options.implementation], options.window
        first, constants = first_scale(options, images)
        scale = padded(first, options.padding[0], window)
        similarity = 1 - implementation.term_map("similarity", scale, constants, window)
        *sides, channels = scale.images[0].shape[-window.spatial_ndim - 1 :]
        chex.assert_shape(similarity, (*images.batch, *map(operator.sub, sides, window.halo), channels))
        counted = implementation.counted(scale, window)
        return similarity if counted is None else jnp.where(counted, similarity, jnp.nan)


# Float32 holds each. They are converted where they are read, block by block: converting an image first takes four times
# its memory and as long as the rest.
SMALL_INTEGERS = ("uint8", "int8", "uint16", "int16")


def first_scale(options: Options, images: Images) -> tuple[Scale, Constants]:
    """The images, masked pixels filled with the mean of the others; C1 and C2."""
    window, where = options.window, images.where
    kept = SMALL_INTEGERS if where is None else ()
    a, b = (x if x.dtype in kept else x.astype(options.dtype) for x in map(jnp.asarray, (images.a, images.b)))
    masks = () if where is None else (jnp.broadcast_to(jnp.asarray(where), a.shape),)
    a, b, *others = sharded_alike(a, b, *masks, *images.sides(window))
    where, sizes = (others[0] if masks else None), tuple(others[len(masks) :])
    counts = inside(sizes, a.shape)
    if where is not None:
        counts = where = where if counts is None else jnp.logical_and(where, counts)
        a, b = (jnp.where(where, x, channel_means(x, where, window.spatial_ndim, window.cut_over)) for x in (a, b))
    centre = IMPLEMENTATIONS[options.implementation].centre
    centres = tuple(centre(x.astype(options.dtype), counts, window) for x in (a, b))
    max_val = images.max_val.reshape(*images.max_val.shape, *(1,) * (window.spatial_ndim + 1))
    # The constants keep 0/0 away, so they must not underflow themselves.
    c1, c2 = (jnp.maximum((k * max_val) ** 2, jnp.finfo(options.dtype).tiny) for k in (options.k1, options.k2))
    return Scale((a, b), centres, where, sizes), Constants(c1, c2)
