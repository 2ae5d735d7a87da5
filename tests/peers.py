"""Other programs, each as functions of two images ``[H, W, C]`` in [0, 1]; and in which convention ours is theirs.

What is not installed is skipped. The largest difference seen is in docs/conventions.md, made from here.
"""

import importlib
import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Peer(NamedTuple):
    """A function of another program."""

    name: str
    convention: str
    metric: str
    module: str
    function: Callable
    bound: float = 1e-5  # of the difference to ours, in float32 images; larger only by the peer's own rounding


def channels_first(x):
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float32), -1, 0)[None].copy())


def pytorch_msssim(name):
    def function(module, a, b):
        return getattr(module, name)(a, b, data_range=1.0).item()

    return function


def torchmetrics(name, **options):
    def function(module, a, b):
        return getattr(module.functional.image, name)(a, b, data_range=1.0, **options).item()

    return function


def piq(name, **options):
    def function(module, a, b):
        return getattr(module, name)(a.clamp(0, 1), b.clamp(0, 1), data_range=1.0, **options).item()

    return function


def kornia(module, a, b):
    return module.metrics.ssim(a, b, window_size=11, max_val=1.0, eps=0).mean().item()


def monai(name, **options):
    def function(module, a, b):
        return getattr(module.metrics, name)(spatial_dims=2, data_range=1.0, **options)(a, b).item()

    return function


def scikit_image(**options):
    def function(module, a, b):
        return module.metrics.structural_similarity(a, b, data_range=1.0, channel_axis=-1, **options)

    return function


def dm_pix(module, a, b):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return float(module.ssim(*(jax.numpy.asarray(x, jax.numpy.float32) for x in (a, b))))


def tensorflow(name):
    def function(module, a, b):
        images = [module.constant(np.asarray(x, np.float32)[None]) for x in (a, b)]
        return float(getattr(module.image, name)(*images, max_val=1.0)[0])

    return function


def keras(module, a, b):
    images = [np.asarray(x, np.float32)[None] for x in (a, b)]
    return float(np.asarray(module.ops.image.ssim(*images, max_val=1.0, data_format="channels_last")).mean())


def metrax(module, a, b):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        images = [jax.numpy.asarray(x, jax.numpy.float32)[None] for x in (a, b)]
        return float(module.SSIM.from_model_output(*images, max_val=1.0).compute())


WANG = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
TM_SSIM = "structural_similarity_index_measure"
TM_MS_SSIM = "multiscale_structural_similarity_index_measure"
SIMPLE = "TORCHMETRICS_SIMPLE"
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

PEERS = [
    Peer("pytorch-msssim", "PYTORCH_MSSSIM", "ssim", "pytorch_msssim", pytorch_msssim("ssim")),
    Peer("pytorch-msssim", "PYTORCH_MSSSIM", "ms_ssim", "pytorch_msssim", pytorch_msssim("ms_ssim")),
    Peer("torchmetrics", "TORCHMETRICS", "ssim", "torchmetrics", torchmetrics(TM_SSIM)),
    Peer("torchmetrics", "TORCHMETRICS", "ms_ssim", "torchmetrics", torchmetrics(TM_MS_SSIM, normalize="relu")),
    Peer("torchmetrics", SIMPLE, "ms_ssim", "torchmetrics", torchmetrics(TM_MS_SSIM, normalize="simple")),
    Peer("piq", "PIQ", "ssim", "piq", piq("ssim", downsample=False)),
    Peer("piq", "PIQ", "ms_ssim", "piq", piq("multi_scale_ssim")),
    Peer("kornia", "KORNIA", "ssim", "kornia", kornia),
    Peer("MONAI", "MONAI", "ssim", "monai", monai("SSIMMetric")),
    Peer("MONAI", "MONAI", "ms_ssim", "monai", monai("MultiScaleSSIMMetric", weights=BETAS), 2e-5),  # float32
    Peer("TensorFlow", "TENSORFLOW", "ssim", "tensorflow", tensorflow("ssim"), 2e-5),  # float32
    Peer("TensorFlow", "TENSORFLOW", "ms_ssim", "tensorflow", tensorflow("ssim_multiscale")),
    Peer("Keras", "TENSORFLOW", "ssim", "keras", keras, 2e-5),  # float32
    Peer("scikit-image, default", "SKIMAGE", "ssim", "skimage", scikit_image()),
    Peer("scikit-image, Wang's options", "SKIMAGE_WANG", "ssim", "skimage", scikit_image(**WANG)),
    Peer("dm_pix", "DM_PIX", "ssim", "dm_pix", dm_pix),
    Peer("metrax", "DM_PIX", "ssim", "metrax", metrax),
]

TAKE_TENSORS = {"pytorch_msssim", "torchmetrics", "piq", "kornia", "monai"}


def value(peer: Peer, a, b) -> float:
    """The peer's number; ImportError where it is not installed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer's own
        module = importlib.import_module(peer.module)
        if peer.module == "monai":
            importlib.import_module("monai.metrics")
        if peer.module in TAKE_TENSORS:
            a, b = channels_first(a), channels_first(b)
        return float(peer.function(module, a, b))
