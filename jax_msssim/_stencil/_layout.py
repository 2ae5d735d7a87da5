"""How the hot loop lays out images, and the stages that it is made of.

Images are folded: the last spatial axis and the channels are one axis, so that a tap there is ``channels`` samples
apart and every row is long. Batch axes are never merged with others: a sharded batch stays put. A stack is arrays of
one shape along a new first axis.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

from jax_msssim._means import below
from jax_msssim._windows import Window

# The place of a spatial axis of a folded image, from the end, as its window has among the windows; and how far its
# samples are apart.
Axis = tuple[int, int]


class Blocks(NamedTuple):
    """So many blocks of ``rows`` of windows, out of ``total``. The last one is moved up to end with the image."""

    number: int
    rows: int
    total: int
    lines: int


class Layout(NamedTuple):
    """The window, the folded layout, the platform a program is for (None: undecided), and its blocks. Static.

    ``sums``: moments are carried as sums of samples and of their squares.
    """

    window: Window
    channels: int
    platform: str | None = None
    blocks: Blocks | None = None
    sums: bool = False

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The spatial axes, first to last."""
        return (*((place, 1) for place in range(-self.window.spatial_ndim, -1)), (-1, self.channels))

    def unfold(self, x: jax.Array) -> jax.Array:
        """The last axis of a folded array as columns and channels."""
        return x.reshape(*x.shape[:-1], x.shape[-1] // self.channels, self.channels)

    def pixels(self, shape: tuple[int, ...]) -> int:
        """Their number in a folded image."""
        return math.prod(shape[place] // step for place, step in self.axes)

    def windows(self, shape: tuple[int, ...]) -> int:
        """Their number in a folded image."""
        return math.prod(shape[place] // step - self.window.halo[place] for place, step in self.axes)

    def shifted(self, x: jax.Array, axis: Axis, which: int | None = None) -> list[jax.Array]:
        """For each tap the samples under it, of all windows along an axis; of a stack, those of ``which``."""
        begin, end, (place, step) = [0] * x.ndim, list(x.shape), axis
        if which is not None:  # in one slice with the shift: XLA would copy a slice that is sliced many times
            begin[0], end[0] = which, which + 1
        extent, shifted = self.window.halo[place] * step, []
        for start in range(0, extent + 1, step):
            begin[place], end[place] = start, x.shape[place] - extent + start
            part = lax.slice(x, begin, end)
            shifted.append(part if which is None else lax.squeeze(part, (0,)))
        return shifted

    def blur(self, x: jax.Array, axis: Axis) -> jax.Array:
        """The weighted sum over each window along an axis."""
        return weighted_sum(np.asarray(self.window.taps[axis[0]], x.dtype), self.shifted(x, axis))

    def inside(self, sizes: Sequence[jax.Array], like: jax.Array, i: jax.Array | int) -> jax.Array:
        """Which samples of block ``i``, an array like this, belong to images of these sizes."""
        limits = [size * step for size, (_, step) in zip(sizes, self.axes, strict=True)]
        if self.blocks is not None:
            _, rows, total, _ = self.blocks
            limits[0] = limits[0] - lax.min(i * rows, np.int32(total - rows)) * self.axes[0][1]
        return below(like.shape, [place for place, _ in self.axes], limits)

    def block(self, x: jax.Array, i: jax.Array) -> jax.Array:
        """The pixels of block ``i``, with those its windows share with the next; all pixels if there are no blocks."""
        if self.blocks is None:
            return x
        (place, step), rows = self.axes[0], self.blocks.rows
        size = (rows + self.window.halo[place]) * step
        return lax.dynamic_slice_in_dim(x, i * rows * step, size, place, allow_negative_indices=False)


def stage(*static_argnums: int):
    """Makes a function of a layout and arrays a stage: XLA does not fuse it with others. Places of static arguments."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        compiled = jax.jit(function, static_argnums=(0, *static_argnums))

        @functools.wraps(function)
        def call(layout: Layout, *args: Any) -> Any:
            if layout.platform == "cpu":
                # XLA fuses a pass over an axis into the next, and computes it again for each tap of that. A barrier is
                # gone before.
                with set_xla_metadata(inlineable="false"):
                    return compiled(layout, *args)
            return lax.optimization_barrier(compiled(layout, *args))

        return call

    return decorate


def fold(x: jax.Array) -> jax.Array:
    """Columns and channels as one axis."""
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def weighted_sum(weights, parts) -> jax.Array:
    """The sum of the parts that are not None, which is 0, each times its weight."""
    # Operators would do, and take three times as long to trace.
    return functools.reduce(lax.add, [lax.mul(w, x) for w, x in zip(weights, parts, strict=True) if x is not None])
