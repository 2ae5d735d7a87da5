"""Pairs of images for Hypothesis: what a scene shows, how the other image differs from it, and how bright both are."""

from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

LARGEST = 1e15  # of a pixel and of max_val, by the library's contract


class Content(NamedTuple):
    """A pair in units of ``max_val``, and ``max_val``."""

    scene: str
    change: str
    seed: int
    contrast: float
    offset: float  # added to both images
    shift: float  # added to the second
    jump: float  # added to half of both
    max_val: float


def _noise(rng, position):
    return rng.random(position[0].shape)


SCENES = {
    "constant": lambda rng, position: np.full(position[0].shape, rng.random()),
    "noise": _noise,
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


def contents(scenes=tuple(SCENES), changes=tuple(CHANGES)) -> st.SearchStrategy[Content]:
    """Ordinary pairs, and pairs with an offset, with an offset of one of them, and with a bright half."""

    def of_brightness(**brightness):
        brightness = {name: st.just(0.0) for name in ("offset", "shift", "jump")} | brightness
        return st.builds(
            Content,
            scene=st.sampled_from(scenes),
            change=st.sampled_from(changes),
            seed=st.integers(0, 2**32 - 1),
            contrast=st.one_of(st.just(1.0), powers_of_ten(-2, 0.3), powers_of_ten(-4, 1), powers_of_ten(-45, 15)),
            max_val=st.one_of(st.just(1.0), st.just(255.0), powers_of_ten(-15, 15)),
            **brightness,
        )

    level = signed(st.one_of(powers_of_ten(-2, 2), powers_of_ten(-1, 15)))
    return st.one_of(
        of_brightness(), of_brightness(offset=level), of_brightness(shift=level), of_brightness(jump=level)
    )


def pair(content: Content, shape) -> tuple[np.ndarray, np.ndarray]:
    """The two images, ``[*shape]`` with channels last, in float64."""
    rng = np.random.default_rng(content.seed)
    position = np.indices(shape).astype(float)
    a = SCENES[content.scene](rng, position)
    b = CHANGES[content.change](rng, a)
    half = 1.0 * (position[0] < shape[0] // 2)
    images = (
        content.max_val * (content.contrast * x + content.offset + shift + content.jump * half)
        for x, shift in ((a, 0), (b, content.shift))
    )
    return tuple(np.clip(x, -LARGEST, LARGEST) for x in images)


def holes(content: Content, shape) -> np.ndarray:
    """Pixels that count: all but some at random, one in two hundred or one in three, in each channel its own."""
    rng = np.random.default_rng(content.seed)
    return rng.random(shape) > rng.choice([0.005, 0.3])


def batches(size, strategy) -> st.SearchStrategy[list[Content]]:
    return st.lists(strategy, min_size=size, max_size=size, unique=True)
