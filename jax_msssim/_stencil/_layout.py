"""How the hot loop lays out images.

Images are folded: the last spatial axis and the channels are one axis, so that a tap there is ``channels`` samples
apart and every row is long. Batch axes are never merged with others: a sharded batch stays put.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax

from jax_msssim._means import stacked
from jax_msssim._stencil._platforms import keep_apart
from jax_msssim._windows import Window

Stack = jax.Array | tuple[jax.Array, ...]  # arrays of one shape: along a first axis, or in a tuple


class Axis(NamedTuple):
    """A spatial axis of a folded image, counted from the end, and the distance between its samples."""

    place: int
    step: int


class Blocks(NamedTuple):
    """Blocks of ``rows`` of windows, out of ``total``. The last one is moved up to end with the image."""

    rows: int
    total: int

    def first(self, i: jax.Array) -> jax.Array:
        """The first row of block ``i``."""
        return lax.min(i * self.rows, self.total - self.rows)


class Layout(NamedTuple):
    """The window, the folded layout, the platform a program is for (None: undecided), and its blocks. Static."""

    window: Window
    channels: int
    platform: str | None = None
    blocks: Blocks | None = None

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The spatial axes, first to last."""
        return (*(Axis(place, 1) for place in range(-self.window.spatial_ndim, -1)), Axis(-1, self.channels))

    def unfold(self, x: jax.Array) -> jax.Array:
        """The last axis of a folded array as columns and channels."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.channels, self.channels)

    def count(self, shape: tuple[int, ...], less: int = 0) -> int:
        """The number of pixels in a folded image; of windows with the halo less along each axis."""
        return math.prod(shape[place] // step - less for place, step in self.axes)

    def stack(self, *arrays: jax.Array) -> Stack:
        """What a stage returns: on a CPU, whose XLA makes one loop of what computes a stack, that; else all arrays."""
        return stacked(*arrays) if self.platform == "cpu" else arrays

    def shifted(self, x: Stack, axis: Axis, which: int | None = None) -> list[jax.Array]:
        """For each tap the samples under it, of all windows along an axis; of a stack, those of ``which``."""
        if isinstance(x, tuple):
            return self.shifted(x[which or 0], axis)
        begin, end, place, extent = [0] * x.ndim, list(x.shape), axis.place % x.ndim, self.window.halo * axis.step
        if which is not None:  # in one slice with the shift: XLA would copy a slice that is sliced many times
            begin[0], end[0] = which, which + 1
        size, shifted = x.shape[place] - extent, []
        for start in range(0, extent + 1, axis.step):
            begin[place], end[place] = start, start + size
            part = lax.slice(x, begin, end)
            shifted.append(part if which is None else lax.squeeze(part, (0,)))
        return shifted

    def blur(self, x: jax.Array, axis: Axis) -> jax.Array:
        """The weighted sum over each window along an axis."""
        return weighted_sum(np.asarray(self.window.taps, x.dtype), self.shifted(x, axis))

    def start(self, x: jax.Array, i: jax.Array) -> list:
        """Where block ``i`` begins in an array."""
        place, step = self.axes[0]
        start: list = [0] * x.ndim
        start[place] = self.blocks.first(i) * step if self.blocks else 0
        return start

    def block(self, x: jax.Array, i: jax.Array | None) -> jax.Array:
        """The pixels of block ``i``, with those its windows share with the next (None: all pixels)."""
        if self.blocks is None or i is None:
            return x
        size = list(x.shape)
        size[self.axes[0].place] = (self.blocks.rows + self.window.halo) * self.axes[0].step
        return lax.dynamic_slice(x, self.start(x, i), size, allow_negative_indices=False)

    def stage(self, stage: Callable[..., Any], *args: Any) -> Any:
        """Calls a function under :func:`stage`, kept apart from others."""
        return keep_apart(self.platform, stage, self, *args)


def stage(*static_argnums: int) -> Callable[[Callable], Callable]:
    """Makes a function of a layout and arrays a stage, with more static arguments at these places."""
    return functools.partial(jax.jit, static_argnums=(0, *static_argnums))


def fold(x: jax.Array) -> jax.Array:
    """Columns and channels as one axis."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def unstacked(x: Stack) -> list[jax.Array]:
    """The arrays of a stack."""
    return [x[k] if isinstance(x, tuple) else lax.index_in_dim(x, k, 0, keepdims=False) for k in range(len(x))]


def weighted_sum(weights, parts) -> jax.Array:
    """The sum of the parts that are not None, which is 0, each times its weight."""
    # Operators would do, and take three times as long to trace.
    return functools.reduce(lax.add, [lax.mul(w, x) for w, x in zip(weights, parts, strict=True) if x is not None])
