"""Crops of photographs for the examples. They come with scikit-image; none is downloaded."""

import functools

import numpy as np
import skimage.data

TRAINING = ("astronaut", "coffee", "immunohistochemistry", "rocket")
HELD_OUT = ("chelsea",)


@functools.cache
def photograph(name: str) -> np.ndarray:
    """A photograph ``[H, W, 3]``, uint8."""
    return getattr(skimage.data, name)()


def random_crops(
    rng: np.random.Generator, count: int, side: int, names: tuple[str, ...] = TRAINING
) -> np.ndarray:
    """Squares from anywhere in the photographs: ``[count, side, side, 3]``, float32 from 0 to 1."""
    crops = []
    for _ in range(count):
        pixels = photograph(rng.choice(names))
        top, left = (rng.integers(length - side + 1) for length in pixels.shape[:2])
        crops.append(pixels[top : top + side, left : left + side])
    return np.stack(crops).astype(np.float32) / 255
