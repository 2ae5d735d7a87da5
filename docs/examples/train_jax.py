"""Plain JAX and Optax: a network that sharpens, trained on MS-SSIM and squared error on all devices there are.

``python docs/examples/train_jax.py`` takes about a minute on two CPU cores, and runs on GPUs and TPUs unchanged.
"""

import argparse
import functools
import itertools

import jax
import numpy as np
import optax
import skimage.filters
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from photographs import random_crops
from rich.progress import track

from jax_msssim import fit_power_factors, ms_ssim_loss

convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)
# A step whose gradients are not finite is skipped, and counted.
optimizer = optax.apply_if_finite(optax.adam(3e-3), max_consecutive_errors=3)


def initial_weights(key: jax.Array, widths=(3, 24, 24, 3)) -> list[jax.Array]:
    """The kernels of 3x3 convolutions: any pytree will do."""
    shapes = [(3, 3, n_in, n_out) for n_in, n_out in itertools.pairwise(widths)]
    keys = jax.random.split(key, len(shapes))
    return [
        jax.nn.initializers.he_normal()(*arguments)
        for arguments in zip(keys, shapes, strict=True)
    ]


def sharpen(weights: list[jax.Array], blurred: jax.Array) -> jax.Array:
    """Adds to images ``[N, H, W, 3]`` the details that convolutions estimate."""
    *hidden, last = weights
    x = blurred
    for kernel in hidden:
        x = jax.nn.relu(convolve(x, kernel))
    return blurred + 0.1 * convolve(x, last)


@jax.jit
def train_step(weights, state, blurred, sharp):
    """One step. The batch is sharded and the weights are not, so JAX sums the gradients over the devices."""

    def mean_loss(weights):
        restored = sharpen(weights, blurred)
        dissimilarity = ms_ssim_loss(
            restored, sharp, power_factors=fit_power_factors(sharp.shape[1:3])
        )
        return (dissimilarity + optax.l2_loss(restored, sharp).mean((1, 2, 3))).mean()

    loss, gradients = jax.value_and_grad(mean_loss)(weights)
    updates, state = optimizer.update(gradients, state, weights)
    return optax.apply_updates(weights, updates), state, loss


def main(
    steps: int = 200, side: int = 96, batch: int = 8, devices: int | None = None
) -> dict:
    """Trains on so many devices, by default all, which divide the batch, and returns what happened."""
    mesh = jax.make_mesh(
        (devices or jax.device_count(),), ("batch",), devices=jax.devices()[:devices]
    )
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    rng, losses = np.random.default_rng(0), []
    with jax.set_mesh(mesh):
        weights = initial_weights(jax.random.key(0))
        state = optimizer.init(weights)
        for _ in track(range(steps), "training"):
            sharp = random_crops(rng, batch, side)
            blurred = skimage.filters.gaussian(sharp, sigma=(0, 1.5, 1.5, 0))
            images = jax.device_put((blurred, sharp), sharding)
            weights, state, loss = train_step(weights, state, *images)
            losses.append(float(loss))
    return {
        "losses": np.array(losses),
        "not_finite": int(state.total_notfinite),
        "weights": weights,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=96, help="of the crops, in pixels")
    losses = main(**vars(parser.parse_args()))["losses"]
    print(f"loss {losses[:10].mean():.3f} -> {losses[-10:].mean():.3f}")
