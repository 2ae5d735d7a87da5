"""SSIM: the mean over all windows of luminance times contrast-structure."""

import functools
from typing import Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_msssim import _checks, _conv, _pyramid, _stencil
from jax_msssim._checks import Images, Options, SSIMOptions

LOCAL = {"stencil": _stencil, "conv": _conv}


def ssim(
    a: ArrayLike,
    b: ArrayLike,
    *,
    max_val: ArrayLike | None = None,
    filter_size: int = 11,
    filter_sigma: float = 1.5,
    window: ArrayLike | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str = "valid",
    covariance: str = "population",
    where: ArrayLike | None = None,
    min_coverage: float = 1.0,
    spatial_ndim: int = 2,
    implementation: str | None = None,
) -> jax.Array:
    r"""Structural similarity of pairs of images.

    The mean over positions and channels of

    .. math::
      \mathrm{SSIM} = l \cdot cs, \qquad
      l = \frac{2 \mu_a \mu_b + C_1}{\mu_a^2 + \mu_b^2 + C_1}, \qquad
      cs = \frac{2 \sigma_{ab} + C_2}{\sigma_a^2 + \sigma_b^2 + C_2}

    with Gaussian-weighted local means, variances and covariance (of the population),
    :math:`C_1 = (k_1 L)^2`, :math:`C_2 = (k_2 L)^2` and :math:`L` = ``max_val``. It is 1 for
    identical images and never above, symmetric in ``a`` and ``b``, and differentiable in both,
    also where they are flat or equal.

    Args:
      a, b: images of one shape ``[..., H, W, C]``: channels last, any leading batch axes
        (``[..., T, C]`` and ``[..., D, H, W, C]`` with ``spatial_ndim`` 1 and 3). Grey images have a
        channel axis of size 1. Any floating or integer type; pixels may lie outside ``[0, max_val]``.
      max_val: the largest value a pixel can have, :math:`L`. By default 1.0 for floating images, 255
        for uint8, 65535 for uint16; other types must say. A number, or an array over the batch, which
        may be traced, mapped and differentiated.
      filter_size: taps of the Gaussian window along each axis, odd.
      filter_sigma: its standard deviation, in pixels.
      window: taps of another window, used along each axis, in place of ``filter_size`` and
        ``filter_sigma``: an odd number of them, not negative, summing to 1.
      k1, k2: the constants of the definition, above 0; plain Python numbers.
      padding: ``"valid"`` uses the positions where the window lies inside the image, as the papers do and
        most programs. The others use every pixel: ``"same"`` with zeros around the image (fused-ssim),
        ``"reflect"`` with the image mirrored at its outermost pixels (torchmetrics, kornia),
        ``"symmetric"`` with those pixels repeated.
      covariance: ``"population"``, as the papers, or ``"sample"``, ``n / (n - 1)`` times as large for the
        ``n`` pixels of a window (scikit-image's default).
      where: boolean mask, True for the pixels that count; of the images' rank, each axis of their length or
        1. The others take no part in any statistic, whatever they hold, NaN included, and have gradient 0.
        Windows that hold some of each use the valid ones, renormalised.
      min_coverage: a position counts if at least this share of its window's weight is valid; 1.0 uses
        the windows without a masked pixel.
      spatial_ndim: number of spatial axes: 1, 2 or 3.
      implementation: ``"stencil"`` (moments from shifted slices: the fast and accurate one) or
        ``"conv"`` (``lax.conv_general_dilated``). By default the one measured to be best.

    Returns:
      One value per image, shape ``[...]``: float64 if an image is, else float32. NaN, with gradient 0, for an
      image with a channel in which no position counts.

    Raises:
      TypeError: an image is not an array of real numbers, or a Python argument is traced.
      ValueError: shapes differ, the channel axis is missing, the window does not fit into the image,
        ``max_val`` is needed, or an option is unknown.

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
    images, options = _checks.prepare(
        a,
        b,
        max_val=max_val,
        filter_size=filter_size,
        filter_sigma=filter_sigma,
        window=window,
        k1=k1,
        k2=k2,
        padding=padding,
        covariance=covariance,
        where=where,
        min_coverage=min_coverage,
        spatial_ndim=spatial_ndim,
        implementation=implementation,
    )
    return _ssim(images, options)


def ssim_map(a: ArrayLike, b: ArrayLike, **options: Unpack[SSIMOptions]) -> jax.Array:
    """Structural similarity at every position, the map whose mean is :func:`ssim`.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ssim`.
      **options: the keyword arguments of :func:`ssim`. With ``padding="valid"`` the map is
        ``filter_size - 1`` smaller than the image along each axis; with ``"same"`` it is as large.

    Returns:
      The map, ``[..., H', W', C]``, one value per position and channel, in float32 or float64 as
      :func:`ssim`. With ``"valid"`` padding, position ``i`` is the window that begins at pixel ``i``.

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
    return _map(*_checks.prepare(a, b, **options))


@functools.partial(jax.jit, static_argnames="options")
def _ssim(images: Images, options: Options) -> jax.Array:
    return 1 - mean_dissimilarity(images, options)


def mean_dissimilarity(images: Images, options: Options) -> jax.Array:
    """``1 - SSIM`` per image, without the subtraction: accurate however close the images are."""
    with jax.named_scope("jax_msssim.ssim"):
        scale, c1, c2 = first_scale(images, options)
        local = LOCAL[options.implementation]
        ((means,),) = local.term_means([("similarity",)], scale, c1, c2, options.window, options.padding)
        return means.mean(-1)


@functools.partial(jax.jit, static_argnames="options")
def _map(images: Images, options: Options) -> jax.Array:
    with jax.named_scope("jax_msssim.ssim_map"):
        scale, c1, c2 = first_scale(images, options)
        local = LOCAL[options.implementation]
        scale = _pyramid.padded(scale, options.padding[0], options.window)
        similarity: jax.Array = 1 - local.term_map("similarity", scale, c1, c2, options.window)
        counted: jax.Array | None = local.counted(scale, options.window)
        return similarity if counted is None else jnp.where(counted, similarity, jnp.nan)


def first_scale(images: Images, options: Options):
    """The images in the type of the arithmetic, and C1 and C2, one per image, of the images' rank."""
    a, b = (jnp.asarray(x).astype(options.dtype) for x in (images.a, images.b))
    spatial_ndim = options.window.spatial_ndim
    max_val = images.max_val.reshape(*images.max_val.shape, *(1,) * (spatial_ndim + 1))
    # The constants keep 0/0 away, so they must not underflow themselves.
    c1, c2 = (jnp.maximum((k * max_val) ** 2, jnp.finfo(options.dtype).tiny) for k in (options.k1, options.k2))
    where = None if images.where is None else jnp.asarray(images.where)
    return _pyramid.first_scale(a, b, where, spatial_ndim, LOCAL[options.implementation].typical), c1, c2
