"""Pairs of images on which SSIM breaks, in the types they come in: the rows of docs/stress.md."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from images import photographs, random_pair


class HardPair(NamedTuple):
    """Two images ``[side, side, 1]`` of one type."""

    a: np.ndarray
    b: np.ndarray
    max_val: float = 1.0
    jump: float = 0.0  # of brightness inside an image, in units of max_val

    def exempt(self, implementation: str) -> bool:
        """Whether the jump is more than the implementation is accurate for."""
        return self.jump > {"stencil": 500, "conv": 10, "matmul": 10}[implementation]


def hard_pairs(side: int = 192) -> dict[str, HardPair]:
    """The pairs by name. Unless that says otherwise, ``b`` is the photograph ``a`` blurred by a pixel and noisy."""
    a, b = photographs("camera", side, side)
    rows, columns, _ = np.indices(a.shape)
    centre = (rows == side // 2) & (columns == side // 2)
    checkerboard, squares = (rows + columns) % 2, (rows // 8 + columns // 8) % 2
    black, white = np.zeros_like(a), np.ones_like(a)
    bright_half, bright_stripes = 1.0 * (columns >= side // 2), rows // 10 % 2
    float32 = {
        "photograph": (a, b),
        "photograph of coins": photographs("coins", side, side),
        "noise": random_pair(a.shape),
        "identical": (a, a),
        "identical, + 1000": (a + 1000, a + 1000),
        "one pixel differs by 0.5": (a, a + 0.5 * centre),
        "one pixel on black": (black + centre, black),
        "photograph + 10": (a + 10, b + 10),
        "photograph + 100": (a + 100, b + 100),
        "photograph + 1000": (a + 1000, b + 1000),
        "photograph + 10000": (a + 10_000, b + 10_000),
        "contrast 1e-3 at 0.9": (0.9 + 1e-3 * a, 0.9 + 1e-3 * b),
        "contrast 1e-4 at 0.9": (0.9 + 1e-4 * a, 0.9 + 1e-4 * b),
        "contrast 1e-5 at 0.9": (0.9 + 1e-5 * a, 0.9 + 1e-5 * b),
        "nearly white, upside down": (1 - 1e-4 * a, 1 - 1e-4 * a[::-1]),
        "black, black": (black, black),
        "black, white": (black, white),
        "black, photograph": (black, a),
        "flat 0.3, flat 0.8": (0.3 * white, 0.8 * white),
        "flat 0.5, photograph": (0.5 * white, a),
        "flat 1000, flat 1001": (1000 * white, 1001 * white),
        "photograph, its negative": (a, 1 - a),
        "photograph in [-1, 2]": (3 * a - 1, 3 * b - 1),
        "photograph minus 10": (a - 10, b - 10),
        "checkerboard, its negative": (checkerboard, 1 - checkerboard),
        "checkerboard, flat 0.5": (checkerboard, 0.5 * white),
        "squares of 8, moved by 1": (squares, np.roll(squares, 1, 0)),
        "bright half, x 500": (a * 500**bright_half, b * 500**bright_half, 1.0, 500.0),
        "bright half, + 500": (a + 500 * bright_half, b + 500 * bright_half, 1.0, 500.0),
        "bright half, + 5000": (a + 5000 * bright_half, b + 5000 * bright_half, 1.0, 5000.0),
        "bright half, + 1e6": (a + 1e6 * bright_half, b + 1e6 * bright_half, 1.0, 1e6),
        "bright stripes, + 5000": (a + 5000 * bright_stripes, b + 5000 * bright_stripes, 1.0, 5000.0),
        "photograph, another + 5000": (a, b + 5000),
        "16 bits": (np.round(65535 * a), np.round(65535 * b), 65535.0),
        "16 bits, 65000 to 65100": (np.round(65000 + 100 * a), np.round(65000 + 100 * b), 65535.0),
        "x 1e15, max_val 1e15": (1e15 * a, 1e15 * b, 1e15),
        "x 1e15, max_val 1": (1e15 * a, 1e15 * b),
        "x 1e-15, max_val 1e-15": (1e-15 * a, 1e-15 * b, 1e-15),
        "x 1e-39, denormal": (1e-39 * a, 1e-39 * b),
    }
    pairs = {name: _in_type("float32", *pair) for name, pair in float32.items()}
    for dtype in ("float16", "bfloat16"):
        pairs[f"photograph, {dtype}"] = _in_type(dtype, a, b)
        pairs[f"identical, {dtype}"] = _in_type(dtype, a, a)
        pairs[f"black, black, {dtype}"] = _in_type(dtype, black, black)
    return pairs


def _in_type(dtype: str, a, b, *rest) -> HardPair:
    return HardPair(a.astype(jnp.dtype(dtype)), b.astype(jnp.dtype(dtype)), *rest)
