"""One-dimensional windows: the weights of every local statistic, applied along each spatial axis."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from jax_msssim._checks import check_odd, check_positive, check_static


class Window(NamedTuple):
    """What a local statistic is: static, hashable, checked."""

    taps: tuple[float, ...]
    spatial_ndim: int
    min_coverage: float = 1.0
    cut_over: tuple[str, ...] = ()  # mesh axes over which images are cut along their first spatial axis

    @property
    def halo(self) -> int:
        """By how much an image is longer than the map of its windows, along each axis."""
        return len(self.taps) - 1

    @property
    def pivot(self) -> int:
        """The place of the largest tap, nearest to the centre."""
        centre = len(self.taps) // 2
        return max(range(len(self.taps)), key=lambda i: (self.taps[i], -abs(i - centre)))


def gaussian_window(size: int, sigma: float) -> np.ndarray:
    r"""Samples of a Gaussian at integer positions, centred, summing to 1.

    The window of the papers is the outer product of this one with itself, which is why every function of this library
    filters one axis after another.

    Args:
      size: number of taps, odd and at least 1. The papers use 11.
      sigma: standard deviation in pixels, above 0. The papers use 1.5.

    Returns:
      Float64 NumPy array of shape ``[size]``, whatever JAX's precision is.

    Raises:
      TypeError: an argument is traced or is not a number.
      ValueError: ``size`` is even or below 1, or ``sigma`` is not above 0.

    Examples:
      >>> gaussian_window(3, 1.0).round(4)
      array([0.2741, 0.4519, 0.2741])

    References:
      Wang et al., `Image quality assessment: from error visibility to structural
      similarity <https://doi.org/10.1109/TIP.2003.819861>`_, 2004, section III-C.
    """
    size = check_odd("size", size)
    sigma = check_positive("sigma", sigma)
    offsets = np.arange(size) - size // 2
    # A sigma far below a pixel underflows to a single tap of 1, its limit.
    with np.errstate(under="ignore", over="ignore"):
        weights = np.exp(-0.5 * (offsets / sigma) ** 2)
    return weights / math.fsum(weights)


def uniform_window(size: int) -> np.ndarray:
    """Equal weights that sum to 1, the box filter (scikit-image's default, with 7 taps).

    Args:
      size: number of taps, odd and at least 1.

    Returns:
      Float64 NumPy array of shape ``[size]``.

    Raises:
      TypeError: ``size`` is traced or is not an integer.
      ValueError: ``size`` is even or below 1.

    Examples:
      >>> uniform_window(5)
      array([0.2, 0.2, 0.2, 0.2, 0.2])

    References:
      Wang and Bovik, `A universal image quality index
      <https://doi.org/10.1109/97.995823>`_, 2002: a uniform sliding window.
    """
    size = check_odd("size", size)
    return np.full(size, 1.0 / size)


def resolve_window(window, filter_size, filter_sigma) -> tuple[float, ...]:
    """The taps that the arguments ask for, as hashable numbers; ``window`` replaces the other two."""
    if window is None:
        return _gaussian_taps(
            check_odd("filter_size", filter_size),
            check_positive("filter_sigma", filter_sigma),
        )
    taps = check_static("window", window)
    if taps.ndim != 1 or taps.size % 2 == 0:
        raise ValueError(
            f"window must be one-dimensional with an odd number of taps, got shape {list(taps.shape)}. "
            "A window is applied along every spatial axis in turn: pass the taps of one axis."
        )
    if not np.all(taps >= 0):  # also catches NaN
        raise ValueError(f"window must have no negative or NaN tap (variances would be negative), got {taps.tolist()}.")
    total = math.fsum(taps)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"window must sum to 1 within 1e-6, got a sum of {total:.9g}. Divide it by its sum.")
    return tuple(taps.tolist())


@functools.lru_cache
def _gaussian_taps(size: int, sigma: float) -> tuple[float, ...]:
    return tuple(gaussian_window(size, sigma).tolist())
