r"""MS-SSIM: contrast-structure at every scale, luminance at the coarsest, each to its power.

    MS-SSIM(a, b) = prod_{j=1}^{M} x_j^{w_j},    x_j = mean(cs_j) for j < M,    x_M = mean(l_M cs_M)

where scale j + 1 is scale j filtered with a 2x2 mean and halved, and the means are over positions
(Wang, Simoncelli and Bovik 2003, equation 7, with alpha_M = beta_M and beta_j = gamma_j = w_j). The
functions below carry ``1 - x_j`` and ``sum_j w_j log x_j``, so that ``1 - MS-SSIM`` and its logarithm are
as accurate as MS-SSIM itself however close the images are.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple, Unpack

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jax_msssim import _pyramid
from jax_msssim._checks import (
    Images,
    LocalOptions,
    Options,
    PyramidOptions,
    SSIMOptions,
    check_option,
    check_power_factors,
    over_batch,
    prepare,
)
from jax_msssim._ssim import LOCAL, first_scale
from jax_msssim._terms import TERMS
from jax_msssim._windows import check_count, check_odd, check_static

WANG2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first (Wang et al. 2003, section 3.2; they sum to 1.0001)."""

SOFT_EPS = 1e-2
# Its multiple by any weight above 1e-27 has the exponential 0, by a weight of 0 it is 0, and gradients are 0 too.
LOG_OF_ZERO = -1e30


class MSSSIMTerms(NamedTuple):
    """Per-scale, per-channel means of the terms, each ``[..., scales, C]``, finest scale first."""

    luminance: jax.Array
    contrast_structure: jax.Array
    similarity: jax.Array


class Pyramid(NamedTuple):
    """How the scales are made and combined; static, like :class:`jax_msssim._checks.Options`."""

    scales: int
    downsample: str
    luminance: str
    negative: str
    channel_mean: str


def log_ms_ssim(images: Images, power_factors, options: Options, pyramid: Pyramid) -> jax.Array:
    """The logarithm of MS-SSIM, ``[..., C]``, or ``[..., 1]`` where channels are averaged before the powers."""
    with jax.named_scope("jax_msssim.ms_ssim"):
        term = "similarity" if pyramid.luminance == "all" else "contrast_structure"
        names = [*[(term,)] * (pyramid.scales - 1), ("similarity", "product")]
        *finer, (coarsest, product) = _each_scale(images, options, pyramid.downsample, names)
        dissimilarities = [*(mean for (mean,) in finer), coarsest]  # 1 - x_j, each [..., C]
        if pyramid.channel_mean == "before":
            *dissimilarities, product = (x.mean(-1, keepdims=True) for x in (*dissimilarities, product))
        means = [1 - x for x in dissimilarities]
        means[-1] = _pyramid.with_value(means[-1], product)
        logs = _log_positive(jnp.stack(dissimilarities, -2), jnp.stack(means, -2), pyramid.negative)
        return (power_factors[..., None] * logs).sum(-2)


def one_minus_ms_ssim(images: Images, power_factors, options: Options, pyramid: Pyramid) -> jax.Array:
    """``1 - MS-SSIM`` per image, without the subtraction."""
    return -jnp.expm1(log_ms_ssim(images, power_factors, options, pyramid)).mean(-1)


def _each_scale(images: Images, options: Options, downsample: str, terms):
    """The means of the terms asked for at each scale."""
    local = LOCAL[options.implementation]
    first, c1, c2 = first_scale(images, options)
    return local.term_means(terms, first, c1, c2, options.window, options.padding, downsample)


def _log_positive(dissimilarity: jax.Array, x: jax.Array, negative: str) -> jax.Array:
    """``log x`` for ``x = 1 - dissimilarity``, which a fractional power needs to be positive."""
    if negative == "shift":  # (1 + x) / 2, kept above 0 where x rounds to -1
        return jnp.log1p(-jnp.minimum(dissimilarity / 2, 1 - jnp.finfo(dissimilarity.dtype).epsneg))
    # Whichever of the two is small has digits; each logarithm sees a harmless number where the other is taken.
    alike = dissimilarity < 0.5
    log_of_alike = jnp.log1p(-jnp.where(alike, dissimilarity, 0))
    if negative == "relu":  # NaN stays NaN
        dead = x <= 0
        log_of_unlike = jnp.where(dead, LOG_OF_ZERO, jnp.log(jnp.where(alike | dead, 1, x)))
    else:
        # x where x >= eps, else eps^2 / (2 eps - x): the same value and slope at eps, and positive everywhere.
        soft = SOFT_EPS**2 / (2 * SOFT_EPS - jnp.minimum(x, SOFT_EPS))
        log_of_unlike = jnp.log(jnp.where(x >= SOFT_EPS, jnp.where(alike, 1, x), soft))
    return jnp.where(alike, log_of_alike, log_of_unlike)


