"""One scale by the CUDA kernel: how an image is cut into blocks, and the call that XLA launches.

The kernel is PTX, made from ``scale.cu``, one text for each variant. XLA takes it as it is, compiled by the GPU's
driver. What it is for, sizes and taps, is written into the text.
"""

import functools
import gzip
import math
import re
import struct
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._scales import Scale
from jax_msssim._windows import Window

THREADS, NEIGHBOURS, HALO = 256, 5, 10  # of a block; windows that share a pivot; taps of a window but one
MULTIPROCESSORS = 132  # of an H100, each of which runs three blocks at once, or two with a gradient
TARGET = "__gpu$xla.gpu.ptx"


class Plan(NamedTuple):
    """How each image is cut: ``strips`` across by ``chunks`` down, of so many columns and rows.

    Those are of windows, and of pixels where there is a gradient.
    """

    strips: int
    chunks: int
    columns: int
    rows: int


def plan(images: int, height: int, width: int, channels: int, gradient: bool) -> Plan:
    """The cut that is done first."""
    margin = HALO if gradient else 0
    most = (THREADS // channels - HALO) // NEIGHBOURS * NEIGHBOURS - margin

    def cut(total: int, parts: int) -> int:  # whole groups of windows
        return math.ceil((math.ceil(total / parts) + margin) / NEIGHBOURS) * NEIGHBOURS - margin

    at_once = MULTIPROCESSORS * (2 if gradient else 3)
    down, across = (size - HALO + margin for size in (height, width))
    columns = cut(across, math.ceil(across / most))
    strips = math.ceil(across / columns)

    def rows_in_turn(chunks: int) -> int:  # of the blocks that run one after another in one place
        return math.ceil(images * strips * chunks / at_once) * (cut(down, chunks) + margin + HALO)

    rows = cut(down, min(range(1, max(down // 15, 1) + 1), key=rows_in_turn))
    return Plan(strips, math.ceil(down / rows), columns, rows)


class Sums(NamedTuple):
    """Of 1 - cs, or of 1 - l cs and of l cs, ``[..., 1 or 2, C, blocks]``, and of how many windows in each block."""

    sums: jax.Array
    counts: np.ndarray


def launch(scale: Scale, numbers: jax.Array, window: Window, similarity: bool, names: tuple[str, ...]):
    """The sums of each block, and gradient images by the named images, times the number of pixels.

    ``numbers`` holds C1, C2 and the centres of each image, ``[..., 1, 1, 4]``.
    """
    *batch, height, width, channels = scale.images[0].shape
    images = math.prod(batch)
    cut = plan(images, height, width, channels, bool(names))
    positions = (height - HALO) * (width - HALO)
    sign, factor = -1 if names == ("b",) else 1, height * width / positions
    params = struct.pack(
        "8i2f11f",
        *(height, width, channels, *cut, images if scale.centred else 0),
        *(sign, factor, *window.taps[0]),
    )
    sums = (*batch, 1 + similarity, channels, cut.strips * cut.chunks)
    types = [jax.ShapeDtypeStruct(shape, np.float32) for shape in (*[scale.images[0].shape] * len(names), sums)]
    name, one = f"{'similarity' if similarity else 'contrast_structure'}_{len(names)}", np.int32(1)
    *gradients, sums = jax.ffi.ffi_call(TARGET, types)(
        *((scale.images, scale.images) if scale.centred else scale.images),
        numbers,
        name=name,
        kernel_type="ptx",
        kernel_data=_program(name, params),
        grid_x=np.int32(images * cut.strips * cut.chunks),
        grid_y=one,
        grid_z=one,
        block_x=np.int32(THREADS),
        block_y=one,
        block_z=one,
        shared_mem_bytes=np.int32(0),
    )
    counts = np.expand_dims(_counts(cut, height, width), tuple(range(sums.ndim - 1)))
    return Sums(sums, counts), gradients


def means(scales: list[Sums]) -> list[jax.Array]:
    """Means over positions, ``[..., K, C]``, of each scale's sums: all in one kernel.

    As the mean of the first block, and what the others have above it: so roundings of equal sums do not add up.
    """
    longest = max(counts.size for _, counts in scales)
    first = [sums[..., :1] / counts[..., :1] for sums, counts in scales]
    above = []
    for mean, (sums, counts) in zip(first, scales, strict=True):
        margins = [(0, 0, 0)] * (sums.ndim - 1) + [(0, longest - counts.size, 0)]
        above.append(lax.pad((sums - mean * counts) / counts.sum(), np.float32(0), margins))
    ends = np.cumsum([x.shape[-3] for x in above])[:-1]
    whole = lax.concatenate(first, first[0].ndim - 3)[..., 0] + lax.concatenate(above, above[0].ndim - 3).sum(-1)
    return jnp.split(whole, ends, -2)


def _counts(cut: Plan, height: int, width: int) -> np.ndarray:
    rows, columns = (
        np.clip(size - HALO - each * np.arange(count), 0, each)
        for size, each, count in ((height, cut.rows, cut.chunks), (width, cut.columns, cut.strips))
    )
    return np.outer(rows, columns).ravel().astype(np.float32)


@functools.cache
def _program(name: str, params: bytes) -> str:
    with gzip.open(Path(__file__).parent / "ptx" / f"{name}.ptx.gz", "rt") as file:
        text = file.read()
    values = ", ".join(map(str, params))
    return re.sub(r"(\.const \.align 4 \.b8 params\[\d+\]);", rf"\1 = {{{values}}};", text, count=1)
