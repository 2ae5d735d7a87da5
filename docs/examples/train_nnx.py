"""Flax NNX: a denoiser trained on MS-SSIM and L1, with bfloat16 activations and the metrics of ``jax_msssim.nnx``.

``python docs/examples/train_nnx.py`` takes about a minute on two CPU cores, and runs on GPU and TPU unchanged.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from photographs import HELD_OUT, random_crops
from rich.progress import track

from jax_msssim import fit_power_factors, ms_ssim_l1_loss
from jax_msssim.nnx import MSSSIM, SSIM


class Denoiser(nnx.Module):
    """Estimates the noise and subtracts it; before training it estimates none."""

    def __init__(self, features: int = 24, *, rngs: nnx.Rngs):
        conv = functools.partial(
            nnx.Conv,
            kernel_size=(3, 3),
            dtype=jnp.bfloat16,
            param_dtype=jnp.float32,
            rngs=rngs,
        )
        last = conv(features, 3, kernel_init=nnx.initializers.zeros)
        self.noise = nnx.Sequential(
            conv(3, features), nnx.relu, conv(features, features), nnx.relu, last
        )

    def __call__(self, noisy: jax.Array) -> jax.Array:
        """Restores ``[N, H, W, 3]``: float32 in, bfloat16 between the layers, float32 out."""
        return noisy - self.noise(noisy).astype(noisy.dtype)


def noisy_and_clean(rng: np.random.Generator, *crops) -> tuple[np.ndarray, np.ndarray]:
    """Crops with Gaussian noise, and without."""
    clean = random_crops(rng, *crops)
    return clean + 0.1 * rng.standard_normal(clean.shape, np.float32), clean


@nnx.jit
def train_step(
    model: Denoiser, optimizer: nnx.Optimizer, noisy: jax.Array, clean: jax.Array
) -> jax.Array:
    """One step down the mix of Zhao et al. 2017, 0.84 (1 - MS-SSIM) + 0.16 L1."""
    power_factors = fit_power_factors(
        clean.shape[1:3]
    )  # shapes are known when JAX compiles

    def mean_loss(model):
        return ms_ssim_l1_loss(model(noisy), clean, power_factors=power_factors).mean()

    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def evaluation_step(
    model: Denoiser, metrics: nnx.MultiMetric, noisy: jax.Array, clean: jax.Array
) -> None:
    """Adds a batch to what the metrics have seen."""
    restored = model(noisy)
    metrics.update(
        predictions=restored, targets=clean, values=jnp.abs(restored - clean)
    )


def main(steps: int = 200, side: int = 96, batch: int = 4) -> dict:
    """Trains, evaluates on a photograph not trained on, and returns what happened."""
    rng = np.random.default_rng(0)
    model = Denoiser(rngs=nnx.Rngs(0))
    # A step whose gradients are not finite is skipped, and counted.
    adam = optax.apply_if_finite(
        optax.adam(optax.cosine_decay_schedule(4e-3, steps)), max_consecutive_errors=3
    )
    optimizer = nnx.Optimizer(model, adam, wrt=nnx.Param)
    metrics = nnx.MultiMetric(
        ssim=SSIM(),
        ms_ssim=MSSSIM(power_factors=fit_power_factors((side, side))),
        l1=nnx.metrics.Average(),
    )
    losses = []
    for _ in track(range(steps), "training"):
        losses.append(
            float(train_step(model, optimizer, *noisy_and_clean(rng, batch, side)))
        )
    for _ in range(4):
        evaluation_step(model, metrics, *noisy_and_clean(rng, batch, side, HELD_OUT))
    evaluation = {name: float(value) for name, value in metrics.compute().items()}
    not_finite = int(optimizer.opt_state.total_notfinite[...])
    return {
        "losses": np.array(losses),
        "not_finite": not_finite,
        "evaluation": evaluation,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=96, help="of the crops, in pixels")
    result = main(**vars(parser.parse_args()))
    print(
        f"loss {result['losses'][0]:.3f} -> {result['losses'][-1]:.3f}, {result['evaluation']}"
    )
