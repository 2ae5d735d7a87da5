"""What callers may pass: shapes and types at trace time, Python numbers before compilation, never a traced value."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypedDict

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jax_msssim import _pyramid
from jax_msssim._windows import Window, check_positive, resolve_window

Array = jax.Array | np.ndarray

MAX_VAL_OF_INTEGERS = {"uint8": 255.0, "uint16": 65535.0}
IMPLEMENTATIONS = ("stencil", "conv")
AXES = {1: "T, C", 2: "H, W, C", 3: "D, H, W, C"}


class Options(NamedTuple):
    """The arguments that shape the compiled program: hashable, checked, and the same for every function."""

    window: Window
    k1: float
    k2: float
    padding: tuple[str, str]
    implementation: str
    dtype: str


class Images(NamedTuple):
    """What a jitted function computes with: the two images as they came, ``max_val``, one per image, and a mask."""

    a: Array
    b: Array
    max_val: Array
    where: Array | None

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes: ``max_val`` has one of each, if only of size 1."""
        return self.a.shape[: self.max_val.ndim]


class LocalOptions(TypedDict, total=False):
    """The keyword arguments of :func:`jax_msssim.ssim` but for ``padding``."""

    max_val: ArrayLike | None
    filter_size: int
    filter_sigma: float
    window: ArrayLike | None
    k1: float
    k2: float
    covariance: str
    where: ArrayLike | None
    min_coverage: float
    spatial_ndim: int
    implementation: str | None


class SSIMOptions(LocalOptions, total=False):
    """The keyword arguments of :func:`jax_msssim.ssim`."""

    padding: str


class PyramidOptions(LocalOptions, total=False):
    """The keyword arguments of :func:`jax_msssim.ms_ssim` but for ``negative``."""

    padding: str | tuple[str, str]
    power_factors: ArrayLike | Sequence[float]
    downsample: str
    luminance: str
    channel_mean: str


def prepare(
    a: Any,
    b: Any,
    *,
    max_val: ArrayLike | None = None,
    filter_size: int = 11,
    filter_sigma: float = 1.5,
    window: ArrayLike | None = None,
    k1: float = 0.01,
    k2: float = 0.03,
    padding: str | tuple[str, str] = "valid",
    covariance: str = "population",
    where: Any = None,
    min_coverage: float = 1.0,
    spatial_ndim: int = 2,
    implementation: str | None = None,
    names: tuple[str, str] = ("a", "b"),
    scales: int = 1,
    downsample: str = "edge",
    padding_pair: bool = False,
) -> tuple[Images, Options]:
    """Checks what every function takes, and that the window fits at every scale."""
    check_option("spatial_ndim", spatial_ndim, (1, 2, 3))
    check_option("implementation", implementation, (None, *IMPLEMENTATIONS))
    check_option("covariance", covariance, ("population", "sample"))
    k1, k2 = check_positive("k1", k1), check_positive("k2", k2)
    taps = resolve_window(window, filter_size, filter_sigma)
    covariance_scale = _covariance_scale(covariance, len(taps) ** spatial_ndim)
    statistics = Window(taps, spatial_ndim, covariance_scale, _check_coverage(min_coverage))
    paddings = _check_padding(padding, padding_pair)
    a, b = (as_array(name, x, f"where=~np.ma.getmaskarray({name})") for name, x in zip(names, (a, b), strict=True))
    _check_images(names, a, b, spatial_ndim)
    if where is not None:
        where = as_array("where", where, "where=where.filled(False)")
        _check_where(where, a.shape, paddings, downsample, scales)
    for mode in paddings:
        _check_size(names, a.shape[-spatial_ndim - 1 :], mode, len(taps), scales, downsample)
    dtype = "float64" if jnp.float64 in (_dtype(a), _dtype(b)) else "float32"
    batch = a.shape[: -spatial_ndim - 1]
    images = Images(a, b, _resolve_max_val(names, a, b, max_val, dtype, batch), where)
    return images, Options(statistics, k1, k2, paddings, implementation or "stencil", dtype)


