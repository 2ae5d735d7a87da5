"""The values of many pairs of image files: read ahead in threads, and computed in batches of one size.

A program is compiled for each size, which takes as long as computing hundreds of small images. So the first batch of a
size fixes how many images its program takes, and the batches after it are filled up to as many. Where many sizes have
few images each, those of similar size share a program: they are padded to one size, under a mask.
"""

import collections
import functools
import math
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_msssim import _scales
from jax_msssim._command_line.images import ImageError, luma, read_image
from jax_msssim._losses import ms_ssim_loss, ssim_loss
from jax_msssim._ms_ssim import fit_power_factors
from jax_msssim._options import WANG2003
from jax_msssim.conventions import Convention

_THREADS = min(8, os.cpu_count() or 1)
_READ_AHEAD = _THREADS + 4  # pairs
_BATCH_PIXELS = 2**20
_BATCH_IMAGES = 16
_WAITING_BYTES = 2**29
# A masked program takes as long to compile as two or three others.
_SIZES_TO_SHARE = 4
_SHARED_STEP = 256


class Pair(NamedTuple):
    """Two files to compare, and what to print for them."""

    name: str
    reference: Path
    test: Path


class Settings(NamedTuple):
    """How to compare."""

    convention: Convention
    luma: bool
    fit_scales: bool
    max_val: float | None


class Loaded(NamedTuple):
    """A pair in memory."""

    pair: Pair
    reference: np.ndarray
    test: np.ndarray
    max_val: float
    transparent: list[Path]
    """The files whose transparent pixels were laid over white."""
    weights: tuple[float, ...] | None
    """Of the scales of MS-SSIM; None: it has none."""


class Values(NamedTuple):
    """The metrics of a pair; those of MS-SSIM are None where it has none."""

    psnr: float
    ssim: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    dssim: float
    scales: int | None


class Result(NamedTuple):
    """What came out for a pair."""

    pair: Pair
    values: Values
    transparent: list[Path]


class Failure(NamedTuple):
    """A pair that could not be compared."""

    name: str
    reason: str
    """One line that names the file."""


def compare(pairs: Iterable[Pair], settings: Settings) -> Iterator[Result | Failure]:
    """One outcome for each pair, in the order in which they are ready."""
    batches = _Batches(settings)
    for loaded in _read_ahead(pairs, settings):
        if isinstance(loaded, Failure):
            yield loaded
        else:
            yield from batches.add(loaded)
    yield from batches.finish()


def load(pair: Pair, settings: Settings) -> Loaded:
    """Both images of a pair, as they will be compared.

    Raises:
      ImageError: a file cannot be read, or the two do not go together.
    """
    images = [read_image(path, settings.max_val) for path in (pair.reference, pair.test)]
    reference, test = (luma(image.pixels) if settings.luma else image.pixels for image in images)
    if reference.shape != test.shape:
        shapes = " and ".join(_size(x) for x in (reference, test))
        hint = "; --luma compares grey with RGB" if reference.shape[:2] == test.shape[:2] else ""
        raise ImageError(f"{pair.reference} and {pair.test}: they are {shapes}{hint}")
    if images[0].max_val != images[1].max_val:
        whites = " and ".join(f"{image.max_val:g}" for image in images)
        raise ImageError(f"{pair.reference} and {pair.test}: their white is {whites}: convert one; none is rescaled")
    convention = settings.convention
    taps = len(convention.ssim.get("window", range(11)))
    if min(reference.shape[:2]) < taps:
        raise ImageError(f"{pair.reference}: {_size(reference)} is too small: SSIM needs {taps} pixels a side")
    weights = None
    if convention.ms_ssim is not None:
        if settings.fit_scales:
            weights = fit_power_factors(reference.shape[:2], downsample=convention.ms_ssim["downsample"])
        elif min(reference.shape[:2]) >= smallest_side(convention):
            weights = WANG2003
    dtype = np.result_type(reference, test)
    transparent = [path for path, image in zip(pair[1:], images, strict=True) if image.transparent]
    return Loaded(pair, reference.astype(dtype), test.astype(dtype), images[0].max_val, transparent, weights)


def smallest_side(convention: Convention) -> int:
    """Of images that have the five scales of MS-SSIM."""
    assert convention.ms_ssim is not None
    return _scales.smallest_side(11, convention.ms_ssim["downsample"], len(WANG2003) - 1)


def _size(pixels: np.ndarray) -> str:
    height, width, channels = pixels.shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"


def _read_ahead(pairs: Iterable[Pair], settings: Settings) -> Iterator[Loaded | Failure]:
    def outcome(pair):
        try:
            return load(pair, settings)
        except ImageError as error:
            return Failure(pair.name, str(error))

    pool, waiting = ThreadPoolExecutor(_THREADS), collections.deque()
    try:
        for pair in pairs:
            waiting.append(pool.submit(outcome, pair))
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


