"""Images to test with, float64 unless a test rounds them."""

import numpy as np
import skimage.data


def p2d() -> tuple[np.ndarray, np.ndarray]:
    """The pair that the golden values belong to: both sides odd at some scale, one channel."""
    i, j = np.mgrid[:181, :187]
    a = ((7 * i + 13 * j + (i * j) % 11) % 64) / 63
    b = np.clip(0.8 * a + 0.1 + 0.05 * np.sin(0.3 * i) * np.cos(0.2 * j), 0, 1)
    return a[..., None], b[..., None]


def random_pair(shape, seed=0, likeness=0.7) -> tuple[np.ndarray, np.ndarray]:
    """White noise, and the same mixed with other noise: every term is positive where ``likeness`` is."""
    rng = np.random.default_rng(seed)
    a, noise = rng.random(shape), rng.random(shape)
    return a, 0.5 + likeness * (a - 0.5) + (1 - abs(likeness)) * (noise - 0.5)


def photograph(name) -> np.ndarray:
    """A photograph that comes with scikit-image, uint8 ``[H, W, C]``."""
    image = getattr(skimage.data, name)()
    return image if image.ndim == 3 else image[..., None]


def photographs(name, height=176, width=192, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """The middle of a photograph in [0, 1], and the same blurred by one pixel and noisy."""
    image = photograph(name) / 255
    top, left = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
    a = image[top : top + height, left : left + width]
    blurred = (a + np.roll(a, 1, 0) + np.roll(a, 1, 1)) / 3
    return a, np.clip(blurred + 0.03 * np.random.default_rng(seed).standard_normal(a.shape), 0, 1)


def noisy_camera() -> tuple[np.ndarray, np.ndarray]:
    """The cameraman and the same with noise of 20 grey levels, uint8."""
    camera = photograph("camera")
    noise = 20 * np.random.RandomState(5).randn(*camera.shape)
    return camera, np.clip(camera + noise, 0, 255).astype(np.uint8)