def check_option(name: str, value, allowed) -> None:
    """One of a few named values."""
    if not any(value is option or (type(value) is type(option) and value == option) for option in allowed):
        choices = ", ".join(map(repr, allowed))
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def check_power_factors(power_factors) -> Array:
    """The weights as an array ``[..., scales]``."""
    weights = _numbers("power_factors", power_factors)
    if isinstance(weights, np.ndarray) and not np.all((weights >= 0) & (weights < np.inf)):
        raise ValueError(f"power_factors must be finite and not negative, got {power_factors!r}.")
    if weights.ndim == 0 or weights.shape[-1] == 0:
        raise ValueError(
            "power_factors must hold one weight for each scale, finest first, at least one, "
            f"got shape {list(weights.shape)}."
        )
    return weights


def check_unit_interval(name: str, value) -> Array:
    """A share between 0 and 1, as an array without axes; a traced one is not looked at."""
    share = _numbers(name, value)
    if isinstance(share, np.ndarray) and not np.all((share >= 0) & (share <= 1)):
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}.")
    if share.ndim != 0:
        raise ValueError(f"{name} must be a single number, got shape {list(share.shape)}.")
    return share


def over_batch(name: str, x: Array, batch: tuple[int, ...], trailing: int = 0) -> Array:
    """``x`` with as many leading axes as the batch, each equal to the batch's or 1."""
    leading = x.shape[: x.ndim - trailing]
    missing = len(batch) - len(leading)
    if missing < 0 or any(n not in (1, m) for n, m in zip(leading, batch[missing:], strict=True)):
        raise ValueError(f"{name} of shape {list(x.shape)} does not broadcast over a batch of shape {list(batch)}.")
    return x.reshape((1,) * missing + x.shape)