class _Kind(NamedTuple):
    """What the images of a batch have in common."""

    shape: tuple[int, ...]
    dtype: np.dtype
    weights: tuple[float, ...] | None
    masked: bool = False

    def shared(self) -> "_Kind":
        """That of all similar sizes."""
        height, width = (math.ceil(side / _SHARED_STEP) * _SHARED_STEP for side in self.shape[:2])
        return self._replace(shape=(height, width, self.shape[-1]), masked=True)


class _Batches:
    """Pairs that wait for others of their size."""

    def __init__(self, settings: Settings):
        self._program = _program(settings.convention)
        self._maskable = _maskable(settings.convention)
        self._waiting: dict[_Kind, list[Loaded]] = {}
        self._images: dict[_Kind, int] = {}  # that the program of a kind takes

    def add(self, loaded: Loaded) -> Iterator[Result]:
        kind = _Kind(loaded.reference.shape, loaded.reference.dtype, loaded.weights)
        group = self._waiting.setdefault(kind, [])
        group.append(loaded)
        if len(group) == self._images.get(kind, _full_batch(kind)):
            yield from self._run(kind, self._waiting.pop(kind))
        elif sum(2 * loaded.reference.nbytes for group in self._waiting.values() for loaded in group) > _WAITING_BYTES:
            yield from self.finish()

    def finish(self) -> Iterator[Result]:
        waiting, self._waiting = self._waiting, {}
        sharing = collections.Counter(kind.shared() for kind in waiting if kind not in self._images)
        shared = collections.defaultdict(list)
        for kind, group in waiting.items():
            together = kind.shared()
            many = together in self._images or sharing[together] >= _SIZES_TO_SHARE
            if kind not in self._images and self._maskable and many:
                shared[together] += group
            else:
                yield from self._run(kind, group)
        for kind, group in shared.items():
            yield from self._run(kind, group)

    def _run(self, kind: _Kind, group: list[Loaded]) -> Iterator[Result]:
        images = self._images.setdefault(kind, min(len(group), _full_batch(kind)))
        for start in range(0, len(group), images):
            batch = group[start : start + images]
            yield from self._measure(kind, batch + batch[-1:] * (images - len(batch)))[: len(batch)]

    def _measure(self, kind: _Kind, batch: list[Loaded]) -> list[Result]:
        a, b = (np.zeros((len(batch), *kind.shape), kind.dtype) for _ in range(2))
        for i, loaded in enumerate(batch):
            height, width, _ = loaded.reference.shape
            a[i, :height, :width], b[i, :height, :width] = loaded.reference, loaded.test
        sizes = np.array([loaded.reference.shape[:2] for loaded in batch], np.int32)
        max_val = np.array([loaded.max_val for loaded in batch], np.float32)
        columns = self._program(a, b, max_val, sizes, weights=kind.weights, masked=kind.masked)
        errors, losses, ms_losses = (np.asarray(x, np.float64) for x in columns)
        results = []
        for loaded, error, loss, ms_loss in zip(batch, errors, losses, ms_losses, strict=True):
            scales = None if kind.weights is None else len(kind.weights)
            ms_ssim, ms_ssim_db = (None, None) if scales is None else (1 - ms_loss, _decibels(ms_loss))
            values = Values(_decibels(error), 1 - loss, ms_ssim, ms_ssim_db, loss / 2, scales)
            results.append(Result(loaded.pair, values, loaded.transparent))
        return results


def _full_batch(kind: _Kind) -> int:
    return max(1, min(_BATCH_IMAGES, _BATCH_PIXELS // math.prod(kind.shape[:2])))


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def _maskable(convention: Convention) -> bool:
    """Whether padded images have the values of the images themselves."""
    options = [convention.ssim, convention.ms_ssim or {}]
    return all(
        option.get("padding", "valid") == "valid" and option.get("downsample", "edge") in ("edge", "floor")
        for option in options
    )


def _program(convention: Convention):
    @functools.partial(jax.jit, static_argnames=("weights", "masked"))
    def program(a, b, max_val, sizes, *, weights, masked):
        """The mean squared error over ``max_val**2``, ``1 - SSIM`` and ``1 - MS-SSIM`` of each pair."""
        _, height, width, channels = a.shape
        where = None
        if masked:
            rows, columns = (
                jnp.arange(n)[None] < size[:, None] for n, size in zip((height, width), sizes.T, strict=True)
            )
            where = (rows[:, :, None] & columns[:, None, :])[..., None]
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        squares = jnp.square((a - b) / max_val[:, None, None, None])  # zeros in the margins
        samples = channels * sizes.prod(-1).astype(jnp.float32)
        error = squares.sum((-2, -1)).sum(-1) / samples
        loss = ssim_loss(a, b, max_val=max_val, where=where, **convention.ssim)
        if weights is None:
            return error, loss, jnp.full_like(loss, jnp.nan)
        options = {"negative": "relu", **(convention.ms_ssim or {})}
        return error, loss, ms_ssim_loss(a, b, max_val=max_val, where=where, power_factors=weights, **options)

    return program
