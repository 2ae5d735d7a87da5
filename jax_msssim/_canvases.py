"""Images of many sizes in batches of few shapes.

A program is compiled for each shape, which takes as long as computing hundreds of images. So images share *canvases*,
arrays that they fill in part: few canvases where there are few images, more as there are more of them.
"""

import collections
import math
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

Shape = tuple[int, ...]

# In the time that compiling MS-SSIM takes, a CPU computes it for so many samples: pixels times channels.
SAMPLES_TO_COMPILE = 2e8
# On a CPU larger batches only need more memory, each time anew. The others have more to do at once.
SAMPLES_IN_BATCH = {"cpu": 2**20, "other": 2**25}
# So many pairs are held while canvases are chosen for them, or fewer that are large.
PAIRS_HELD, BYTES_HELD = 64, 2**28
UNIFORM = 4  # so many images of one shape, and none like it, have a canvas of that shape


class Pair(NamedTuple):
    """Two images ``[*spatial, C]`` of one shape, and what pairs must have in common to share a batch."""

    position: int
    a: np.ndarray
    b: np.ndarray
    kind: Any = None

    @property
    def shape(self) -> Shape:
        """The spatial axes."""
        return self.a.shape[:-1]


def pair_of(position: int, a: np.ndarray, b: np.ndarray, kind: Any = None, turn: bool = True) -> Pair:
    """Two images, turned to lie if they stand, so that both ways share canvases, unless the function minds."""
    turn = turn and a.ndim == 3 and a.shape[0] > a.shape[1]
    a, b = (np.swapaxes(x, 0, 1) if turn else x for x in (a, b))
    return Pair(position, a, b, kind)


class Batch(NamedTuple):
    """Pairs on canvases, ``[N, *spatial, C]``, and the sides of each, ``[N, spatial_ndim]``; it may be filled up."""

    pairs: list[Pair]
    a: np.ndarray
    b: np.ndarray
    sizes: np.ndarray