def as_array(name: str, x, instead: str) -> Array:
    """What JAX computes with, of what it would misread or does not take: other byte orders, variables of Flax."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, of which JAX would drop the mask: pass {name}.data and {instead}.")
    if isinstance(x, np.ndarray):
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()
    if not isinstance(x, jax.Array):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}. Wrap it in jnp.asarray.")
    return x


def _check_images(names, a, b, spatial_ndim) -> None:
    axes = AXES[spatial_ndim]
    for name, x in zip(names, (a, b), strict=True):
        if not _is_real(x.dtype) or x.dtype.itemsize > 8:
            raise TypeError(f"{name} must hold real numbers, floating or integer, of at most 64 bits, got {x.dtype}.")
        if x.ndim < spatial_ndim + 1:
            raise ValueError(
                f"{name} must have shape [..., {axes}], channels last, got {list(x.shape)}. "
                f"Give images without a channel axis one of size 1: {name}[..., None]."
            )
    chex.assert_equal_shape(
        [a, b],
        custom_message=(
            f"{names[0]} and {names[1]} must have the same shape, got {list(a.shape)} and {list(b.shape)}; "
            "images are never broadcast or resized"
        ),
        exception_type=ValueError,
    )
    for name, x in zip(names, (a, b), strict=True):
        _check_sharding(name, x, spatial_ndim)
    if 0 in a.shape[-spatial_ndim - 1 :]:
        raise ValueError(f"{names[0]} and {names[1]} have no pixels: their shape is {list(a.shape)} ([..., {axes}]).")


def _check_sharding(name: str, x, spatial_ndim: int) -> None:
    """On an explicit mesh JAX moves no data by itself; the types of an automatic one know of no sharding."""
    kind = jax.typeof(x)
    batch = x.ndim - spatial_ndim - 1
    for axis, over in zip(AXES[spatial_ndim].split(", "), kind.sharding.spec[batch:], strict=True):
        if over is not None:
            kept = ", ".join(map(repr, kind.sharding.spec[:batch]))
            raise ValueError(
                f"{name}, {kind}, is sharded along {axis}: on an explicit mesh only the batch can be. "
                f"Pass jax.sharding.reshard(x, jax.P({kept}))."
            )


def _check_size(names, shape, padding: str, taps: int, scales: int, downsample: str) -> None:
    """A plain ValueError: it holds where chex's assertions are switched off, too."""
    *spatial, channels = shape
    needed = {"valid": taps, "same": 1, "reflect": taps // 2 + 1, "symmetric": max(taps // 2, 1)}[padding]
    side = _pyramid.smallest_side(needed, downsample, scales - 1)
    if all(size >= side for size in spatial):
        return
    message = (
        f"{names[0]} and {names[1]} are too small: their last axes are {list(shape)} ([..., {AXES[len(spatial)]}]) "
        f"and every side must be at least {side}, for {needed} pixels to be left"
    )
    if scales == 1:
        message += f' for the {taps}-tap window. Use a smaller filter_size, or padding="same".'
    else:
        message += (
            f" after {scales - 1} halvings (downsample={downsample!r}). Use a smaller filter_size, or fewer scales: "
            f"power_factors=fit_power_factors({tuple(spatial)}, filter_size={taps}, downsample={downsample!r})."
        )
    if spatial[0] <= 4 < channels:
        message += (
            f" The last axis is the channels: if these images are channels-first, as {list(shape)} suggests, "
            f"pass jnp.moveaxis(x, {-len(shape)}, -1)."
        )
    raise ValueError(message)


def _check_padding(padding, pair: bool) -> tuple[str, str]:
    paddings: Any = padding if pair and isinstance(padding, tuple) and len(padding) == 2 else (padding, padding)
    for mode in paddings:
        check_option("padding", mode, _pyramid.PADDINGS)
    return paddings


def _check_where(where, shape, paddings, downsample: str, scales: int) -> None:
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, True for the pixels that count, got {where.dtype}: use mask > 0.")
    if where.ndim != len(shape) or any(n not in (1, m) for n, m in zip(where.shape, shape, strict=True)):
        raise ValueError(
            f"where must have the images' rank, each axis equal to theirs or 1, got {list(where.shape)} "
            f"for images of shape {list(shape)}. A mask [..., H, W] needs a channel axis: where[..., None]."
        )
    for padding in paddings:
        if padding in ("reflect", "symmetric"):
            raise ValueError(
                f'padding={padding!r} cannot mirror masked pixels: use padding="valid" or "same" with where.'
            )
    if scales > 1 and downsample in ("zero", "edge_start"):
        raise ValueError(
            f'downsample={downsample!r} is not defined for masked pixels: use downsample="edge" or "floor" with where.'
        )


def _check_coverage(min_coverage) -> float:
    coverage = check_positive("min_coverage", min_coverage)
    if coverage > 1:
        raise ValueError(
            f"min_coverage must be above 0 and at most 1, the share of a window that is valid, got {coverage}."
        )
    return coverage


def _covariance_scale(covariance: str, samples: int) -> float:
    if covariance == "population":
        return 1.0
    if samples == 1:
        raise ValueError('covariance="sample" needs a window of more than one tap: its variance is over n - 1.')
    return samples / (samples - 1)


def _numbers(name: str, value) -> Array:
    """Real numbers as an array: those of JAX, which may be traced, as they are, others in float64."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not _is_real(array.dtype):
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}.")
    return array if isinstance(array, jax.Array) else array.astype(np.float64)


def _is_real(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


def _dtype(x):
    # What JAX will compute with: float64 NumPy arrays are float64 only under jax_enable_x64.
    return jax.dtypes.canonicalize_dtype(x.dtype)


def _resolve_max_val(names, a, b, max_val, dtype, batch):
    if max_val is None:
        max_val = _default_max_val(names, a, b)
    value = _numbers("max_val", max_val)
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
