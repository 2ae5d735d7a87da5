"""VGG16 with weights by formula, images and maps: the same numbers in any language, to which golden values belong."""

import functools
import itertools

import numpy as np

PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # of the convolutions in torchvision's features
CHANNELS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
OF_MAPS = (3, 64, 128, 256, 512, 512)


def noise(n: int, seed: int) -> np.ndarray:
    """Uniform in (-1, 1): a hash of 0, 1, 2, ... in 32 bits."""
    x = (np.arange(n, dtype=np.uint64) + np.uint64(seed * 1000003)) & np.uint64(0xFFFFFFFF)
    for factor, shift in ((2654435761, 16), (2246822519, 13)):
        x = (x * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
        x ^= x >> np.uint64(shift)
    return (2 * x.astype(np.float64) + 1) / 2**32 - 1


@functools.cache
def kernels_and_biases() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Of the 13 convolutions, ``[3, 3, in, out]`` and ``[out]``."""
    sides = list(enumerate(itertools.pairwise(CHANNELS)))
    kernels = [noise(9 * i * o, n).reshape(3, 3, i, o) * np.sqrt(6 / (9 * i)) for n, (i, o) in sides]
    return kernels, [0.05 * noise(o, 100 + n) for n, (_, o) in sides]


def torch_arrays() -> dict[str, np.ndarray]:
    """The same by torchvision's names, in its layout and in float32."""
    arrays = {}
    for place, kernel, bias in zip(PLACES, *kernels_and_biases(), strict=True):
        arrays[f"features.{place}.weight"] = kernel.transpose(3, 2, 0, 1).astype(np.float32)
        arrays[f"features.{place}.bias"] = bias.astype(np.float32)
    return arrays


def alpha_and_beta() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights of all channels, all different."""
    n = np.arange(float(sum(OF_MAPS)))
    return tuple(np.split(1 + 0.5 * wave, np.cumsum(OF_MAPS)[:-1]) for wave in (np.cos(n), np.sin(2 * n)))


def ones() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Weights that are all equal."""
    return ([np.ones(channels) for channels in OF_MAPS],) * 2


def image_pair(height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    i, j, c = np.indices((height, width, 3))
    a = 0.5 + 0.4 * np.sin(0.3 * i + 0.5 * j + c)
    return a, a + 0.1 * np.cos(1.7 * i - 0.9 * j + 2 * c)


def map_pair(height: int, width: int, channels: int) -> tuple[np.ndarray, np.ndarray]:
    """As after a relu."""
    i, j, k = np.indices((height, width, channels))
    a = np.maximum(0, np.sin(0.7 * i + 1.3 * j + k) + 0.3 * k)
    return a, np.maximum(0, np.sin(0.7 * i + 1.3 * j + k + 0.4) + 0.25 * k)
