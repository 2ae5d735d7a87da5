"""Other programs, each as functions of two images ``[H, W, C]`` in [0, 1]; and in which convention ours is theirs.

What is not installed is skipped. The largest difference seen is in docs/conventions.md, made from here.
"""

import functools
import importlib
import operator
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import jax
import numpy as np
from images import photographs, random_pair

import jax_msssim
from jax_msssim import conventions

# Sizes that halve evenly, and sizes that are odd at several scales, one side or both.
PAIRS = {
    "noise 176x192x3": lambda: random_pair((176, 192, 3)),
    "noise 181x187x1": lambda: random_pair((181, 187, 1)),
    "astronaut 177x184x3": lambda: photographs("astronaut", 177, 184),
    "camera 180x201x1": lambda: photographs("camera", 180, 201),
}


class Peer(NamedTuple):
    """A function of another program."""

    name: str
    convention: str
    metric: str
    module: str
    function: Callable
    bound: float = 1e-5  # of the difference to ours, in float32 images; larger only by the peer's own rounding
    options: Mapping[str, Any] = {}  # of ours, beside the convention's

    def arguments(self) -> dict[str, Any]:
        """Ours that make our function theirs."""
        return {**getattr(conventions.ALL[self.convention], self.metric, {}), **self.options}


def channels_first(x):
    import torch

    return torch.from_numpy(np.moveaxis(np.asarray(x, np.float32), -1, 0)[None].copy())


def named(path, **options):
    """A function of two images and ``data_range``, somewhere in a module."""

    def function(module, a, b):
        return operator.attrgetter(path)(module)(a, b, data_range=1.0, **options)

    return function


def piq(name, **options):
    def function(module, a, b):
        return getattr(module, name)(a.clamp(0, 1), b.clamp(0, 1), data_range=1.0, **options).item()

    return function


def kornia(module, a, b):
    return module.metrics.ssim(a, b, window_size=11, max_val=1.0, eps=0).mean().item()


def kornia_loss(module, a, b):
    return module.MS_SSIMLoss(alpha=0.84, compensation=1.0)(a, b).item()


def monai(name, spatial_dims=2, **options):
    def function(module, a, b):
        return getattr(module.metrics, name)(spatial_dims=spatial_dims, data_range=1.0, **options)(a, b).item()

    return function


def dm_pix(module, a, b, **options):
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return float(module.ssim(*(jax.numpy.asarray(x, jax.numpy.float32) for x in (a, b)), **options))


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
TM_SSIM = "functional.image.structural_similarity_index_measure"
TM_MS_SSIM = "functional.image.multiscale_structural_similarity_index_measure"
SKIMAGE = "metrics.structural_similarity"
SIMPLE = "TORCHMETRICS_SIMPLE"
BETAS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)

PEERS = [
    Peer("pytorch-msssim", "PYTORCH_MSSSIM", "ssim", "pytorch_msssim", named("ssim")),
    Peer("pytorch-msssim", "PYTORCH_MSSSIM", "ms_ssim", "pytorch_msssim", named("ms_ssim")),
    Peer("torchmetrics", "TORCHMETRICS", "ssim", "torchmetrics", named(TM_SSIM)),
    Peer("torchmetrics", "TORCHMETRICS", "ms_ssim", "torchmetrics", named(TM_MS_SSIM, normalize="relu")),
    Peer("torchmetrics", SIMPLE, "ms_ssim", "torchmetrics", named(TM_MS_SSIM, normalize="simple")),
    Peer("piq", "PIQ", "ssim", "piq", piq("ssim", downsample=False)),
    Peer("piq", "PIQ", "ms_ssim", "piq", piq("multi_scale_ssim")),
    Peer("kornia", "KORNIA", "ssim", "kornia", kornia),
    Peer("MONAI", "MONAI", "ssim", "monai", monai("SSIMMetric")),
    Peer("MONAI", "MONAI", "ms_ssim", "monai", monai("MultiScaleSSIMMetric", weights=BETAS), 2e-5),  # float32
    Peer("TensorFlow", "TENSORFLOW", "ssim", "tensorflow", tensorflow("ssim"), 2e-5),  # float32
    Peer("TensorFlow", "TENSORFLOW", "ms_ssim", "tensorflow", tensorflow("ssim_multiscale")),
    Peer("Keras", "TENSORFLOW", "ssim", "keras", keras, 2e-5),  # float32
    Peer("scikit-image, default", "SKIMAGE", "ssim", "skimage", named(SKIMAGE, channel_axis=-1)),
    Peer("scikit-image, Wang's options", "SKIMAGE_WANG", "ssim", "skimage", named(SKIMAGE, channel_axis=-1, **WANG)),
    Peer("dm_pix", "DM_PIX", "ssim", "dm_pix", dm_pix),
    Peer("metrax", "DM_PIX", "ssim", "metrax", metrax),
]

