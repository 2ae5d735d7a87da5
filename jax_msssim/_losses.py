"""Losses in Optax's convention: ``(predictions, targets, *, ...)``, one value per image, never reduced."""

from __future__ import annotations

from typing import Literal, Unpack, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_msssim._checks import Array, check_option, check_unit_interval
from jax_msssim._means import mean_positions
from jax_msssim._ms_ssim import log_ms_ssim, one_minus_ms_ssim
from jax_msssim._options import (
    Images,
    LocalOptions,
    MSSSIMOptions,
    Negative,
    Options,
    PyramidOptions,
    SSIMOptions,
    evaluate,
    prepare,
    prepare_ms_ssim,
)
from jax_msssim._scales import Padding, inside
from jax_msssim._signatures import takes
from jax_msssim._single_resolution import SINGLE_RESOLUTION_OPTIONS, single_resolution
from jax_msssim._ssim import dissimilarity

Form = Literal["pyramid", "single_resolution"]
_NAMES = ("predictions", "targets")


@takes(prepare)
def ssim_loss(predictions: ArrayLike, targets: ArrayLike, **options: Unpack[SSIMOptions]) -> jax.Array:
    """``1 - SSIM``, from 0 for equal images to 2.

    It is computed without subtracting from 1, so small losses and their gradients are accurate.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ssim`.
      targets: images of the same shape.
      **options: the keyword arguments of :func:`ssim`.

    Returns:
      One loss per image, shape ``[...]``. Reduce it as the training needs: ``ssim_loss(p, t).mean()``.

    Raises:
      TypeError, ValueError: as for :func:`ssim`.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 2 * 32 * 32).reshape(2, 32, 32, 1)
      >>> [f"{loss:.4f}" for loss in ssim_loss(0.9 * targets, targets)]
      ['0.0084', '0.0084']

    References:
      Zhao et al., `Loss functions for image restoration with neural networks
      <https://arxiv.org/abs/1511.08861>`_, 2017, section III-B.
    """
    return evaluate(dissimilarity, *prepare(_NAMES, predictions, targets, **options))


@takes(prepare)
def dssim_loss(predictions: ArrayLike, targets: ArrayLike, **options: Unpack[SSIMOptions]) -> jax.Array:
    """D-SSIM, the structural dissimilarity ``(1 - SSIM) / 2``, from 0 for equal images to 1.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ssim`.
      targets: images of the same shape.
      **options: the keyword arguments of :func:`ssim`.

    Returns:
      One loss per image, shape ``[...]``.

    Raises:
      TypeError, ValueError: as for :func:`ssim`.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 2 * 32 * 32).reshape(2, 32, 32, 1)
      >>> [f"{loss:.4f}" for loss in dssim_loss(0.9 * targets, targets)]
      ['0.0042', '0.0042']

    References:
      Godard et al., `Unsupervised monocular depth estimation with left-right consistency
      <https://arxiv.org/abs/1609.03677>`_, 2017, equation 2.
    """
    return evaluate(half_dissimilarity, *prepare(_NAMES, predictions, targets, **options))


@takes(prepare_ms_ssim)
def ms_ssim_loss(
    predictions: ArrayLike, targets: ArrayLike, *, negative: Negative = "soft", **options: Unpack[PyramidOptions]
) -> jax.Array:
    """``1 - MS-SSIM``, from 0 for equal images to 1.

    Where images are unlike (a mean below 0.01), MS-SSIM itself is 0 with no gradient, or has an infinite one.
    ``negative="soft"`` is the same function wherever every mean is above 0.01 and leads back from there.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      targets: images of the same shape.
      negative: ``"soft"``, ``"shift"`` or ``"relu"``, as for :func:`ms_ssim`.
      **options: the other keyword arguments of :func:`ms_ssim`.

    Returns:
      One loss per image, shape ``[...]``.

    Raises:
      TypeError, ValueError: as for :func:`ms_ssim`.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 176 * 176).reshape(176, 176, 1)
      >>> f"{ms_ssim_loss(0.9 * targets, targets):.6f}"
      '0.004405'
      >>> gradient = jax.grad(ms_ssim_loss)(1 - targets, targets)
      >>> bool(jnp.isfinite(gradient).all() & (gradient != 0).any())
      True

    References:
      Zhao et al., `Loss functions for image restoration with neural networks
      <https://arxiv.org/abs/1511.08861>`_, 2017, section III-C.
    """
    return evaluate(one_minus_ms_ssim, *prepare_ms_ssim(_NAMES, predictions, targets, negative=negative, **options))


