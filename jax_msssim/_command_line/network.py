"""VGG16 from a file of weights, for DISTS."""

from pathlib import Path

import flax  # noqa: F401  before what says that it is missing in other words
import numpy as np

from jax_msssim.deep import VGG16


class WeightsError(Exception):
    """Weights that cannot be used, and why, in one line."""


def read_network(path: Path) -> VGG16:
    """The network with the weights in a safetensors or npz file.

    Raises:
      WeightsError: the file is missing, of another kind, or does not hold the weights of VGG16.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load

            return VGG16.from_torch(load(path.read_bytes()))
        with np.load(path) as arrays:
            return VGG16.from_torch(arrays)
    except ModuleNotFoundError:
        raise
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # of the readers, each of which has its own
        raise WeightsError(f"{path}: {' '.join(str(error).split())}") from None
