"""MS-SSIM of two images on disk that are never whole in memory: ``python strips.py a.npy b.npy``, or two TIFF files.

The files are read from top to bottom, a strip of lines at a time. At every scale the last ``filter_size - 1`` lines
wait for those below, with which they share windows, and a line without a partner waits to be halved.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
import tifffile

from jax_msssim import ms_ssim_terms

WANG2003 = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


class Scale:
    """One scale: the lines that are still needed, the sum of its map so far, and the next scale."""

    def __init__(self, number, scales, max_val, filter_size):
        self.max_val, self.filter_size, self.last = (
            max_val,
            filter_size,
            number == scales,
        )
        self.next = (
            None if self.last else Scale(number + 1, scales, max_val, filter_size)
        )
        self.waiting, self.unpaired, self.sum, self.windows = None, None, 0.0, 0

    def add(self, pair, end):
        """Takes the next lines of both images, ``[2, lines, W, C]``, the last ones at the ``end``."""
        lines = below(self.waiting, pair)
        self.waiting = lines[:, max(lines.shape[1] - self.filter_size + 1, 0) :]
        windows = (lines.shape[1] - self.filter_size + 1) * (
            lines.shape[2] - self.filter_size + 1
        )
        if windows > 0:
            terms = ms_ssim_terms(
                *lines, scales=1, max_val=self.max_val, filter_size=self.filter_size
            )
            mean = (terms.similarity if self.last else terms.contrast_structure)[0]
            self.sum = self.sum + windows * np.asarray(mean, np.float64)
            self.windows += windows
        if self.last:
            return
        pair = below(self.unpaired, pair)
        paired = (
            pair.shape[1] + pair.shape[1] % 2 if end else pair.shape[1] // 2 * 2
        )  # an odd last line is repeated
        self.unpaired = pair[:, paired:]
        self.next.add(halved(pair[:, :paired]), end)

    def means(self):
        """The mean of this scale's map, and those of the coarser ones, each ``[C]``."""
        return [self.sum / self.windows, *([] if self.last else self.next.means())]


def below(lines, more):
    return more if lines is None else jnp.concatenate([lines, more], 1)


@jax.jit
def halved(pair):
    odd = [n % 2 for n in pair.shape[1:3]]
    pair = jnp.pad(pair, ((0, 0), (0, odd[0]), (0, odd[1]), (0, 0)), "edge")
    return pair.reshape(
        2, pair.shape[1] // 2, 2, pair.shape[2] // 2, 2, pair.shape[3]
    ).mean((2, 4))


def ms_ssim_by_strips(
    a, b, *, max_val, lines=512, filter_size=11, power_factors=WANG2003
):
    """MS-SSIM of two arrays ``[H, W, C]`` that are read by slices: memory maps, or arrays of zarr or HDF5."""
    first = Scale(1, len(power_factors), max_val, filter_size)
    for top in range(0, len(a), lines):
        pair = jnp.stack(
            [jnp.asarray(np.asarray(x[top : top + lines]), jnp.float32) for x in (a, b)]
        )
        first.add(pair, end=top + lines >= len(a))
    means = np.maximum(first.means(), 0)  # [scales, C]
    return float(np.prod(means ** np.array(power_factors)[:, None], 0).mean())


def opened(path):
    """A file as an array that is read as far as it is asked for."""
    image = (
        np.load(path, mmap_mode="r")
        if path.endswith(".npy")
        else tifffile.memmap(path, mode="r")
    )
    return image if image.ndim == 3 else image[..., None]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("a")
    parser.add_argument("b")
    parser.add_argument(
        "--lines",
        type=int,
        default=512,
        help="lines in a strip, a multiple of 16 for few programs",
    )
    options = parser.parse_args()
    a, b = opened(options.a), opened(options.b)
    max_val = np.iinfo(a.dtype).max if np.issubdtype(a.dtype, np.integer) else 1.0
    print(
        f"MS-SSIM {ms_ssim_by_strips(a, b, max_val=float(max_val), lines=options.lines):.6f}"
    )


if __name__ == "__main__":
    main()