@takes(prepare_ms_ssim)
def log_ms_ssim_loss(
    predictions: ArrayLike, targets: ArrayLike, *, negative: Negative = "soft", **options: Unpack[PyramidOptions]
) -> jax.Array:
    """``-log MS-SSIM``, from 0 for equal images, unbounded but finite.

    Its gradient does not fade where images are far apart, as that of ``1 - MS-SSIM`` does.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      targets: images of the same shape.
      negative: ``"soft"`` or ``"shift"``, as for :func:`ms_ssim`. ``"relu"`` would make it infinite.
      **options: the other keyword arguments of :func:`ms_ssim`.

    Returns:
      One loss per image, shape ``[...]``.

    Raises:
      TypeError: as for :func:`ms_ssim`.
      ValueError: as for :func:`ms_ssim`, and for ``negative="relu"``.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 176 * 176).reshape(176, 176, 1)
      >>> f"{log_ms_ssim_loss(0.9 * targets, targets):.6f}"
      '0.004415'

    References:
      Wang, Simoncelli and Bovik, `Multiscale structural similarity for image quality assessment
      <https://doi.org/10.1109/ACSSC.2003.1292216>`_, 2003, equation 7 (its logarithm).
    """
    if negative == "relu":
        raise ValueError(
            'negative="relu" makes MS-SSIM 0 for unlike images and its logarithm infinite: '
            'use "soft" (the default) or "shift".'
        )
    return evaluate(minus_log_ms_ssim, *prepare_ms_ssim(_NAMES, predictions, targets, negative=negative, **options))


@takes(prepare)
def ssim_l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike = 0.2,
    padding: Padding = "same",
    **options: Unpack[LocalOptions],
) -> jax.Array:
    """``(1 - weight) L1 + weight (1 - SSIM)``, the loss of 3D Gaussian Splatting.

    L1 is the mean of ``|predictions - targets| / max_val``.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ssim`.
      targets: images of the same shape.
      weight: the share of SSIM, between 0 and 1; a number, or a traced scalar.
      padding: as for :func:`ssim`. That program surrounds images with zeros, hence ``"same"``.
      **options: the other keyword arguments of :func:`ssim`.

    Returns:
      One loss per image, shape ``[...]``.

    Raises:
      TypeError: as for :func:`ssim`.
      ValueError: as for :func:`ssim`, and for a weight outside [0, 1].

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 32 * 32 * 3).reshape(32, 32, 3)
      >>> f"{ssim_l1_loss(0.9 * targets, targets):.4f}"
      '0.0420'

    References:
      Kerbl et al., `3D Gaussian splatting for real-time radiance field rendering
      <https://arxiv.org/abs/2308.04079>`_, 2023, equation 7.
    """
    weight = check_unit_interval("weight", weight)
    static, images = prepare(_NAMES, predictions, targets, padding=padding, **options)
    return evaluate(l1_and_dissimilarity, static, images, weight.astype(static.dtype))


