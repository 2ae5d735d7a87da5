"""Draws the pictures of the guide into docs/images, from a photograph that comes with scikit-image.

Run it with ``python docs/make_pictures.py``. It computes the same pixels every time.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import skimage.data
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from scipy.ndimage import gaussian_filter

from jax_msssim import WANG2003, ms_ssim, ms_ssim_loss, ssim, ssim_loss, ssim_map

IMAGES = Path(__file__).parent / "images"
SIDE = 256
RMSE = 0.08  # of every distorted version of the first picture


def photograph() -> np.ndarray:
    """A part of a photograph, ``[256, 256, 3]`` from 0 to 1."""
    return skimage.util.img_as_float32(skimage.data.astronaut())[:SIDE, 100 : 100 + SIDE]


def blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """The image under a Gaussian of ``sigma`` pixels."""
    return gaussian_filter(image, (sigma, sigma, 0), mode="reflect")


def noise(image: np.ndarray) -> np.ndarray:
    """White noise of standard deviation 1, of the image's shape."""
    return np.random.default_rng(0).standard_normal(image.shape).astype(np.float32)


def rmse(a: np.ndarray, b: np.ndarray) -> float:
    """The root of the mean squared error."""
    return float(np.sqrt(np.mean((a - b) ** 2)))


def blurred_to(image: np.ndarray, target: float) -> np.ndarray:
    """The image blurred until its error is ``target``."""
    low, high = 0.0, 20.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if rmse(blurred(image, middle), image) < target else (low, middle)
    return blurred(image, high)


def distortions() -> Figure:
    """Four distortions of one error, and the SSIM map of each."""
    clean = photograph()
    contrast = clean - clean.mean()
    versions = {
        "brighter": clean + RMSE,
        "less contrast": clean - RMSE * contrast / contrast.std(),
        "noisy": clean + RMSE * noise(clean),
        "blurred": blurred_to(clean, RMSE),
    }
    figure = Figure(figsize=(10, 5), layout="constrained")
    for axis, (kind, image) in zip(figure.subplots(2, 4).T, versions.items(), strict=True):
        axis[0].imshow(image.clip(0, 1))
        axis[0].set_title(f"{kind}\nSSIM {ssim(image, clean):.3f}, MS-SSIM {ms_ssim(image, clean):.3f}", fontsize=10)
        mapped = axis[1].imshow(np.asarray(ssim_map(image, clean)).mean(-1), cmap="magma", vmin=0, vmax=1)
        for part in axis:
            part.set_axis_off()
    figure.colorbar(mapped, ax=figure.axes, shrink=0.6, label="SSIM map")
    return figure


def blur() -> Figure:
    """SSIM and MS-SSIM of ever stronger blur and noise."""
    clean = photograph()
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    sigmas, amplitudes = np.linspace(0, 6, 25), np.linspace(0, 0.3, 25)
    for axis, label, strengths, images in (
        (left, "blur: sigma, pixels", sigmas, [blurred(clean, sigma) for sigma in sigmas]),
        (right, "noise: standard deviation", amplitudes, [clean + s * noise(clean) for s in amplitudes]),
    ):
        batch = np.stack(images)
        reference = np.broadcast_to(clean, batch.shape)
        axis.plot(strengths, ms_ssim(batch, reference), label="MS-SSIM")
        axis.plot(strengths, ssim(batch, reference), label="SSIM")
        axis.set(xlabel=label, ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    left.legend()
    return figure


def negative() -> Figure:
    """What stands for a mean below its power, and the slope that the power then has."""
    kinds = {
        "relu": lambda x: jnp.maximum(x, 0),
        "shift": lambda x: (1 + x) / 2,
        "soft": lambda x: jnp.where(x >= 0.01, x, 0.01**2 / (0.02 - jnp.minimum(x, 0.01))),
    }
    weight = WANG2003[0]
    far, near = np.linspace(-1, 1, 401), np.linspace(-0.05, 0.05, 1001)
    figure = Figure(figsize=(10, 3), layout="constrained")
    axes = figure.subplots(1, 3)
    for name, positive in kinds.items():
        style = "--" if name == "soft" else "-"
        axes[0].plot(far, positive(far), style, label=name)
        axes[1].plot(near, positive(near), style)
        slope = jax.vmap(jax.grad(lambda x, positive=positive: positive(x) ** weight))(near)
        axes[2].plot(near, np.where(near <= 0, 0, slope) if name == "relu" else slope, style)
    axes[0].set(title="what is taken for a mean x", xlabel="x")
    axes[1].set(title="the same, near 0", xlabel="x", ylim=(-0.01, 0.05))
    axes[2].set(title=f"slope of its power {weight}", xlabel="x", ylim=(-0.3, 8))
    axes[0].legend()
    for axis in axes:
        axis.grid(alpha=0.3)
    return figure


def gradients() -> Figure:
    """The gradient of four losses by the pixels of one restored image."""
    clean = photograph().mean(-1, keepdims=True)
    image = blurred(clean, 1.5) + 0.03 * noise(clean)
    image[:, SIDE // 2 :] += 0.1  # and one half too bright
    losses = {
        "L2": lambda p: jnp.mean((p - clean) ** 2),
        "L1": lambda p: jnp.mean(jnp.abs(p - clean)),
        "1 - SSIM": lambda p: ssim_loss(p, clean),
        "1 - MS-SSIM": lambda p: ms_ssim_loss(p, clean),
    }
    figure = Figure(figsize=(10, 2.7), layout="constrained")
    axes = figure.subplots(1, 5)
    axes[0].imshow(image[..., 0], cmap="gray", vmin=0, vmax=1)
    axes[0].set_title("restored", fontsize=10)
    for axis, (name, loss) in zip(axes[1:], losses.items(), strict=True):
        step = -np.asarray(jax.grad(loss)(image))[..., 0]
        limit = np.percentile(np.abs(step), 99)
        axis.imshow(step, cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(name, fontsize=10)
    for axis in axes:
        axis.set_axis_off()
    return figure


def save_small(figure: Figure, path: Path) -> None:
    """Save with a palette of 256 colours: a third of the size."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(256).save(path, optimize=True)


def main() -> None:
    """Draw every picture."""
    for draw in (distortions, blur, negative, gradients):
        save_small(draw(), IMAGES / f"{draw.__name__}.png")


if __name__ == "__main__":
    main()
