"""One-dimensional windows: the weights of every local statistic, applied along one spatial axis after another."""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np

from jax_msssim._checks import check_count, check_positive, check_static

Taps = tuple[float, ...]  # of one axis


class Window(NamedTuple):
    """What a local statistic is: static, hashable, checked."""

    taps: tuple[Taps, ...]  # of each spatial axis
    min_coverage: float = 1.0
    cut_over: tuple[str, ...] = ()  # mesh axes over which images are cut along their first spatial axis

    @property
    def spatial_ndim(self) -> int:
        """The number of spatial axes."""
        return len(self.taps)

    @property
    def halo(self) -> tuple[int, ...]:
        """By how much an image is longer than the map of its windows, along each axis."""
        return tuple(len(taps) - 1 for taps in self.taps)

    @property
    def margins(self) -> tuple[tuple[int, int], ...]:
        """How many pixels lie before and after each pixel in its window, along each axis; of an even one more before.

        That is where SciPy's filters put the centre.
        """
        return tuple((len(taps) // 2, (len(taps) - 1) // 2) for taps in self.taps)

    @property
    def pivot(self) -> tuple[int, ...]:
        """The place of the largest tap, nearest to the centre, along each axis."""
        return tuple(
            max(range(len(taps)), key=lambda i, taps=taps: (taps[i], -abs(i - len(taps) // 2))) for taps in self.taps
        )


def gaussian_window(size: int, sigma: float) -> np.ndarray:
    r"""Samples of a Gaussian at integer positions, centred, summing to 1.

    The window of the papers is the outer product of this one with itself, which is why every function of this library
    filters one axis after another.

    Args:
      size: number of taps, at least 1. The papers use 11. If it is even, the Gaussian is centred between two pixels.
      sigma: standard deviation in pixels, above 0. The papers use 1.5.

    Returns:
      Float64 NumPy array of shape ``[size]``, whatever JAX's precision is.

    Raises:
      TypeError: an argument is traced or is not a number.
      ValueError: ``size`` is below 1, or ``sigma`` is not above 0.

    Examples:
      >>> gaussian_window(3, 1.0).round(4)
      array([0.2741, 0.4519, 0.2741])

    References:
      Wang et al., `Image quality assessment: from error visibility to structural
      similarity <https://doi.org/10.1109/TIP.2003.819861>`_, 2004, section III-C.
    """
    size = check_count("size", size)
    sigma = check_positive("sigma", sigma)
    squares = (np.arange(size) - (size - 1) / 2) ** 2
    # A sigma far below a pixel underflows to the tap or the two at the centre, its limit.
    with np.errstate(under="ignore", over="ignore"):
        weights = np.exp(-0.5 * (squares - squares.min()) / sigma / sigma)
    return weights / math.fsum(weights)


def uniform_window(size: int) -> np.ndarray:
    """Equal weights that sum to 1, the box filter (scikit-image's default, with 7 taps).

    Args:
      size: number of taps, at least 1.

    Returns:
      Float64 NumPy array of shape ``[size]``.

    Raises:
      TypeError: ``size`` is traced or is not an integer.
      ValueError: ``size`` is below 1.

    Examples:
      >>> uniform_window(5)
      array([0.2, 0.2, 0.2, 0.2, 0.2])

    References:
      Wang and Bovik, `A universal image quality index
      <https://doi.org/10.1109/97.995823>`_, 2002: a uniform sliding window.
    """
    size = check_count("size", size)
    return np.full(size, 1.0 / size)


def resolve_window(window, filter_size, filter_sigma, spatial_ndim: int) -> tuple[Taps, ...]:
    """The taps of each axis that the arguments ask for, as hashable numbers; ``window`` replaces the other two."""
    if window is None:
        size, sigma = check_count("filter_size", filter_size), check_positive("filter_sigma", filter_sigma)
        return (_gaussian_taps(size, sigma),) * spatial_ndim
    if not is_of_each_axis(window):
        return (_checked(window),) * spatial_ndim
    if len(window) != spatial_ndim:
        raise ValueError(
            f"window must be the taps for every spatial axis, or a sequence of those of each of the {spatial_ndim}, "
            f"got a sequence of {len(window)} windows."
        )
    return tuple(map(_checked, window))


def is_of_each_axis(window) -> bool:
    """Whether a window is a sequence of windows."""
    return np.iterable(window) and any(np.ndim(taps) for taps in window)


def _checked(window) -> Taps:
    taps = check_static("window", window)
    if taps.ndim != 1 or taps.size == 0:
        raise ValueError(
            "window must be one-dimensional with at least one tap, or one such sequence for each spatial axis, "
            f"got shape {list(taps.shape)}."
        )
    if not np.all(taps >= 0):  # also catches NaN
        raise ValueError(f"window must have no negative or NaN tap (variances would be negative), got {taps.tolist()}.")
    total = math.fsum(taps)
    if abs(total - 1) > 1e-6:
        raise ValueError(f"window must sum to 1 within 1e-6, got a sum of {total:.9g}. Divide it by its sum.")
    return tuple(taps.tolist())


@functools.lru_cache
def _gaussian_taps(size: int, sigma: float) -> Taps:
    return tuple(gaussian_window(size, sigma).tolist())