def ms_ssim(
    a: ArrayLike,
    b: ArrayLike,
    *,
    max_val: ArrayLike | None = None,
    power_factors: ArrayLike | Sequence[float] = WANG2003,
    filter_size: int = 11,
    filter_sigma: float = 1.5,
    window: ArrayLike | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str | tuple[str, str] = "valid",
    covariance: str = "population",
    downsample: str = "edge",
    luminance: str = "last",
    negative: str = "relu",
    channel_mean: str = "after",
    where: ArrayLike | None = None,
    min_coverage: float = 1.0,
    spatial_ndim: int = 2,
    implementation: str | None = None,
) -> jax.Array:
    r"""Multi-scale structural similarity of pairs of images.

    .. math::
      \mathrm{MS\text{-}SSIM} = \operatorname{mean}(l_M \, cs_M)^{w_M}
      \prod_{j=1}^{M-1} \operatorname{mean}(cs_j)^{w_j}

    where scale :math:`j+1` is scale :math:`j` averaged over 2x2 pixels, :math:`l` and :math:`cs` are the
    terms of :func:`ssim`, and the means are over positions, for each channel; then the channels are
    averaged. With the defaults this is the number of Wang's ``msssim.m`` and of TensorFlow.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ssim`. With five scales and the other
        defaults every side must be at least 161 pixels (176 with ``downsample="floor"``).
      max_val: the largest value a pixel can have, as for :func:`ssim`.
      power_factors: the weights :math:`w_j`, finest scale first; their number is the number of scales
        :math:`M`. An array, or an array ``[..., scales]`` over the batch, may be traced, mapped and
        differentiated. They are used as they are: the paper's sum to 1.0001.
      filter_size, filter_sigma, window, k1, k2, covariance, spatial_ndim, implementation: as for :func:`ssim`.
      padding: as for :func:`ssim`, or a pair: for contrast-structure, and for the similarity of the last
        scale (torchmetrics: ``("valid", "reflect")``).
      downsample: what happens to an axis of odd length before it is halved. ``"edge"`` repeats its last line
        (MATLAB, TensorFlow, plenoptic), ``"floor"`` drops it (torchmetrics, MONAI), ``"zero"`` puts a line of
        zeros at both ends (pytorch-msssim, pyiqa), ``"edge_start"`` repeats the first line of every axis if
        any is odd (piq).
      luminance: ``"last"`` compares luminance at the coarsest scale alone, as the paper does; ``"all"``
        uses ``mean(l cs)`` at every scale.
      negative: a mean can be negative, where images are anticorrelated, and a fractional power cannot take
        it. ``"relu"`` takes 0 for it, with gradient 0: the reference behaviour. ``"shift"`` uses
        ``(1 + x) / 2`` for every mean (torchmetrics' "simple"). ``"soft"`` is ``x`` down to 0.01 and
        ``0.01^2 / (0.02 - x)`` below: positive, with a gradient everywhere; the losses use it.
      channel_mean: ``"after"`` averages the channels' MS-SSIM (MATLAB, TensorFlow, pytorch-msssim, piq);
        ``"before"`` averages the means over channels, then takes powers (torchmetrics, MONAI).
      where, min_coverage: a mask, as for :func:`ssim`. A pixel of a coarser scale is the mean of its valid
        pixels, and valid if any is (``"edge"``) or all are (``"floor"``; the other rules refuse a mask).

    Returns:
      One value per image, shape ``[...]``, in [0, 1]: float64 if an image is, else float32.

    Raises:
      TypeError: as for :func:`ssim`.
      ValueError: as for :func:`ssim`; images too small for so many scales (see
        :func:`fit_power_factors`); power factors that are negative or do not fit the batch.

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
    arguments = prepare_ms_ssim(
        a,
        b,
        max_val=max_val,
        power_factors=power_factors,
        filter_size=filter_size,
        filter_sigma=filter_sigma,
        window=window,
        k1=k1,
        k2=k2,
        padding=padding,
        covariance=covariance,
        downsample=downsample,
        luminance=luminance,
        negative=negative,
        channel_mean=channel_mean,
        where=where,
        min_coverage=min_coverage,
        spatial_ndim=spatial_ndim,
        implementation=implementation,
    )
    return _ms_ssim(*arguments)


def ms_ssim_db(a: ArrayLike, b: ArrayLike, *, negative: str = "relu", **options: Unpack[PyramidOptions]) -> jax.Array:
    r"""MS-SSIM in decibels, :math:`-10 \log_{10}(1 - \mathrm{MS\text{-}SSIM})`.

    The figure of learned image compression, where MS-SSIM itself is too close to 1 to be read: 0.99 is
    20 dB, 0.999 is 30 dB. It is computed without subtracting from 1, so that 100 dB is as accurate as 10.

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
    return _ms_ssim_db(*prepare_ms_ssim(a, b, negative=negative, **options))


