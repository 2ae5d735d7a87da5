"""The values of many pairs of image files: read ahead in threads, and computed in batches."""

import collections
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_msssim import _scales
from jax_msssim._canvases import Batch, in_batches, pair_of
from jax_msssim._canvases import Pair as Images
from jax_msssim._command_line.images import Image, ImageError, luma, read_image
from jax_msssim._command_line.programs import Programs, quiet
from jax_msssim._losses import ms_ssim_loss, ssim_loss
from jax_msssim._ms_ssim import fit_power_factors, one_minus_both
from jax_msssim._options import WANG2003, SSIMOptions, evaluate, prepare_ms_ssim
from jax_msssim.conventions import Convention

_THREADS = min(8, os.cpu_count() or 1)
_READ_AHEAD = _THREADS + 4  # pairs
_BATCH_SIZE = 16


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
    cache: Path | None = None
    """A folder that keeps programs."""
    network: Callable | None = None
    """Of DISTS."""


class Transparent(NamedTuple):
    """The files of a pair that are not opaque, and what they were laid over: ``"white"`` or ``"black"``."""

    files: list[Path]
    ground: str | None


class Loaded(NamedTuple):
    """A pair in memory."""

    pair: Pair
    reference: np.ndarray
    test: np.ndarray
    max_val: float
    transparent: Transparent
    weights: tuple[float, ...] | None
    """Of the scales of MS-SSIM; None: it has none."""


class Values(NamedTuple):
    """The metrics of a pair; those of MS-SSIM are None where it has none."""

    psnr: float
    ssim: float
    ms_ssim: float | None
    ms_ssim_db: float | None
    dssim: float
    dists: float | None
    """None: there is no network."""
    scales: int | None


class Result(NamedTuple):
    """What came out for a pair."""

    pair: Pair
    values: Values
    transparent: Transparent


class Failure(NamedTuple):
    """A pair that could not be compared."""

    name: str
    reason: str
    """One line that names the file."""


def compare(pairs: Iterable[Pair], settings: Settings) -> Iterator[Result | Failure]:
    """One outcome for each pair, in the order in which they are ready."""
    program = Programs(_program(settings.convention), repr(settings.convention), settings.cache)
    failures: list[Failure] = []
    read: dict[int, Loaded] = {}  # without their pixels

    def images() -> Iterator[Images]:
        for position, outcome in enumerate(_read_ahead(pairs, settings)):
            if isinstance(outcome, Failure):
                failures.append(outcome)
                continue
            a, b = outcome.reference, outcome.test
            read[position] = outcome._replace(reference=a[:0], test=b[:0])
            # A network tells rows from columns.
            yield pair_of(position, a, b, (outcome.max_val, outcome.weights), turn=settings.network is None)

    def compute(batch: Batch) -> jax.Array:
        max_val, weights = batch.pairs[0].kind
        values = program(batch.a, batch.b, batch.sizes, np.float32(max_val), weights=weights)
        if settings.network is None:
            return values
        from jax_msssim.deep import dists_loss  # which needs Flax

        a, b = (np.repeat(x, 3, -1) if x.shape[-1] == 1 else x for x in (batch.a, batch.b))
        with quiet():
            distance = dists_loss(a, b, network=settings.network, max_val=max_val, sizes=batch.sizes)
        return jnp.concatenate([values, distance[:, None]], -1)

    for pair, row in in_batches(images(), compute, _BATCH_SIZE):
        yield from failures
        failures.clear()
        yield _result(read.pop(pair.position), *row.tolist())
    yield from failures


def _result(loaded: Loaded, error: float, loss: float, ms_loss: float, dists: float | None = None) -> Result:
    scales = None if loaded.weights is None else len(loaded.weights)
    ms_ssim, ms_ssim_db = (None, None) if scales is None else (1 - ms_loss, _decibels(ms_loss))
    values = Values(_decibels(error), 1 - loss, ms_ssim, ms_ssim_db, loss / 2, dists, scales)
    return Result(loaded.pair, values, loaded.transparent)


def _decibels(error: float) -> float:
    return -10 * math.log10(error) if error > 0 else math.inf


def load(pair: Pair, settings: Settings) -> Loaded:
    """Both images of a pair, as they will be compared.

    Raises:
      ImageError: a file cannot be read, or the two do not go together.
    """
    images = [read_image(path, settings.max_val) for path in (pair.reference, pair.test)]
    if settings.luma:
        images = [image._replace(pixels=luma(image.pixels)) for image in images]
    reference, test = (image.pixels for image in images)
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
    if convention.ms_ssim:
        if settings.fit_scales:
            weights = fit_power_factors(reference.shape[:2], downsample=convention.ms_ssim["downsample"])
        elif min(reference.shape[:2]) >= smallest_side(convention):
            weights = WANG2003
    reference, test, ground = _laid_over(*images)
    files = [path for path, image in zip(pair[1:], images, strict=True) if image.opacity is not None]
    dtype = np.result_type(reference, test)
    arrays = reference.astype(dtype), test.astype(dtype)
    return Loaded(pair, *arrays, images[0].max_val, Transparent(files, ground if files else None), weights)


def _laid_over(a: Image, b: Image) -> tuple[np.ndarray, np.ndarray, str]:
    """Both over white; or, of two whose opacity differs, over black where they differ more there."""
    over_white = a.over(a.max_val), b.over(b.max_val)
    if a.opacity is None or b.opacity is None or np.array_equal(a.opacity, b.opacity):
        return *over_white, "white"
    over_black = a.over(0), b.over(0)
    white, black = (float(np.square(x - y).sum(dtype=np.float64)) for x, y in (over_white, over_black))
    return (*over_black, "black") if black > white else (*over_white, "white")


def smallest_side(convention: Convention) -> int:
    """Of images that have the five scales of MS-SSIM."""
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


def _program(convention: Convention) -> Callable[..., jax.Array]:
    of_first_scale = {name: x for name, x in convention.ms_ssim.items() if name in SSIMOptions.__annotations__}
    alike = of_first_scale == convention.ssim

    def program(a, b, sizes, max_val, *, weights):
        """The mean squared error over ``max_val**2``, ``1 - SSIM`` and ``1 - MS-SSIM`` of each pair, ``[N, 3]``."""
        squares = jnp.square((a.astype(jnp.float32) - b.astype(jnp.float32)) / max_val)  # zeros beyond an image
        samples = a.shape[-1] * sizes.prod(-1).astype(jnp.float32)
        error = squares.sum((-2, -1)).sum(-1) / samples
        images = {"max_val": max_val, "sizes": sizes}
        if weights is None:
            loss = ssim_loss(a, b, **images, **convention.ssim)
            return jnp.stack([error, loss, jnp.full_like(loss, jnp.nan)], -1)
        of_scales = {**images, "power_factors": weights, "negative": "relu", **convention.ms_ssim}
        if alike and len(weights) > 1:
            losses = evaluate(one_minus_both, *prepare_ms_ssim(("a", "b"), a, b, **of_scales))
        else:
            losses = ssim_loss(a, b, **images, **convention.ssim), ms_ssim_loss(a, b, **of_scales)
        return jnp.stack([error, *losses], -1)

    return program
