"""Test sets: images of any sizes, padded or evaluated without a compilation for each."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from jax_msssim._canvases import Batch, Pair, in_batches, on_canvases, pair_of
from jax_msssim._checks import AXES, as_array, check_count, check_images


class PaddedImages(NamedTuple):
    """Images of several sizes in one batch, ``[N, *spatial, C]``, and their true sides, ``[N, spatial_ndim]``."""

    batch: np.ndarray
    sizes: np.ndarray


def pad_images(images: Sequence[ArrayLike], *, multiple: int = 128) -> PaddedImages:
    """Images of several sizes as one batch, for ``sizes=``.

    Args:
      images: at least one array ``[H, W, C]`` (``[T, C]``, ``[D, H, W, C]``), of one type and number of channels.
      multiple: the sides of the batch are the longest ones rounded up to a multiple of it. So other images of about
        these sizes make a batch of the same shape, which the same compiled program serves.

    Returns:
      ``(batch, sizes)``, NumPy arrays: ``[N, H', W', C]``, 0 beyond each image, and int32 ``[N, 2]``.

    Raises:
      TypeError: an image is not an array, or their types differ.
      ValueError: there are no images, or their ranks or numbers of channels differ.

    Examples:
      >>> import numpy as np
      >>> batch, sizes = pad_images([np.zeros((200, 300, 3)), np.ones((260, 180, 3))])
      >>> batch.shape
      (2, 384, 384, 3)
      >>> sizes
      array([[200, 300],
             [260, 180]], dtype=int32)
    """
    multiple = check_count("multiple", multiple)
    arrays = [np.asarray(as_array(f"images[{i}]", x, "no mask")) for i, x in enumerate(images)]
    if not arrays:
        raise ValueError("images must hold at least one image, got none.")
    first = arrays[0]
    for i, x in enumerate(arrays):
        if x.ndim - 1 not in AXES:
            raise ValueError(f"images[{i}] must have shape [H, W, C], channels last, got {list(x.shape)}.")
        if x.ndim != first.ndim or x.shape[-1] != first.shape[-1]:
            raise ValueError(
                f"images[{i}] must have the rank and channels of images[0], {list(first.shape)}, got {list(x.shape)}."
            )
        if x.dtype != first.dtype:
            raise TypeError(f"images[{i}] must have the type of images[0], {first.dtype}, got {x.dtype}.")
    sizes = np.array([x.shape[:-1] for x in arrays], np.int32)
    sides = -(-sizes.max(0) // multiple) * multiple
    return PaddedImages(on_canvases(arrays, tuple(sides.tolist()), len(arrays)), sizes)


def evaluate(
    function: Callable[..., jax.Array],
    pairs: Iterable[tuple[ArrayLike, ArrayLike]],
    *,
    batch_size: int = 16,
    progress: bool = False,
    **options: Any,
) -> np.ndarray:
    """The value of each pair of a test set of any sizes.

    Few programs are compiled, whatever the number of sizes: images of several sizes share an array that they fill in
    part (``sizes``), upright ones with those that lie. Pairs are read once and not held: memory does not depend on
    their number.

    Args:
      function: :func:`ssim`, :func:`ms_ssim`, :func:`ms_ssim_db`, a loss, or any function like them: of two batches of
        images and of ``sizes``, with one value per image, and which treats rows and columns alike.
        :func:`jax_msssim.deep.dists_loss`, with ``network=``, does not, and its images are left upright.
      pairs: an iterable of pairs of images, each of one shape ``[H, W, C]``, which may be another for the next pair. A
        generator that reads files, say. An array may be filled anew for the next pair.
      batch_size: the most pairs in a batch. Of large images there are fewer.
      progress: shows a bar on stderr. It needs rich.
      **options: keyword arguments of the function, the same for all pairs.

    Returns:
      NumPy array ``[number of pairs]``, in the order of the pairs: float32, or float64 if an image is.

    Raises:
      TypeError, ValueError: as the function does; the error tells the position of the pair, from 0. What reading the
        pairs raises has a note of the position.

    Examples:
      >>> import numpy as np
      >>> from jax_msssim import ssim
      >>> rng = np.random.default_rng(0)
      >>> images = [rng.random((height, 40, 3), np.float32) for height in (33, 40, 57)]
      >>> evaluate(ssim, ((image, image**2) for image in images)).round(2)
      array([0.89, 0.88, 0.89], dtype=float32)
    """
    batch_size = check_count("batch_size", batch_size)
    spatial_ndim = options.get("spatial_ndim", 2)
    turn = "network" not in _keywords(function) | options.keys()  # networks tell rows from columns

    def compute(batch: Batch) -> jax.Array:
        try:
            found = function(batch.a, batch.b, sizes=batch.sizes, **options)
        except (TypeError, ValueError):
            for pair in batch.pairs:  # the one that it is about
                with _named(pair.position):
                    jax.eval_shape(functools.partial(function, **options), pair.a, pair.b)
            raise
        if getattr(found, "shape", None) != batch.a.shape[:1]:
            raise TypeError(f"function must return one value per image, as ssim and the losses do, got {function}.")
        return found

    values = {
        pair.position: value
        for pair, value in in_batches(_read(pairs, spatial_ndim, turn, progress), compute, batch_size)
    }
    return np.array([values[i] for i in range(len(values))], None if values else np.float32)


def _keywords(function: Callable[..., Any]) -> set[str]:
    """Those that are set already."""
    if not isinstance(function, functools.partial):
        return set()
    return function.keywords.keys() | _keywords(function.func)


def _read(pairs: Iterable[Any], spatial_ndim: int, turn: bool, progress: bool) -> Iterator[Pair]:
    """Checked copies, since a reader may use its arrays again."""
    reader = iter(_with_bar(pairs) if progress else pairs)
    for position in itertools.count():
        try:
            pair = next(reader)
        except StopIteration:
            return
        except Exception as error:
            error.add_note(f"evaluate() was reading pair {position}.")
            raise
        with _named(position):
            if len(pair) != 2:
                raise ValueError(f"must be two images, got {len(pair)}.")
            a, b = (as_array(name, x, "no mask") for name, x in zip("ab", pair, strict=True))
            check_images(("a", "b"), a, b, spatial_ndim)
            if a.ndim != spatial_ndim + 1:
                raise ValueError(f"must be one image each, [{AXES[spatial_ndim]}], got shape {list(a.shape)}.")
        yield pair_of(position, np.array(a), np.array(b), turn=turn)


@contextlib.contextmanager
def _named(position: int) -> Iterator[None]:
    """Errors tell which pair they are about."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(f"pair {position}: {error}") from error


def _with_bar(pairs: Iterable[Any]) -> Iterable[Any]:
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError as error:
        raise ImportError("progress=True needs rich: pip install rich.") from error
    total = len(pairs) if isinstance(pairs, Sized) else None
    return track(pairs, "evaluating", total, console=Console(stderr=True))
