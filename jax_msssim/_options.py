"""The arguments of every function: their names, types and defaults, checked once; and the call that computes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_msssim._checks import (
    AXES,
    MAX_VAL_OF_INTEGERS,
    Array,
    as_array,
    check_images,
    check_numbers,
    check_option,
    check_positive,
    check_sizes,
    check_where,
    over_batch,
    own,
    placed,
)
from jax_msssim._scales import Downsample, Padding, smallest_side
from jax_msssim._shards import check_shards, first_line, shards, where_they_lie
from jax_msssim._signatures import takes
from jax_msssim._warnings import warn_of_images
from jax_msssim._windows import Taps, Window, resolve_window

Covariance = Literal["population", "sample"]
Luminance = Literal["last", "all"]
Negative = Literal["relu", "shift", "soft"]
ChannelMean = Literal["after", "before"]
SpatialNdim = Literal[1, 2, 3]
ImplementationName = Literal["stencil", "conv", "matmul", "cuda"]

WANG2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
"""Weights of the five scales, finest first (Wang et al. 2003, section 3.2; they sum to 1.0001)."""


class Options(NamedTuple):
    """The arguments that shape the compiled program: hashable, checked, and the same for every function."""

    window: Window
    k1: float
    k2: float
    padding: tuple[Padding, Padding]
    implementation: ImplementationName | None
    dtype: str


class MSSSIMOptions(NamedTuple):
    """The checked arguments of MS-SSIM that shape the compiled program."""

    local: Options
    scales: int
    downsample: Downsample
    luminance: Luminance
    negative: Negative
    channel_mean: ChannelMean


class Images(NamedTuple):
    """What a jitted function computes with: the images as they came, one ``max_val`` for each, a mask, and sizes."""

    a: Array
    b: Array
    max_val: Array
    where: Array | None
    sizes: Array | None

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes: ``max_val`` has one of each, if only of size 1."""
        return self.a.shape[: self.max_val.ndim]

    def sides(self, window: Window) -> list[jax.Array]:
        """The true length of each image along each spatial axis, ``[..., 1, ..., 1]``; none: that of the array.

        Of a shard it is how far the image reaches from there on.
        """
        ndim, (lines, *others) = window.spatial_ndim, self.a.shape[len(self.batch) : -1]
        if self.sizes is None and not window.cut_over:
            return []
        whole = [lines * shards(window.cut_over), *others]
        sizes = jnp.asarray(np.array(whole, np.int32) if self.sizes is None else self.sizes)
        sizes = jnp.broadcast_to(sizes, (*self.batch, ndim))
        first, *others = (sizes[..., axis].reshape(*self.batch, *(1,) * (ndim + 1)) for axis in range(ndim))
        return [first - first_line(window.cut_over, lines), *others]


class LocalOptions(TypedDict, total=False):
    """The keyword arguments of :func:`jax_msssim.ssim` but for ``padding``."""

    max_val: ArrayLike | None
    filter_size: int
    filter_sigma: float
    window: ArrayLike | None
    k1: float
    k2: float
    covariance: Covariance
    where: ArrayLike | None
    min_coverage: float
    sizes: ArrayLike | None
    spatial_ndim: SpatialNdim
    implementation: ImplementationName | None


class SSIMOptions(LocalOptions, total=False):
    """The keyword arguments of :func:`jax_msssim.ssim`."""

    padding: Padding


class PyramidOptions(LocalOptions, total=False):
    """The keyword arguments of :func:`jax_msssim.ms_ssim` but for ``negative``."""

    padding: Padding | tuple[Padding, Padding]
    power_factors: ArrayLike | Sequence[float]
    downsample: Downsample
    luminance: Luminance
    channel_mean: ChannelMean


