"""Train a small denoiser on MS-SSIM and L1, and show what it restores in photographs it has not seen.

Run it with ``python notebooks/demo.py``; it takes a minute or so on two CPU cores, and runs on GPU and TPU unchanged.
"""

import argparse
import itertools
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import skimage
from flax import nnx
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

from jax_msssim import ms_ssim, ms_ssim_db, ms_ssim_loss, ssim, ssim_map

# All of them come with scikit-image; none is downloaded.
TRAINING = (
    "camera",
    "coins",
    "gravel",
    "immunohistochemistry",
    "rocket",
    "stereo_motorcycle",
)
HELD_OUT = {
    "astronaut": (0, 100),
    "coffee": (60, 140),
    "chelsea": (20, 130),
}  # top left corner of the part taken
SIDE = 256  # of that part, in pixels
CROP = 176  # of the training crops: the five scales of MS-SSIM need 161 pixels
BATCH = 2
NOISE = 0.1  # standard deviation; pixels range from 0 to 1
MIX = 0.84  # the share of MS-SSIM in the loss, the rest is L1 (Zhao et al. 2017)
MARGIN = (
    3.0  # decibels of MS-SSIM that every photograph must gain: 3 dB halve 1 - MS-SSIM
)


class Denoiser(nnx.Module):
    """Convolutions that estimate the noise, which is then subtracted; before training they estimate none."""

    def __init__(self, *, features: int = 24, depth: int = 5, rngs: nnx.Rngs):
        widths = [3] + [features] * (depth - 1)
        self.hidden = nnx.List(
            [
                nnx.Conv(n_in, n_out, kernel_size=(3, 3), rngs=rngs)
                for n_in, n_out in itertools.pairwise(widths)
            ]
        )
        self.noise = nnx.Conv(
            features,
            3,
            kernel_size=(3, 3),
            kernel_init=nnx.initializers.zeros,
            rngs=rngs,
        )

    def __call__(self, noisy: jax.Array) -> jax.Array:
        """Restore images ``[..., H, W, 3]``."""
        x = noisy
        for layer in self.hidden:
            x = nnx.relu(layer(x))
        return noisy - self.noise(x)


def restoration_loss(restored: jax.Array, clean: jax.Array) -> jax.Array:
    """MS-SSIM for the structure and L1 for the level of brightness and colour, averaged over the batch."""
    l1 = jnp.abs(restored - clean).mean((-3, -2, -1))
    return (MIX * ms_ssim_loss(restored, clean) + (1 - MIX) * l1).mean()


@nnx.jit
def train_step(
    model: Denoiser, optimizer: nnx.Optimizer, clean: jax.Array, rngs: nnx.Rngs
) -> jax.Array:
    """Add fresh noise to clean images, and improve the model at removing it."""
    noisy = add_noise(clean, rngs())
    loss, gradients = nnx.value_and_grad(
        lambda model: restoration_loss(model(noisy), clean)
    )(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def restore(model: Denoiser, noisy: jax.Array) -> jax.Array:
    """The model, compiled."""
    return model(noisy)


@jax.jit
@jax.vmap
def evaluate(image: jax.Array, clean: jax.Array) -> dict[str, jax.Array]:
    """Every measure of quality, for every image of a batch."""
    return {
        "PSNR": -10 * jnp.log10(jnp.mean((image - clean) ** 2)),
        "SSIM": ssim(image, clean),
        "MS-SSIM": ms_ssim(image, clean),
        "MS-SSIM dB": ms_ssim_db(image, clean),
    }


def add_noise(clean: jax.Array, key: jax.Array) -> jax.Array:
    """Add Gaussian noise. Pixels may leave [0, 1]; the metrics do not mind."""
    return clean + NOISE * jax.random.normal(key, clean.shape)


def photograph(name: str) -> np.ndarray:
    """A photograph ``[H, W, 3]`` from 0 to 1; a grey one has three equal channels."""
    pixels = getattr(skimage.data, name)()
    pixels = (
        pixels[0] if isinstance(pixels, tuple) else pixels
    )  # the left one of a stereo pair
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=-1)
    return skimage.util.img_as_float32(pixels)


def crop(image: np.ndarray, top: int, left: int, side: int) -> np.ndarray:
    """A square part of an image."""
    return image[top : top + side, left : left + side]