EACH_AXIS = {"window": (jax_msssim.gaussian_window(11, 1.5), jax_msssim.gaussian_window(19, 2.5))}
OF_EACH_AXIS = named(TM_SSIM, sigma=(1.5, 2.5))
OF_EVEN_LENGTH = functools.partial(dm_pix, filter_size=8)
WINDOW_PEERS = [
    Peer("dm_pix, even", "DM_PIX", "ssim", "dm_pix", OF_EVEN_LENGTH, options={"filter_size": 8}),
    Peer("torchmetrics, of each axis", "TORCHMETRICS", "ssim", "torchmetrics", OF_EACH_AXIS, options=EACH_AXIS),
]

VOLUME = {"spatial_ndim": 3, "filter_size": 5, "power_factors": (0.5, 0.5)}
NARROW = VOLUME | {"filter_sigma": 0.5}
OF_VOLUMES = {
    "pytorch_msssim": named("ms_ssim", win_size=5, weights=[0.5, 0.5]),
    "torchmetrics": named(TM_MS_SSIM, betas=(0.5, 0.5), sigma=0.5, kernel_size=5),
    "monai": monai("MultiScaleSSIMMetric", spatial_dims=3, kernel_size=5, weights=(0.5, 0.5)),
}
VOLUME_PEERS = [
    Peer(name, name.upper(), "ms_ssim", name, function, options=NARROW if name == "torchmetrics" else VOLUME)
    for name, function in OF_VOLUMES.items()
]
ZHAO = {"alpha": 0.84, "form": "single_resolution"}
LOSS_PEERS = [Peer("kornia", "KORNIA", "ms_ssim_l1_loss", "kornia.losses", kornia_loss, options=ZHAO)]

TAKE_TENSORS = {"pytorch_msssim", "torchmetrics", "piq", "kornia", "monai"}


def differences(peer: Peer, a, b) -> dict[str, float]:
    """By which each of our implementations is off the peer's number; ImportError where that is not installed."""
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer's own
        module = importlib.import_module(peer.module)
        if peer.module == "monai":
            importlib.import_module("monai.metrics")
        tensors = peer.module.split(".")[0] in TAKE_TENSORS
        theirs = float(peer.function(module, *(map(channels_first, (a, b)) if tensors else (a, b))))
    ours, kinds = getattr(jax_msssim, peer.metric), ("stencil", "conv")
    return {kind: abs(float(ours(a, b, implementation=kind, **peer.arguments())) - theirs) for kind in kinds}


# --- DISTS: the peers' networks with weights of ours, nothing downloaded --------------------------------------------


def dists_of(name: str, weights: Mapping[str, np.ndarray], a, b, dtype="float64") -> tuple[np.ndarray, np.ndarray]:
    """A program's DISTS of batches ``[N, H, W, 3]``, with the published alpha and beta, and the gradient by ``a``."""
    import torch

    vgg = importlib.import_module("torchvision.models.vgg")
    features = vgg.make_layers(vgg.cfgs["D"], batch_norm=False)
    features.load_state_dict({key.removeprefix("features."): torch.tensor(x) for key, x in weights.items()})
    network = types.SimpleNamespace(features=features)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a peer's own
        call = DISTS_PEERS[name](network, getattr(torch, dtype))
        a, b = (torch.tensor(np.moveaxis(x, -1, 1).copy(), dtype=getattr(torch, dtype)) for x in (a, b))
        values = call(a.requires_grad_(), b).reshape(-1)
        values.sum().backward()
    return values.detach().numpy(), np.moveaxis(a.grad.numpy(), 1, -1)


def published_alpha_and_beta():
    """As torchmetrics ships them."""
    import torch

    module = importlib.import_module("torchmetrics.functional.image.dists")
    return torch.load(module._PATH_WEIGHT_DISTS)


def dists_pytorch(network, dtype):
    module = importlib.import_module("DISTS_pytorch.DISTS_pt")
    with mock.patch.object(module.models, "vgg16", return_value=network):
        peer = module.DISTS(load_weights=False)
    for name, weights in published_alpha_and_beta().items():
        getattr(peer, name).data = weights
    return lambda a, b: peer.to(dtype)(a, b, require_grad=True)


def dists_torchmetrics(network, dtype):
    module = importlib.import_module("torchmetrics.functional.image.dists")
    with mock.patch.object(module, "vgg16", return_value=network):
        peer = module.DISTSNetwork()
    return lambda a, b: peer.to(dtype)(a, b, require_grad=True)


def dists_piq(network, dtype):
    module = importlib.import_module("piq.perceptual")
    published = mock.patch("torch.hub.load_state_dict_from_url", return_value=published_alpha_and_beta())
    with published, mock.patch.object(module, "vgg16", return_value=network):
        peer = module.DISTS(reduction="none")
    peer.weights = [weights.to(dtype) for weights in peer.weights]
    return peer.to(dtype)


DISTS_PEERS = {"DISTS-pytorch": dists_pytorch, "torchmetrics": dists_torchmetrics, "piq": dists_piq}