def prepare(
    names: tuple[str, str],
    a: Any,
    b: Any,
    scales: int = 1,
    downsample: Downsample = "edge",
    paddings: tuple[Padding, Padding] | None = None,
    /,
    *,
    max_val: ArrayLike | None = None,
    filter_size: int = 11,
    filter_sigma: float = 1.5,
    window: ArrayLike | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: Padding = "valid",
    covariance: Covariance = "population",
    where: ArrayLike | None = None,
    min_coverage: float = 1.0,
    sizes: ArrayLike | None = None,
    spatial_ndim: SpatialNdim = 2,
    implementation: ImplementationName | None = None,
) -> tuple[Options, Images]:
    """Checks the keywords of :func:`jax_msssim.ssim`, whose signature is made from this one.

    ``names`` are what the images are called in messages. The window must fit after ``scales - 1`` halvings.
    ``paddings``, those of MS-SSIM, take the place of ``padding``.
    """
    check_option("spatial_ndim", spatial_ndim, SpatialNdim)
    check_option("implementation", implementation, Literal[None, ImplementationName])
    taps = resolve_window(window, filter_size, filter_sigma, spatial_ndim)
    k1, k2 = check_positive("k1", k1), check_positive("k2", k2)
    # Variances times a number are variances over a smaller C2.
    k2 /= math.sqrt(_covariance_scale(covariance, math.prod(map(len, taps))))
    paddings = paddings or (padding, padding)
    for mode in paddings:
        check_option("padding", mode, Padding)
    a, b = (as_array(name, x, f"where=~np.ma.getmaskarray({name})") for name, x in zip(names, (a, b), strict=True))
    check_images(names, a, b, spatial_ndim)
    statistics = Window(taps, _coverage(min_coverage), check_shards(names, a, b, spatial_ndim, scales))
    if where is not None:
        where = as_array("where", where, "where=where.filled(False)")
        check_where(where, a.shape, paddings, downsample, scales)
    sides = [_check_size(names, a.shape[-spatial_ndim - 1 :], mode, taps, scales, downsample) for mode in paddings]
    batch = a.shape[: -spatial_ndim - 1]
    warn_of_images(names, (a, b), where, max_val is not None, spatial_ndim)
    if sizes is not None:
        sizes = check_sizes(sizes, batch, a.shape[-spatial_ndim - 1 : -1], [*map(max, *sides)])
    dtype = arithmetic(a, b)
    max_val = _max_val(names, a, b, max_val, dtype, batch)
    images = Images(own(a), own(b), max_val, None if where is None else own(where), sizes)
    return Options(statistics, k1, k2, paddings, implementation, dtype), images


@takes(prepare)
def prepare_ms_ssim(
    names: tuple[str, str],
    a: Any,
    b: Any,
    /,
    *,
    power_factors: ArrayLike | Sequence[float] = WANG2003,
    downsample: Downsample = "edge",
    luminance: Luminance = "last",
    negative: Negative = "relu",
    channel_mean: ChannelMean = "after",
    padding: Padding | tuple[Padding, Padding] = "valid",
    **options: Unpack[LocalOptions],
) -> tuple[MSSSIMOptions, Images, Array]:
    """Checks the keywords of :func:`jax_msssim.ms_ssim`, whose signature is made from this one."""
    check_option("downsample", downsample, Downsample)
    check_option("luminance", luminance, Luminance)
    check_option("negative", negative, Negative)
    check_option("channel_mean", channel_mean, ChannelMean)
    weights = check_numbers("power_factors", power_factors)
    if isinstance(weights, np.ndarray) and not np.all((weights >= 0) & (weights < np.inf)):
        raise ValueError(f"power_factors must be finite and not negative, got {power_factors!r}.")
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(
            "power_factors must hold one weight for each scale, finest first, at least one, "
            f"got shape {list(weights.shape)}."
        )
    scales = weights.shape[-1]
    paddings = padding if isinstance(padding, tuple) and len(padding) == 2 else (padding, padding)
    local, images = prepare(names, a, b, scales, downsample, paddings, **options)
    weights = over_batch("power_factors", weights.astype(local.dtype), images.batch, trailing=1)
    return MSSSIMOptions(local, scales, downsample, luminance, negative, channel_mean), images, weights