def ms_ssim_terms(
    a: ArrayLike,
    b: ArrayLike,
    *,
    scales: int = 5,
    downsample: str = "edge",
    **options: Unpack[SSIMOptions],
) -> MSSSIMTerms:
    """The means that MS-SSIM is made of: every term, at every scale, for every channel.

    Args:
      a, b: images of one shape ``[..., H, W, C]``, as for :func:`ms_ssim`.
      scales: number of scales, at least 1.
      downsample: ``"edge"`` or ``"floor"``, as for :func:`ms_ssim`.
      **options: the keyword arguments of :func:`ssim`.

    Returns:
      ``(luminance, contrast_structure, similarity)``: the means over positions of ``l``, ``cs`` and
      ``l cs``, each of shape ``[..., scales, C]``, finest scale first.

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
    check_option("downsample", downsample, _pyramid.DOWNSAMPLE_RULES)
    scales = check_count("scales", scales)
    images, static = prepare(a, b, scales=scales, downsample=downsample, **options)
    return _terms(images, static, scales, downsample)


def fit_power_factors(
    spatial_shape: Sequence[int],
    *,
    filter_size: int = 11,
    downsample: str = "edge",
    power_factors: Sequence[float] = WANG2003,
) -> tuple[float, ...]:
    """The leading power factors that fit images of a size, for MS-SSIM of small images.

    MS-SSIM with fewer scales is another metric: say so where you report it. That is why you ask for it,
    and :func:`ms_ssim` never drops a scale on its own.

    Args:
      spatial_shape: the sides of the images, ``(H, W)``, or ``(D, H, W)``, or ``(T,)``.
      filter_size: taps of the window, or the length of a custom one.
      downsample: ``"edge"`` or ``"floor"``, as for :func:`ms_ssim`.
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
    filter_size = check_odd("filter_size", filter_size)
    check_option("downsample", downsample, _pyramid.DOWNSAMPLE_RULES)
    weights = check_static("power_factors", power_factors)
    if weights.ndim != 1 or weights.size == 0:
        raise ValueError(f"power_factors must be a sequence of at least one number, got {power_factors!r}.")
    sides = [check_count("spatial_shape", side) for side in spatial_shape]
    if not sides:
        raise ValueError("spatial_shape must hold at least one side, got an empty one.")
    fitting = [
        scale + 1
        for scale in range(weights.size)
        if min(sides) >= _pyramid.smallest_side(filter_size, downsample, scale)
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


@functools.partial(jax.jit, static_argnames=("options", "pyramid"))
def _ms_ssim(images, power_factors, options, pyramid):
    return jnp.exp(log_ms_ssim(images, power_factors, options, pyramid)).mean(-1)


@functools.partial(jax.jit, static_argnames=("options", "pyramid"))
def _ms_ssim_db(images, power_factors, options, pyramid):
    loss = one_minus_ms_ssim(images, power_factors, options, pyramid)
    equal = loss == 0  # where log10 has no finite gradient
    return jnp.where(equal, jnp.inf, -10 * jnp.log10(jnp.where(equal, 1, loss)))


@functools.partial(jax.jit, static_argnames=("options", "scales", "downsample"))
def _terms(images, options, scales, downsample):
    with jax.named_scope("jax_msssim.ms_ssim_terms"):
        per_scale = _each_scale(images, options, downsample, [TERMS] * scales)
        return MSSSIMTerms(*(1 - jnp.stack(means, axis=-2) for means in zip(*per_scale, strict=True)))


def prepare_ms_ssim(
    a,
    b,
    *,
    names=("a", "b"),
    power_factors=WANG2003,
    downsample="edge",
    luminance="last",
    negative="relu",
    channel_mean="after",
    padding: str | tuple[str, str] = "valid",
    **options: Unpack[LocalOptions],
):
    """The checked arguments of :func:`log_ms_ssim`."""
    check_option("downsample", downsample, _pyramid.DOWNSAMPLE_RULES)
    check_option("luminance", luminance, ("last", "all"))
    check_option("negative", negative, ("relu", "shift", "soft"))
    check_option("channel_mean", channel_mean, ("after", "before"))
    weights = check_power_factors(power_factors)
    scales = weights.shape[-1]
    images, static = prepare(
        a, b, names=names, scales=scales, downsample=downsample, padding=padding, padding_pair=True, **options
    )
    weights = over_batch("power_factors", weights.astype(static.dtype), images.batch, trailing=1)
    return images, weights, static, Pyramid(scales, downsample, luminance, negative, channel_mean)
