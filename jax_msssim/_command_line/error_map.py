"""A picture of where two images differ."""

import io
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from jax_msssim._command_line.compare import Loaded, Pair, Settings
from jax_msssim._command_line.programs import quiet
from jax_msssim._ssim import ssim_map

_PANEL_PIXELS = (360, 1200)  # the least and the most of the longer side


def error_map(loaded: Loaded, settings: Settings) -> bytes:
    """A PNG of the reference, the test image, and ``1 - SSIM`` averaged over channels, with its range, side by side."""
    with quiet():
        similarity = ssim_map(loaded.reference, loaded.test, max_val=loaded.max_val, **settings.convention.ssim)
    error = 1 - np.asarray(similarity).mean(-1)
    height, width, _ = loaded.reference.shape
    # Where the window would leave the image there is no value.
    margins = [((side - inside) // 2,) * 2 for side, inside in zip((height, width), error.shape, strict=True)]
    error = np.pad(error, margins, constant_values=np.nan)
    largest = np.nanmax(error)

    scale = np.clip(max(height, width), *_PANEL_PIXELS) / max(height, width) / 100  # inches a pixel
    figure = Figure((3 * width * scale + 1.4, height * scale + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3)
    titles = (*_titles(loaded.pair), f"1 - SSIM, from 0 to {largest:.3g}")
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title, fontsize=9, parse_math=False)
        axis.set_axis_off()
    for axis, pixels in zip(axes, (loaded.reference, loaded.test), strict=False):
        shown = np.clip(pixels / loaded.max_val, 0, 1)
        axis.imshow(shown if shown.shape[-1] == 3 else shown[..., 0], cmap="gray", vmin=0, vmax=1)
    image = axes[2].imshow(error, cmap="inferno", vmin=0, vmax=largest or 1)
    figure.colorbar(image, ax=axes, fraction=0.02, pad=0.01)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


def _titles(pair: Pair) -> tuple[str, str]:
    """The names of both files, with as many folders as tell them apart."""
    reference, test = pair.reference.parts, pair.test.parts
    lengths = range(1, max(len(reference), len(test)) + 1)
    length = next((n for n in lengths if reference[-n:] != test[-n:]), 1)
    return str(Path(*reference[-length:])), str(Path(*test[-length:]))