def random_crop(images: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """A square from anywhere in one of the images, turned by a multiple of 90 degrees."""
    image = images[rng.integers(len(images))]
    top, left = (rng.integers(length - CROP + 1) for length in image.shape[:2])
    return np.rot90(crop(image, top, left, CROP), rng.integers(4))


def train(steps: int) -> Denoiser:
    """A denoiser, trained from nothing."""
    images = [photograph(name) for name in TRAINING]
    rng, rngs = np.random.default_rng(0), nnx.Rngs(0)
    model = Denoiser(rngs=rngs)
    optimizer = nnx.Optimizer(
        model, optax.adam(optax.cosine_decay_schedule(4e-3, steps)), wrt=nnx.Param
    )
    for _ in track(range(steps), description="training"):
        clean = np.stack([random_crop(images, rng) for _ in range(BATCH)])
        loss = train_step(model, optimizer, clean, rngs)
        loss.block_until_ready()  # so that the bar shows what is done, not what is queued
    return model


def save_picture(path: Path, clean: np.ndarray, panels: dict[str, np.ndarray]) -> None:
    """Draw a photograph and versions of it, and under each of those its SSIM map."""
    figure = Figure(figsize=(9, 6.6), layout="constrained")
    figure.get_layout_engine().set(h_pad=0.08)
    axes = figure.subplots(2, 1 + len(panels))
    for axis in axes.flat:
        axis.set_axis_off()
    axes[0, 0].imshow(clean)
    axes[0, 0].set_title("clean")
    for (kind, image), (top, bottom) in zip(panels.items(), axes[:, 1:].T, strict=True):
        top.imshow(image.clip(0, 1))
        top.set_title(f"{kind}: MS-SSIM {ms_ssim(image, clean):.3f}")
        similarity = np.asarray(ssim_map(image, clean)).mean(-1)
        margin = (
            len(image) - len(similarity)
        ) // 2  # the map has no value where the window leaves the image
        mapped = bottom.imshow(
            np.pad(similarity, margin, constant_values=np.nan),
            cmap="magma",
            vmin=0,
            vmax=1,
        )
        bottom.set_title(f"SSIM map, mean {similarity.mean():.3f}")
    bar = figure.colorbar(
        mapped,
        cax=axes[1, 0].inset_axes((0.1, 0.5, 0.8, 0.07)),
        orientation="horizontal",
    )
    bar.set_ticks([0, 0.5, 1], labels=["0\nunlike", "0.5", "1\nequal"])
    bar.ax.set_title("likeness to the clean photograph", fontsize="medium")
    save_small(figure, path)


def save_small(figure: Figure, path: Path) -> None:
    """Save with a palette of 256 colours, dithered: noise does not compress, and the file is a third as large."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.quantize(
        palette=picture.quantize(kmeans=4), dither=Image.Dither.FLOYDSTEINBERG
    ).save(path, optimize=True)


def show_table(before: dict[str, np.ndarray], after: dict[str, np.ndarray]) -> None:
    """Print every measure of the noisy and of the restored photographs."""
    digits = {"PSNR": 1, "SSIM": 3, "MS-SSIM": 3, "MS-SSIM dB": 1}
    table = Table("photograph", *digits, title="Held-out photographs, noisy → restored")
    for i, name in enumerate(HELD_OUT):
        table.add_row(
            name,
            *(f"{before[m][i]:.{d}f} → {after[m][i]:.{d}f}" for m, d in digits.items()),
        )
    Console().print(table)


def main() -> None:
    """Train, evaluate, print and draw; fail if a photograph was not clearly restored."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300, help="steps of training")
    parser.add_argument(
        "--output", type=Path, default=Path("demo.png"), help="where the picture goes"
    )
    arguments = parser.parse_args()

    model = train(arguments.steps)
    clean = np.stack(
        [crop(photograph(name), *corner, SIDE) for name, corner in HELD_OUT.items()]
    )
    noisy = add_noise(clean, jax.random.key(1))
    restored = restore(model, noisy)

    before, after = jax.device_get((evaluate(noisy, clean), evaluate(restored, clean)))
    show_table(before, after)
    save_picture(
        arguments.output,
        clean[0],
        {"noisy": np.asarray(noisy[0]), "restored": np.asarray(restored[0])},
    )
    print(f"picture: {arguments.output}")

    gain = after["MS-SSIM dB"] - before["MS-SSIM dB"]
    if not (gain > MARGIN).all():
        sys.exit(
            f"MS-SSIM rose by only {gain.min():.1f} dB on some photograph, {MARGIN} dB were expected"
        )


if __name__ == "__main__":
    main()
