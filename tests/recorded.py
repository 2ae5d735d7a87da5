"""Numbers that other programs gave for pairs of 8-bit images: of programs that are not Python, or large to install.

What gives the same here is a convention, or a recipe of docs/conventions.md, which is read from that page.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from images import photographs

import jax_msssim
from jax_msssim import conventions

PAGE = Path(__file__).parents[1] / "docs" / "conventions.md"


def bytes_of(name, *size):
    return tuple(np.round(255 * x).astype(np.uint8) for x in photographs(name, *size))


def camera(height, width):
    """Larger than the photograph, which is mirrored."""
    margins = [((more + 1) // 2, more // 2) for more in (height - 501, width - 512)]
    return tuple(np.pad(x, [*margins, (0, 0)], "symmetric") for x in bytes_of("camera", 501, 512))


def of_julia(a, b):
    """Images of 3x3 pixels as ImageQualityIndexes.jl has them in its tests, mirrored once."""
    return tuple(np.pad(np.array(x, np.float32), [(0, 3), (0, 3), (0, 0)], "symmetric") for x in (a, b))


K, R, G, B, C, M, Y, W = ((r, g, b) for r, g, b in ("000", "100", "010", "001", "011", "101", "110", "111"))
COLOURS = [[K, G, C], [B, R, Y], [W, M, K]], [[K, B, W], [G, R, M], [C, Y, K]]
PAIRS: Mapping[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "camera 180x201x1": lambda: bytes_of("camera", 180, 201),
    "astronaut 177x184x3": lambda: bytes_of("astronaut", 177, 184),
    "coffee 192x256x3": lambda: bytes_of("coffee", 192, 256),
    "camera 384x385x1": lambda: tuple(x[:384, :385] for x in bytes_of("camera", 501, 512)),
    "camera 501x512x1": lambda: bytes_of("camera", 501, 512),
    "camera 640x700x1": lambda: camera(640, 700),
    "Julia, grey": lambda: of_julia([[[1]] * 3, [[1]] * 3, [[0]] * 3], [[[1]] * 3, [[0]] * 3, [[1]] * 3]),
    "Julia, RGB": lambda: of_julia(*np.array(COLOURS, float)),
}
SMALL, LARGE, JULIA = (*PAIRS,)[:3], (*PAIRS,)[3:6], (*PAIRS,)[6:]


class Recorded(NamedTuple):
    """What a program gave for some pairs, and what gives the same here."""

    program: str
    how: str  # its number was had
    metric: str
    convention: str | None  # or a recipe, the function of that name
    values: Mapping[str, float]
    first_channel: bool = False
    bound: float = 1e-6  # the digits given, and float32

    def difference(self, pair: str) -> float:
        """By which ours is off."""
        a, b = (x[..., :1] if self.first_channel else x for x in PAIRS[pair]())
        if self.convention is None:
            ours = recipes()[self.metric](a, b)
        else:
            arguments = getattr(conventions.ALL[self.convention], self.metric)
            ours = getattr(jax_msssim, self.metric)(a, b, **arguments)
        return abs(float(np.squeeze(ours)) - self.values[pair])


def recipes() -> dict[str, Callable]:
    """The functions of the page."""
    namespace = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        if "def " in block:
            exec(compile(block, PAGE.name, "exec"), namespace)
    return namespace


def of(pairs, *values) -> dict[str, float]:
    return dict(zip(pairs, values, strict=True))


MAGICK = [1 - 2 * x for x in (0.15379903456408694, 0.14796475116164226, 0.1650924481463507)]
OCTAVE, PYPI = "its lines, run in Octave 7.3", "the program (PyPI)"
RECORDED = [
    Recorded("ImageMagick 7.1.2-30", "the program (npm)", "ssim", "IMAGEMAGICK", of(SMALL, *MAGICK)),
    Recorded(
        "OpenCV 5.0.0", PYPI, "ssim", "OPENCV", of(SMALL, 0.6937494170655, 0.7052804063281, 0.670621462001), bound=1e-5
    ),  # in float32, as E[x^2] - E[x]^2
    Recorded("sewar 0.4.10", PYPI, "ssim", "SEWAR", of(SMALL, 0.7769662267571, 0.7915457457581, 0.7571327253130)),
    Recorded(
        "sewar 0.4.10, grey",
        PYPI,
        "ms_ssim",
        "SEWAR",
        of(SMALL, 0.9560626426757, 0.9619903703661, 0.9541749048820),
        first_channel=True,
    ),
    Recorded(
        "ImageQualityIndexes.jl", "values of its tests", "ssim", "JULIA", of(JULIA, -0.4916143454396, 0.2556843317595)
    ),
    Recorded(
        "Wang's `ssim_index.m`",
        OCTAVE,
        "ssim",
        "MATLAB",
        of(SMALL, 0.708059401959, 0.717334268090, 0.676876135071),
        first_channel=True,
    ),
    Recorded(
        "Wang's `msssim.m`",
        OCTAVE,
        "ms_ssim",
        "MATLAB",
        of(SMALL, 0.956452679708, 0.962292611405, 0.954396155075),
        first_channel=True,
    ),
    Recorded("Wang's `ssim.m`", OCTAVE, "wang_ssim", None, of(LARGE, 0.874880571586, 0.871663545284, 0.916505895618)),
    Recorded(
        "ffmpeg 5.1.9, `-cpuflags 0`",
        "the program (Debian)",
        "ffmpeg_ssim",
        None,
        of(SMALL, 0.728181, 0.738496, 0.704969),
        first_channel=True,
    ),
    Recorded(
        "libvmaf, `ssim`",
        "its function, compiled",
        "libvmaf_ssim",
        None,
        of(SMALL, 0.6932673362964, 0.7055340390352, 0.6649421285908),
        first_channel=True,
    ),
]
