r"""MS-SSIM: contrast-structure at every scale, luminance at the coarsest, each to its power.

    MS-SSIM(a, b) = prod_{j=1}^{M} x_j^{w_j},    x_j = mean(cs_j) for j < M,    x_M = mean(l_M cs_M)

where scale j + 1 is scale j filtered with a 2x2 mean and halved, and the means are over positions (Wang, Simoncelli and
Bovik 2003, equation 7, with alpha_M = beta_M and beta_j = gamma_j = w_j). The functions below carry ``1 - x_j`` and
``sum_j w_j log x_j``, so that ``1 - MS-SSIM`` and its logarithm are as accurate as MS-SSIM itself however close the
images are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Unpack

import chex
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jax_msssim._checks import check_count, check_option, check_static
from jax_msssim._options import (
    WANG2003,
    Images,
    MSSSIMOptions,
    Negative,
    Options,
    PyramidOptions,
    SSIMOptions,
    evaluate,
    prepare,
    prepare_ms_ssim,
)
from jax_msssim._scales import Downsample, Pyramid, smallest_side
from jax_msssim._signatures import takes
from jax_msssim._ssim import IMPLEMENTATIONS, first_scale
from jax_msssim._terms import TERMS, Term

SOFT_EPS = 1e-2
# Its multiple by any weight above 1e-27 has the exponential 0, by a weight of 0 it is 0, and gradients are 0 too.
LOG_OF_ZERO = -1e30


class MSSSIMTerms(NamedTuple):
    """Per-scale, per-channel means of the terms, each ``[..., scales, C]``, finest scale first."""

    luminance: jax.Array
    contrast_structure: jax.Array
    similarity: jax.Array


def log_ms_ssim(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> jax.Array:
    """The logarithm of MS-SSIM, ``[..., C]``, or ``[..., 1]`` where channels are averaged before the powers."""
    with jax.named_scope("jax_msssim.ms_ssim"):
        means = _term_means(options.local, images, _terms(options), options.downsample)
        return _log_product(options, means, power_factors)


def _terms(options: MSSSIMOptions) -> tuple[tuple[Term, ...], ...]:
    """Those of each scale."""
    each: tuple[Term, ...] = ("similarity",) if options.luminance == "all" else ("contrast_structure",)
    at_last: tuple[Term, ...] = ("similarity", "product")
    return (*[each] * (options.scales - 1), at_last)


def _log_product(options: MSSSIMOptions, means: Sequence[tuple[jax.Array, ...]], power_factors: jax.Array) -> jax.Array:
    """The logarithm of the product of the terms' means, each to its power."""
    *finer, (coarsest, product) = means
    dissimilarities = jnp.stack([*(mean for (mean,) in finer), coarsest], -2)  # 1 - x_j, [..., scales, C]
    if options.channel_mean == "before":
        dissimilarities, product = (x.mean(-1, keepdims=True) for x in (dissimilarities, product))
    logs = _log_positive(dissimilarities, product, options.negative)
    return (power_factors[..., None] * logs).sum(-2)


def _term_means(options: Options, images: Images, terms: tuple[tuple[Term, ...], ...], downsample: Downsample):
    """The means of the terms at each scale, each ``[..., C]``."""
    first, constants = first_scale(options, images)
    pyramid = Pyramid(terms, options.window, options.padding, downsample)
    return IMPLEMENTATIONS[options.implementation].term_means(pyramid, first, constants)