@takes(prepare_ms_ssim)
def ms_ssim_l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike = 0.84,
    form: Form = "pyramid",
    negative: Negative = "soft",
    **options: Unpack[PyramidOptions],
) -> jax.Array:
    """``alpha (1 - MS-SSIM) + (1 - alpha) L1``, the mix of Zhao et al.

    MS-SSIM looks after structure, L1 after brightness and colour, to which MS-SSIM is nearly blind. L1 is the mean of
    ``|predictions - targets| / max_val``.

    Args:
      predictions: images of shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      targets: images of the same shape.
      alpha: the share of MS-SSIM, between 0 and 1; a number, or a traced scalar. The paper gives 0.84; the code that
        its authors published has 0.025.
      form: ``"pyramid"`` is MS-SSIM as everywhere here, with plain L1. ``"single_resolution"`` is the paper's: in place
        of scales, windows of sigma 0.5, 1, 2, 4 and 8 at full resolution with zeros around the image, the product of
        contrast-structure in all of them and luminance in the widest at every pixel, and L1 weighted by that window
        (kornia's ``MS_SSIMLoss``, there times 200). Images of any size will do.
      negative: ``"soft"``, ``"shift"`` or ``"relu"``, as for :func:`ms_ssim`; of ``"pyramid"``.
      **options: the other keyword arguments of :func:`ms_ssim`. ``"single_resolution"`` takes ``max_val``, ``k1``,
        ``k2``, ``where``, ``min_coverage``, ``sizes``, ``spatial_ndim`` and ``implementation``.

    Returns:
      One loss per image, shape ``[...]``.

    Raises:
      TypeError: as for :func:`ms_ssim`.
      ValueError: as for :func:`ms_ssim`; for alpha outside [0, 1]; for an option that the form does not have.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 176 * 176).reshape(176, 176, 1)
      >>> f"{ms_ssim_l1_loss(0.9 * targets, targets):.4f}"
      '0.0117'
      >>> f"{ms_ssim_l1_loss(0.9 * targets, targets, form='single_resolution'):.4f}"
      '0.0204'

    References:
      Zhao et al., `Loss functions for image restoration with neural networks
      <https://arxiv.org/abs/1511.08861>`_, 2017, section III-D.
    """
    check_option("form", form, Form)
    alpha = check_unit_interval("alpha", alpha)
    if form == "pyramid":
        static, images, weights = prepare_ms_ssim(_NAMES, predictions, targets, negative=negative, **options)
        return evaluate(l1_and_one_minus_ms_ssim, static, images, alpha.astype(static.local.dtype), weights)
    unknown = sorted(options.keys() - SINGLE_RESOLUTION_OPTIONS) + ["negative"] * (negative != "soft")
    if unknown:
        raise ValueError(
            f'form="single_resolution" has its own windows and no scales: {", ".join(unknown)} cannot be given. '
            f"It takes {', '.join(sorted(SINGLE_RESOLUTION_OPTIONS))}."
        )
    static, images = prepare(_NAMES, predictions, targets, padding="same", **cast(LocalOptions, options))
    return evaluate(l1_and_single_resolution, static, images, alpha.astype(static.dtype))


def half_dissimilarity(options: Options, images: Images) -> jax.Array:
    """D-SSIM per image."""
    return dissimilarity(options, images) / 2


def minus_log_ms_ssim(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> jax.Array:
    """``-log(mean(exp(logs)))`` over channels, accurate both where it is near 0 and where exp underflows."""
    logs = log_ms_ssim(options, images, power_factors)
    largest = lax.stop_gradient(logs.max(-1, keepdims=True))
    return -(largest[..., 0] + jnp.log1p(jnp.expm1(logs - largest).mean(-1)))


def l1_and_dissimilarity(options: Options, images: Images, weight: jax.Array) -> jax.Array:
    """The mix of 3D Gaussian Splatting."""
    return (1 - weight) * mean_l1(options, images) + weight * dissimilarity(options, images)


def l1_and_one_minus_ms_ssim(
    options: MSSSIMOptions, images: Images, alpha: jax.Array, power_factors: jax.Array
) -> jax.Array:
    """The mix of Zhao et al. on the pyramid."""
    loss = one_minus_ms_ssim(options, images, power_factors)
    return alpha * loss + (1 - alpha) * mean_l1(options.local, images)


def l1_and_single_resolution(options: Options, images: Images, alpha: jax.Array) -> jax.Array:
    """The mix of Zhao et al. at one resolution."""
    with jax.named_scope("jax_msssim.single_resolution"):
        loss, l1_weights = single_resolution(options, images)
        return alpha * loss + (1 - alpha) * mean_l1(options, images, l1_weights)


def mean_l1(options: Options, images: Images, weights: Array | None = None) -> jax.Array:
    """The mean of ``|a - b| / max_val`` over the valid pixels and the channels of each image."""
    a, b = (jnp.asarray(x).astype(options.dtype) for x in (images.a, images.b))
    valid = inside(images.sides(options.window), a.shape)
    if images.where is not None:
        valid = jnp.asarray(images.where) if valid is None else jnp.logical_and(valid, jnp.asarray(images.where))
    if valid is not None:
        a, b = jnp.where(valid, a, 0), jnp.where(valid, b, 0)
    difference = jnp.abs(a - b)
    if weights is not None:
        difference *= weights
    mean = mean_positions(difference, valid, range(len(images.batch), a.ndim), options.window.cut_over)
    return mean / images.max_val
