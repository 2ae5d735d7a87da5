"""A super-resolver trained on L1 and DISTS, by the weights of VGG16 in a file.

``python docs/examples/train_dists.py vgg16.safetensors`` takes minutes on two CPU cores, and runs on GPU and TPU. The
documentation's page on deep structural similarity says where the weights come from.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from photographs import HELD_OUT, random_crops
from rich.progress import track

from jax_msssim.deep import VGG16, dists_loss
from jax_msssim.nnx import DISTS, SSIM


class SuperResolver(nnx.Module):
    """Twice as many pixels along each axis: an enlarged image, and what a small network adds to it."""

    def __init__(self, features: int = 32, *, rngs: nnx.Rngs):
        self.first = nnx.Conv(3, features, (3, 3), rngs=rngs)
        self.last = nnx.Conv(
            features, 12, (3, 3), kernel_init=nnx.initializers.zeros, rngs=rngs
        )

    def __call__(self, small: jax.Array) -> jax.Array:
        """Enlarges ``[N, H, W, 3]``."""
        n, height, width, _ = small.shape
        detail = self.last(nnx.relu(self.first(small))).reshape(
            n, height, width, 2, 2, 3
        )
        detail = detail.transpose(0, 1, 3, 2, 4, 5).reshape(n, 2 * height, 2 * width, 3)
        return jax.image.resize(small, detail.shape, "cubic") + detail


def halved(images: jax.Array) -> jax.Array:
    """2x2 means."""
    n, height, width, channels = images.shape
    return images.reshape(n, height // 2, 2, width // 2, 2, channels).mean((2, 4))


@nnx.jit
def train_step(
    model: SuperResolver, optimizer: nnx.Optimizer, network: VGG16, images: jax.Array
) -> jax.Array:
    """One step down L1 + DISTS. The network is an argument: closed over, it would be a constant of the program."""

    def mean_loss(model):
        enlarged = model(halved(images))
        return (
            jnp.abs(enlarged - images).mean()
            + dists_loss(enlarged, images, network=network).mean()
        )

    loss, gradients = nnx.value_and_grad(mean_loss)(model)
    optimizer.update(model, gradients)
    return loss


def main(network: VGG16, steps: int = 200, side: int = 64, batch: int = 4) -> dict:
    """Trains, and evaluates on a photograph not trained on."""
    rng = np.random.default_rng(0)
    model = SuperResolver(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param)
    losses = [
        float(train_step(model, optimizer, network, random_crops(rng, batch, side)))
        for _ in track(range(steps), "training")
    ]
    metrics = nnx.MultiMetric(dists=DISTS(network=network), ssim=SSIM())
    for _ in range(4):
        images = random_crops(rng, batch, side, HELD_OUT)
        metrics.update(predictions=model(halved(images)), targets=images)
    evaluation = {name: float(value) for name, value in metrics.compute().items()}
    return {"losses": np.array(losses), "evaluation": evaluation}


def read_weights(path: Path) -> VGG16:
    """The network with the weights in a safetensors or npz file."""
    if path.suffix == ".npz":
        return VGG16.from_torch(np.load(path))
    from safetensors.numpy import load_file

    return VGG16.from_torch(load_file(path))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "weights", type=Path, help="of torchvision's VGG16, .safetensors or .npz"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--side", type=int, default=64, help="of the crops, in pixels")
    arguments = vars(parser.parse_args())
    result = main(read_weights(arguments.pop("weights")), **arguments)
    print(
        f"loss {result['losses'][0]:.3f} -> {result['losses'][-1]:.3f}, {result['evaluation']}"
    )