def one_minus_ms_ssim(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> jax.Array:
    """``1 - MS-SSIM`` per image, without the subtraction."""
    return -jnp.expm1(log_ms_ssim(options, images, power_factors)).mean(-1)


def multi_scale_similarity(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> jax.Array:
    """MS-SSIM per image."""
    return jnp.exp(log_ms_ssim(options, images, power_factors)).mean(-1)


def one_minus_both(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """``1 - SSIM`` and ``1 - MS-SSIM`` of several scales, per image, from the same moments of the first scale."""
    first, *coarser = _terms(options)
    terms: tuple[tuple[Term, ...], ...] = (("similarity", *first), *coarser)
    (similarity, *others), *means = _term_means(options.local, images, terms, options.downsample)
    log = _log_product(options, [tuple(others), *means], power_factors)
    return similarity.mean(-1), -jnp.expm1(log).mean(-1)


def decibels(options: MSSSIMOptions, images: Images, power_factors: jax.Array) -> jax.Array:
    """``-10 log10(1 - MS-SSIM)`` per image."""
    loss = one_minus_ms_ssim(options, images, power_factors)
    equal = loss == 0  # where log10 has no finite gradient
    return jnp.where(equal, jnp.inf, -10 * jnp.log10(jnp.where(equal, 1, loss)))


def terms_of_each_scale(static: tuple[Options, int, Downsample], images: Images) -> MSSSIMTerms:
    """The means of all terms at all scales."""
    with jax.named_scope("jax_msssim.ms_ssim_terms"):
        options, scales, downsample = static
        per_scale = _term_means(options, images, (TERMS,) * scales, downsample)
        terms = MSSSIMTerms(*(1 - jnp.stack(means, axis=-2) for means in zip(*per_scale, strict=True)))
        chex.assert_shape(terms, (*images.batch, scales, images.a.shape[-1]))
        return terms


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_positive(dissimilarities: jax.Array, product: jax.Array, negative: Negative) -> jax.Array:
    """``log x`` of each scale for ``x = 1 - dissimilarity``, which a fractional power needs to be positive.

    ``product`` is x of the last scale, with all its digits.
    """
    d, x = dissimilarities, _means(dissimilarities, product)
    if negative == "shift":  # (1 + x) / 2, kept above 0 where x rounds to -1
        return lax.log1p(-lax.min(d / 2, lax.full_like(x, 1 - jnp.finfo(x.dtype).epsneg)))
    if negative == "relu":  # NaN stays NaN
        log = lax.select(x <= 0, lax.full_like(x, LOG_OF_ZERO), lax.log(x))
    else:
        # x where x >= eps, else eps^2 / (2 eps - x): the same value and slope at eps, and positive everywhere.
        log = lax.log(lax.select(x >= SOFT_EPS, x, SOFT_EPS**2 / (2 * SOFT_EPS - x)))
    return lax.select(d < 0.5, lax.log1p(-d), log)  # of the two the one that has all its digits


@_log_positive.defjvp
def _log_positive_jvp(negative, primals, tangents):
    # One small loop in place of a derivative of each branch, which would have to be harmless where the other is taken.
    x, dx = _means(*primals), -tangents[0]
    if negative == "shift":
        whole, least = 1 + x, 2 * jnp.finfo(x.dtype).epsneg
    else:
        whole, least = (lax.select(x >= SOFT_EPS, x, 2 * SOFT_EPS - x) if negative == "soft" else x), 0
    dead = whole <= least
    slope = lax.select(dead, lax.full_like(x, 0), 1 / lax.select(dead, lax.full_like(x, 1), whole))
    return _log_positive(*primals, negative), slope * dx


def _means(dissimilarities, product):
    return lax.concatenate([1 - dissimilarities[..., :-1, :], product[..., None, :]], dissimilarities.ndim - 2)


@takes(prepare_ms_ssim)
def ms_ssim(a: ArrayLike, b: ArrayLike, *, negative: Negative = "relu", **options: Unpack[PyramidOptions]) -> jax.Array:
    r"""Multi-scale structural similarity of pairs of images.

    .. math::
      \mathrm{MS\text{-}SSIM} = \operatorname{mean}(l_M \, cs_M)^{w_M}
      \prod_{j=1}^{M-1} \operatorname{mean}(cs_j)^{w_j}

    where scale :math:`j+1` is scale :math:`j` averaged over 2x2 pixels, :math:`l` and :math:`cs` are the terms of
    :func:`ssim`, and the means are over positions, for each channel; then the channels are averaged. With the defaults
    this is the number of Wang's ``msssim.m`` and of TensorFlow.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ssim`. With five scales and the other defaults every
        side must be at least 161 pixels (176 with ``downsample="floor"``).
      max_val: the largest value a pixel can have, as for :func:`ssim`.
      power_factors: the weights :math:`w_j`, finest scale first; their number is the number of scales :math:`M`. An
        array, or an array ``[..., scales]`` over the batch, may be traced, mapped and differentiated. They are used as
        they are: the paper's sum to 1.0001.
      filter_size, filter_sigma, window, k1, k2, covariance, sizes, spatial_ndim, implementation: as for :func:`ssim`.
      padding: as for :func:`ssim`, or a pair: for contrast-structure, and for the similarity of the last scale
        (torchmetrics: ``("valid", "reflect")``).
      downsample: what happens to an axis of odd length before it is halved. ``"edge"`` repeats its last line (MATLAB,
        TensorFlow, plenoptic), ``"floor"`` drops it (torchmetrics, MONAI), ``"zero"`` puts a line of zeros at both ends
        (pytorch-msssim, pyiqa), ``"edge_start"`` repeats the first line of every axis if any is odd (piq), ``"start"``
        whether it is odd or not (sewar): the first line is a mean by itself, and the last of an even axis is dropped.
      luminance: ``"last"`` compares luminance at the coarsest scale alone, as the paper does; ``"all"`` uses ``mean(l
        cs)`` at every scale.
      negative: a mean can be negative, where images are anticorrelated, and a fractional power cannot take it.
        ``"relu"`` takes 0 for it, with gradient 0: the reference behaviour. ``"shift"`` uses ``(1 + x) / 2`` for every
        mean (torchmetrics' "simple"). ``"soft"`` is ``x`` down to 0.01 and ``0.01^2 / (0.02 - x)`` below: positive,
        with a gradient everywhere; the losses use it.
      channel_mean: ``"after"`` averages the channels' MS-SSIM (MATLAB, TensorFlow, pytorch-msssim, piq); ``"before"``
        averages the means over channels, then takes powers (torchmetrics, MONAI).
      where, min_coverage: a mask, as for :func:`ssim`. A pixel of a coarser scale is the mean of its valid pixels, and
        valid if any is (``"edge"``) or all are (``"floor"``; the other rules refuse a mask).

    Returns:
      One value per image, shape ``[...]``, in [0, 1]: float64 if an image is, else float32.

    Raises:
      TypeError: as for :func:`ssim`.
      ValueError: as for :func:`ssim`; images too small for so many scales (see :func:`fit_power_factors`); power
        factors that are negative or do not fit the batch.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.linspace(0, 1, 2 * 176 * 176 * 3).reshape(2, 176, 176, 3)
      >>> ms_ssim(a, a)
      Array([1., 1.], dtype=float32)
      >>> [f"{value:.3f}" for value in ms_ssim(a, 0.9 * a)]
      ['0.997', '0.997']

    References:
      Wang, Simoncelli and Bovik, `Multiscale structural similarity for image quality assessment
      <https://doi.org/10.1109/ACSSC.2003.1292216>`_, 2003, equation 7.
    """
    return evaluate(multi_scale_similarity, *prepare_ms_ssim(("a", "b"), a, b, negative=negative, **options))


@takes(prepare_ms_ssim)
def ms_ssim_db(
    a: ArrayLike, b: ArrayLike, *, negative: Negative = "relu", **options: Unpack[PyramidOptions]
) -> jax.Array:
    r"""MS-SSIM in decibels, :math:`-10 \log_{10}(1 - \mathrm{MS\text{-}SSIM})`.

    The figure of learned image compression, where MS-SSIM itself is too close to 1 to be read: 0.99 is 20 dB, 0.999 is
    30 dB. It is computed without subtracting from 1, so that 100 dB is as accurate as 10.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      negative: ``"relu"``, ``"shift"`` or ``"soft"``, as for :func:`ms_ssim`.
      **options: the other keyword arguments of :func:`ms_ssim`.

    Returns:
      One value per image, shape ``[...]``: at least 0, and ``inf`` for identical images (gradient 0).

    Raises:
      TypeError, ValueError: as for :func:`ms_ssim`.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.linspace(0, 1, 176 * 176).reshape(176, 176, 1)
      >>> f"{ms_ssim_db(a, 0.9 * a):.2f} dB"
      '23.56 dB'
      >>> ms_ssim_db(a, a)
      Array(inf, dtype=float32)

    References:
      Balle et al., `Variational image compression with a scale hyperprior
      <https://arxiv.org/abs/1802.01436>`_, 2018 (its figures are in decibels).
    """
    return evaluate(decibels, *prepare_ms_ssim(("a", "b"), a, b, negative=negative, **options))


@takes(prepare)
def ms_ssim_terms(
    a: ArrayLike, b: ArrayLike, *, scales: int = 5, downsample: Downsample = "edge", **options: Unpack[SSIMOptions]
) -> MSSSIMTerms:
    """The means that MS-SSIM is made of: every term, at every scale, for every channel.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      scales: number of scales, at least 1.
      downsample: what happens to an axis of odd length, as for :func:`ms_ssim`.
      **options: the keyword arguments of :func:`ssim`.

    Returns:
      ``(luminance, contrast_structure, similarity)``: the means over positions of ``l``, ``cs`` and ``l cs``, each of
      shape ``[..., scales, C]``, finest scale first.

    Raises:
      TypeError, ValueError: as for :func:`ms_ssim`.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.linspace(0, 1, 64 * 64 * 3).reshape(64, 64, 3)
      >>> terms = ms_ssim_terms(a, 0.5 * a, scales=2)
      >>> terms.luminance.shape
      (2, 3)
      >>> [f"{mean:.3f}" for mean in terms.contrast_structure[:, 0]]
      ['0.914', '0.849']

    References:
      Wang, Simoncelli and Bovik, `Multiscale structural similarity for image quality assessment
      <https://doi.org/10.1109/ACSSC.2003.1292216>`_, 2003, equations 2 to 4.
    """
    check_option("downsample", downsample, Downsample)
    scales = check_count("scales", scales)
    static, images = prepare(("a", "b"), a, b, scales, downsample, **options)
    return evaluate(terms_of_each_scale, (static, scales, downsample), images)


def fit_power_factors(
    spatial_shape: Sequence[int],
    *,
    filter_size: int = 11,
    downsample: Downsample = "edge",
    power_factors: Sequence[float] = WANG2003,
) -> tuple[float, ...]:
    """The leading power factors that fit images of a size, for MS-SSIM of small images.

    MS-SSIM with fewer scales is another metric: say so where you report it. That is why you ask for it, and
    :func:`ms_ssim` never drops a scale on its own.

    Args:
      spatial_shape: the sides of the images, ``(H, W)``, or ``(D, H, W)``, or ``(T,)``.
      filter_size: taps of the window, or the length of a custom one, the longest if axes differ.
      downsample: what happens to an axis of odd length, as for :func:`ms_ssim`.
      power_factors: the weights to choose from, finest scale first.

    Returns:
      All of them, unchanged, where all fit; else as many leading ones as do, divided by their sum.

    Raises:
      TypeError: an argument is traced or is not a number.
      ValueError: not even one scale fits.

    Examples:
      >>> fit_power_factors((256, 256))
      (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
      >>> [round(w, 4) for w in fit_power_factors((32, 32))]
      [0.1356, 0.8644]

    References:
      Wang, Simoncelli and Bovik, `Multiscale structural similarity for image quality assessment
      <https://doi.org/10.1109/ACSSC.2003.1292216>`_, 2003, section 3.2 (the weights).
    """
    filter_size = check_count("filter_size", filter_size)
    check_option("downsample", downsample, Downsample)
    weights = check_static("power_factors", power_factors)
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"power_factors must be a sequence of at least one number, got {power_factors!r}.")
    sides = [check_count("spatial_shape", side) for side in spatial_shape]
    if not sides:
        raise ValueError("spatial_shape must hold at least one side, got an empty one.")
    fitting = [
        scale + 1 for scale in range(weights.size) if min(sides) >= smallest_side(filter_size, downsample, scale)
    ]
    if not fitting:
        raise ValueError(
            f"not even one scale fits: spatial_shape is {tuple(sides)} and every side must be at least filter_size, "
            f"{filter_size}. Use a smaller filter_size."
        )
    if len(fitting) == weights.size:
        return tuple(weights.tolist())
    weights = weights[: len(fitting)]
    return tuple((weights / math.fsum(weights)).tolist())
