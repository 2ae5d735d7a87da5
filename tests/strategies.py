"""Pairs of images for Hypothesis: what a scene shows, how the other image differs from it, and how bright both are."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

LARGEST = 1e15  # of a pixel and of max_val, by the library's contract
BATCH = 8  # pairs
FEW, MANY = 4, 12  # batches of a case, in the quick and in the slow part


class Content(NamedTuple):
    """A pair in units of ``max_val``, and ``max_val``."""

    scene: str
    change: str
    seed: int
    contrast: float
    offset: float  # added to both images
    shift: float  # added to the second
    jump: float  # added to half of both: with the middle pixel where positive, else the other half is so much darker
    max_val: float


SCENES = {
    "constant": lambda rng, position: np.full(position[0].shape, rng.random()),
    "noise": lambda rng, position: rng.random(position[0].shape),
    "ramp": lambda rng, position: sum(rng.random() * x / x.max(initial=1) for x in position),
    "edge": lambda rng, position: 1.0 * (position[0] >= position[0].shape[0] // 2),
    "impulse": lambda rng, position: 1.0 * (rng.random(position[0].shape) > 0.98),
    "checkerboard": lambda rng, position: sum(position) % 2.0,
    "black": lambda rng, position: 0.0 * position[0],
}
CHANGES = {
    "noisy": lambda rng, a: a + 10 ** rng.uniform(-7, 0) * (rng.random(a.shape) - 0.5),
    "same": lambda rng, a: a,
    "opposite": lambda rng, a: 1 - a,
    "negative": lambda rng, a: -a,
    "darker": lambda rng, a: 10 ** rng.uniform(-3, 0) * a,
    "other noise": lambda rng, a: rng.random(a.shape),
    "black": lambda rng, a: 0 * a,
}


def powers_of_ten(low, high):
    return st.floats(low, high).map(lambda exponent: 10.0**exponent)


def signed(strategy):
    return st.tuples(st.sampled_from([1, -1]), strategy).map(lambda pair: pair[0] * pair[1])


def contents(promised: bool = True) -> st.SearchStrategy[Content]:
    """Ordinary pairs, and pairs with an offset, with an offset of one of them, and with a bright or a dark half.

    ``promised``: those for which the library promises its accuracy. Else contrast, offsets and jumps of any size, and
    a ``max_val`` down to 1e-15: at that a square that is too small for a float32 number counts, 1e-38 of C1 = 1e-34.
    """
    contrast = [st.just(1.0), powers_of_ten(-2, 0.3), powers_of_ten(-4, 1)]
    any_level = powers_of_ten(-2, 2), powers_of_ten(-1, 15)
    levels = {"offset": any_level, "shift": any_level, "jump": any_level}
    if promised:
        jumps = powers_of_ten(-2, np.log10(500)), st.just(500.0)
        levels |= {"offset": (powers_of_ten(-2, 4),), "jump": jumps}
    else:
        contrast.append(powers_of_ten(-45, 15))

    def of_brightness(**brightness):
        return st.builds(
            Content,
            scene=st.sampled_from(tuple(SCENES)),
            change=st.sampled_from(tuple(CHANGES)),
            seed=st.integers(0, 2**32 - 1),
            contrast=st.one_of(*contrast),
            max_val=st.one_of(st.just(1.0), st.just(255.0), powers_of_ten(-14 if promised else -15, 15)),
            **dict.fromkeys(levels, st.just(0.0)) | brightness,
        )

    return st.one_of(of_brightness(), *(of_brightness(**{n: signed(st.one_of(*x))}) for n, x in levels.items()))


def pair(content: Content, shape) -> tuple[np.ndarray, np.ndarray]:
    """The two images, ``[*shape]`` with channels last, in float64."""
    rng = np.random.default_rng(content.seed)
    position = np.indices(shape).astype(float)
    a = SCENES[content.scene](rng, position)
    b = CHANGES[content.change](rng, a)
    half = position[0] < shape[0] // 2
    jump = content.jump * (half if content.jump < 0 else ~half)
    images = (
        content.max_val * (content.contrast * x + content.offset + shift + jump)
        for x, shift in ((a, 0), (b, content.shift))
    )
    return tuple(np.clip(x, -LARGEST, LARGEST) for x in images)


def holes(content: Content, shape) -> np.ndarray:
    """Pixels that count: all but some at random, one in two hundred or one in three, in each channel its own."""
    rng = np.random.default_rng(content.seed)
    return rng.random(shape) > rng.choice([0.005, 0.3])


def drawn(batch, shape):
    """The pairs of a batch as two float32 arrays, and ``max_val``."""
    a, b = (np.stack(images).astype(np.float32) for images in zip(*(pair(x, shape) for x in batch), strict=True))
    return a, b, np.array([content.max_val for content in batch], np.float32)


def limit(a, b, max_val, implementation, black=False, masked=False):
    """The largest error of a mean of terms of each pair, and of a term at a position; infinite where none is promised.

    It is 5e-6 for images whose contrast, ``r`` times ``max_val``, is that of pictures; ``black``: zeros surround them.
    Beyond, samples, measured from one pixel of their image, are sums and differences of up to ``2 r``, rounded by
    ``2 u r``, and ``l`` moves by 0.9 of that over ``k1`` at most: 1e-5 ``r``.

    Linear blurs measure from the mean of the image, which masked pixels hold, too, and that is rounded as the image is.
    They average squares of up to ``(2 r)^2`` and subtract them, a few roundings: ``4 u (2 r / k2)^2``. Of
    ``"matmul"`` nothing is promised for images brighter than 1e7 ``max_val``.
    """
    images = [np.pad(x.reshape(len(x), -1).astype(np.float64), [(0, 0), (0, int(black))]) for x in (a, b)]
    r, brightest = (x / max_val for x in (np.max([np.ptp(x, axis=1) for x in images], 0), np.abs(images).max((0, 2))))
    if implementation != "stencil" or masked:
        r = r + 4 * np.finfo(np.float32).eps * brightest
    if implementation != "stencil":
        promised = (r <= 10) & ((implementation == "conv") | (brightest <= 1e7))
        return np.where(promised, 5e-6 + 1e-5 * r + 4 * 6e-8 * (2 * r / 0.03) ** 2, np.inf)
    return np.where(r <= 1.5, 5e-6, np.where(r <= 600, 1e-5 * r, np.inf))


def for_all(check, examples, **options):
    """Runs ``check`` on so many batches, the same ones every time.

    But not the same for all time: Hypothesis takes some numbers from the code of the library.
    """
    run = settings(
        max_examples=examples,
        phases=[Phase.generate],  # a failure names its batch; making that smaller takes the oracle minutes
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    run(given(st.lists(contents(**options), min_size=BATCH, max_size=BATCH, unique=True))(check))()


def few_and_many(quick, every):
    """Some cases with few batches, and all cases with many in the slow part."""
    return [pytest.param(case, FEW, id=f"{case}-few") for case in quick] + [
        pytest.param(case, MANY, id=case, marks=pytest.mark.slow) for case in every
    ]