def evaluate(function: Callable[..., Any], options: Any, images: Images, *numbers: Array) -> Any:
    """``function(options, images, *numbers)``, compiled; every array it returns begins with the batch axes."""
    images = images._replace(max_val=placed(images.max_val, images.a))
    return _evaluate(function, options, images, *(placed(x, images.a) for x in numbers))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _evaluate(function: Callable[..., Any], options: Any, images: Images, *numbers: Array) -> Any:
    result = where_they_lie(functools.partial(function, options), images, *numbers)
    chex.assert_tree_shape_prefix(result, images.batch)
    return result


def _check_size(names, shape, padding: Padding, taps: Sequence[Taps], scales: int, downsample: Downsample) -> list[int]:
    """The shortest sides that images may have."""
    *spatial, channels = shape
    lengths = [*map(len, taps)]
    needed = [
        {"valid": n, "same": 1, "edge": 1, "reflect": n // 2 + 1, "symmetric": max(n // 2, 1)}[padding] for n in lengths
    ]
    sides = [smallest_side(n, downsample, scales - 1) for n in needed]
    if all(size >= side for size, side in zip(spatial, sides, strict=True)):
        return sides
    side, pixels, length = (x[0] if len(set(x)) == 1 else x for x in (sides, needed, lengths))
    message = (
        f"{names[0]} and {names[1]} are too small: their last axes are {list(shape)} ([..., {AXES[len(spatial)]}]) "
        f"and every side must be at least {side}, for {pixels} pixels to be left"
    )
    if scales == 1:
        message += f' for the {length}-tap window. Use a smaller filter_size, or padding="same".'
    else:
        message += (
            f" after {scales - 1} halvings (downsample={downsample!r}). Use a smaller filter_size, or fewer scales: "
            f"power_factors=fit_power_factors({tuple(spatial)}, filter_size={max(lengths)}, downsample={downsample!r})."
        )
    if spatial[0] <= 4 < channels:
        message += (
            f" The last axis is the channels: if these images are channels-first, as {list(shape)} suggests, "
            f"pass jnp.moveaxis(x, {-len(shape)}, -1)."
        )
    raise ValueError(message)


def _coverage(min_coverage) -> float:
    coverage = check_positive("min_coverage", min_coverage)
    if coverage > 1:
        raise ValueError(
            f"min_coverage must be above 0 and at most 1, the share of a window that is valid, got {coverage}."
        )
    return coverage


def _covariance_scale(covariance: Covariance, samples: int) -> float:
    check_option("covariance", covariance, Covariance)
    if covariance == "population":
        return 1.0
    if samples == 1:
        raise ValueError('covariance="sample" needs a window of more than one tap: its variance is over n - 1.')
    return samples / (samples - 1)


def arithmetic(*arrays: Array) -> str:
    """The type to compute with: float64 if JAX has one of the arrays so, else float32."""
    # float64 NumPy arrays are float64 only under jax_enable_x64.
    return "float64" if "float64" in [jax.dtypes.canonicalize_dtype(x.dtype).name for x in arrays] else "float32"


def _max_val(names, a, b, max_val, dtype, batch):
    if max_val is None:
        max_val = _default_max_val(names, a, b)
    value = check_numbers("max_val", max_val)
    if isinstance(value, np.ndarray) and not np.all((value >= 1e-15) & (value <= 1e15)):
        raise ValueError(f"max_val must be between 1e-15 and 1e15, got {max_val!r}.")
    return over_batch("max_val", value.astype(dtype), batch)


def _default_max_val(names, a, b) -> float:
    kinds = [jnp.issubdtype(x.dtype, jnp.floating) for x in (a, b)]
    if all(kinds):
        return 1.0
    if a.dtype == b.dtype and str(a.dtype) in MAX_VAL_OF_INTEGERS:
        return MAX_VAL_OF_INTEGERS[str(a.dtype)]
    raise ValueError(
        f"max_val must be given for {names[0]} of type {a.dtype} and {names[1]} of type {b.dtype}: the largest value "
        "a pixel can have. It is known without asking for two floating images (1.0), uint8 (255) and uint16 (65535)."
    )