def in_batches(
    pairs: Iterable[Pair], compute: Callable[[Batch], Any], batch_size: int
) -> Iterator[tuple[Pair, np.ndarray]]:
    """Each pair and its row of what ``compute`` returns, in the order in which they are ready.

    While a batch is computed, the next one is read, if ``compute`` does not wait for its result.
    """
    canvases, held, running = _Canvases(batch_size), [], collections.deque()

    def rows(batches: Iterable[Batch], at_once: int) -> Iterator[tuple[Pair, np.ndarray]]:
        for batch in batches:
            running.append((batch.pairs, compute(batch)))
            while len(running) > at_once:
                of, values = running.popleft()
                yield from zip(of, np.asarray(values), strict=False)

    for pair in pairs:
        canvases.see(pair)
        held.append(pair)
        if len(held) == PAIRS_HELD or sum(x.a.nbytes + x.b.nbytes for x in held) > BYTES_HELD:
            yield from rows(canvases.batches(held, leave=PAIRS_HELD // 2), at_once=1)
    yield from rows(canvases.batches(held), at_once=0)


class Seen(NamedTuple):
    """How many images there were of about one shape, and the shape, rounded up unless it is that of all of them."""

    number: int
    shape: Shape


class _Canvases:
    """The canvas of each pair, and how many pairs a batch takes."""

    def __init__(self, batch_size: int):
        self.batch_size = batch_size
        self.seen: dict[Hashable, dict[Shape, Seen]] = collections.defaultdict(dict)  # by rounded shapes
        self.lengths: dict[Hashable, dict[Shape, int]] = collections.defaultdict(dict)  # of batches, by their canvas

    def see(self, pair: Pair) -> None:
        seen, about = self.seen[_group(pair)], rounded(pair.shape)
        number, shape = seen.get(about, Seen(0, pair.shape))
        seen[about] = Seen(number + 1, shape if shape == pair.shape else about)

    def batches(self, held: list[Pair], leave: int = 0) -> Iterator[Batch]:
        """Takes pairs away in batches that are full, and in others until no more than ``leave`` are left."""
        waiting = collections.defaultdict(list)
        held.sort(key=lambda pair: pair.shape)  # rows beyond all images of a batch take no time
        canvases = {
            group: choose(self.seen[group], self.lengths[group], group[-1]) for group in {_group(pair) for pair in held}
        }
        for pair in held:
            group = _group(pair)
            waiting[group, canvases[group][rounded(pair.shape)]].append(pair)
        held.clear()
        for (group, canvas), pairs in waiting.items():
            length = self._length(group, canvas, len(pairs))
            while len(pairs) >= length:
                yield batch_of(pairs[:length], canvas, length)
                del pairs[:length]
        for (group, canvas), pairs in sorted(waiting.items(), key=lambda item: -len(item[1])):
            if pairs and sum(map(len, waiting.values())) > leave:
                yield batch_of(pairs, canvas, self._length(group, canvas, len(pairs)))
                pairs.clear()
        held.extend(pair for pairs in waiting.values() for pair in pairs)

    def _length(self, group, canvas: Shape, pairs: int) -> int:
        samples = SAMPLES_IN_BATCH["cpu" if jax.default_backend() == "cpu" else "other"]
        most = max(min(self.batch_size, samples // (math.prod(canvas) * group[-1])), 1)
        return self.lengths[group].setdefault(canvas, min(most, 2 ** (pairs - 1).bit_length()))


def _group(pair: Pair) -> tuple:
    return pair.kind, pair.a.dtype.str, pair.b.dtype.str, pair.a.shape[-1]


def batch_of(pairs: list[Pair], canvas: Shape, length: int) -> Batch:
    """A batch of so many pairs, black ones after those there are."""
    a, b = (on_canvases(images, canvas, length) for images in ([pair.a for pair in pairs], [pair.b for pair in pairs]))
    sizes = [pair.shape for pair in pairs] + [canvas] * (length - len(pairs))
    return Batch(pairs, a, b, np.array(sizes, np.int32))


def on_canvases(images: Sequence[np.ndarray], canvas: Shape, length: int) -> np.ndarray:
    """Images of one type and number of channels in an array ``[length, *canvas, C]`` that is 0 beyond them."""
    array = np.zeros((length, *canvas, images[0].shape[-1]), images[0].dtype)
    for here, image in zip(array, images, strict=False):
        here[tuple(map(slice, image.shape[:-1]))] = image
    return array


def rounded(shape: Shape) -> Shape:
    """Sides up to a quarter longer, of one of four lengths between powers of two, or of a multiple of 8."""
    steps = [max(8, 2 ** ((side - 1).bit_length() - 3)) for side in shape]
    return tuple(-(-side // step) * step for side, step in zip(shape, steps, strict=True))


def choose(seen: Mapping[Shape, Seen], compiled: Collection[Shape], channels: int) -> dict[Shape, Shape]:
    """The canvas of each rounded shape: those compiled, one that the others fit into, and more of them while that pays.

    It pays if to compute all images seen so far would have taken longer by as much as compiling takes.
    """
    own = [of.shape if of.number >= UNIFORM else about for about, of in seen.items()]
    numbers, shapes = np.array([of.number for of in seen.values()]), np.array(own)
    canvases = np.array([*compiled, *own, rounded(tuple(shapes.max(0).tolist()))])
    fits = np.all(canvases[:, None] >= shapes, -1)
    samples = np.where(fits, canvases.prod(-1, keepdims=True) * channels, np.inf)  # [canvases, shapes]
    chosen = [*range(len(compiled))]
    homeless = ~fits[chosen].any(0)
    if homeless.any():
        chosen.append(int(samples[:, homeless].sum(-1).argmin()))
    while True:
        least = samples[chosen].min(0)
        saved = (np.maximum(least - samples, 0) * numbers).sum(-1)
        if saved.max() <= SAMPLES_TO_COMPILE:
            break
        chosen.append(int(saved.argmax()))
    best = np.array(chosen)[samples[chosen].argmin(0)]
    return {about: tuple(canvases[i].tolist()) for about, i in zip(seen, best, strict=True)}
