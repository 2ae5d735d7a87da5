"""The libraries, each behind the same two calls without arguments: the value, and the value with its gradient.

The value is the mean over the batch, the gradient is that for the first image. Every library gets the images in its
own layout, converted beforehand, and keeps its own defaults except for what its convention in
``jax_msssim.conventions`` names.
"""

import functools
import importlib.metadata
import resource
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from timing import Contestant
from works import PASSES, Work

import jax_msssim

Function = Callable[..., Any]
Kind = tuple[str, int]  # metric and number of spatial axes


class Calls(NamedTuple):
    """What is timed. Results may still be on their way: ``Runtime.wait`` waits for them."""

    forward: Function
    value_and_grad: Function


class Numpy:
    """Plain functions of arrays ``[N, ..., C]``, called with ``gradient=True`` for the gradient as well."""

    name = "NumPy"
    compiles = False

    def calls(self, function: Function, images) -> Calls:
        return Calls(lambda: function(*images), lambda: function(*images, gradient=True))

    def wait(self, result) -> None:
        """Nothing to wait for."""

    def to_numpy(self, gradient) -> np.ndarray:
        """A gradient as ours, channels last."""
        return np.asarray(gradient)

    def peak_bytes(self) -> int:
        """The most memory the process ever held."""
        return process_peak_bytes()

    def device(self) -> str:
        """Where it runs."""
        return "cpu"


class Rgba(Numpy):
    """Functions of the bytes of one image each in red, green, blue and opacity, and of its ``width`` and ``height``."""

    def calls(self, function: Function, images) -> Calls:
        height, width = images[0].shape[:2]
        buffers = [np.dstack([image, np.full((height, width), 255, np.uint8)]).tobytes() for image in images]
        return super().calls(functools.partial(function, width=width, height=height), buffers)


class Jax(Numpy):
    """Functions that are compiled."""

    name = "JAX"
    compiles = True

    def calls(self, function: Function, images) -> Calls:
        a, b = (jnp.asarray(image) for image in images)
        forward, value_and_grad = jax.jit(function), jax.jit(jax.value_and_grad(function))
        return Calls(lambda: forward(a, b), lambda: value_and_grad(a, b))

    def wait(self, result) -> None:
        jax.block_until_ready(result)

    def peak_bytes(self) -> int:
        """On an accelerator, of its memory."""
        return jax.devices()[0].memory_stats()["peak_bytes_in_use"] if on_gpu() else super().peak_bytes()

    def device(self) -> str:
        return jax.default_backend()


class Torch(Numpy):
    """Functions of tensors ``[N, C, ...]``, on the GPU where JAX has one and PyTorch finds it too."""

    name = "PyTorch"

    def calls(self, function: Function, images) -> Calls:
        torch = _torch()
        a, b = (torch.from_numpy(np.moveaxis(image, -1, 1).copy()).to(self.device()) for image in images)
        a.requires_grad_()

        def forward():
            with torch.no_grad():
                return function(a, b)

        def value_and_grad():
            value = function(a, b)
            return value.detach(), torch.autograd.grad(value, a)[0]

        return Calls(forward, value_and_grad)

    def wait(self, result) -> None:
        if self.device() == "cuda":
            _torch().cuda.synchronize()

    def to_numpy(self, gradient) -> np.ndarray:
        return np.moveaxis(gradient.cpu().numpy(), 1, -1)

    def peak_bytes(self) -> int:
        return _torch().cuda.max_memory_allocated() if self.device() == "cuda" else super().peak_bytes()

    def device(self) -> str:
        return "cuda" if on_gpu() and _torch().cuda.is_available() else "cpu"


@functools.cache
def _torch():
    import torch

    torch.backends.cudnn.allow_tf32 = False  # float32 on a GPU, too, or its values differ by more than 1e-5
    return torch


@dataclass(frozen=True)
class Library:
    """A library: how it is called, and which of our conventions is its own."""

    name: str
    distribution: str
    runtime: Numpy
    load: Callable[[], Mapping[Kind, Function]]
    convention: str | None = None
    gradient_note: str = ""  # says what its gradient is, where it is not the one of its value

    @functools.cached_property
    def functions(self) -> Mapping[Kind, Function]:
        """Its functions, by kind; ImportError if it is not installed."""
        return self.load()

    @functools.cached_property
    def version(self) -> str:
        return importlib.metadata.version(self.distribution)

    def supports(self, work: Work) -> bool:
        return (work.metric, work.spatial_ndim) in self.functions

    def calls(self, work: Work, images) -> Calls:
        return self.runtime.calls(self.functions[work.metric, work.spatial_ndim], images)

    def contestants(self, work: Work, images) -> dict[str, Contestant]:
        """To be timed, one for each pass."""
        return contestants(self.calls(work, images), self.runtime)


def contestants(calls: Calls, runtime: Numpy) -> dict[str, Contestant]:
    """Both calls, to be timed."""
    return {which: Contestant(getattr(calls, which), runtime.wait, runtime.compiles, on_gpu()) for which in PASSES}


def process_peak_bytes() -> int:
    """The largest resident set of this process; Linux's ``ru_maxrss`` would be that of its parent, if larger."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(1024 * int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def ours(metric: str, spatial_ndim: int = 2, **options) -> Function:
    """Our metric with some options, averaged over the batch."""
    function = getattr(jax_msssim, metric)
    return lambda a, b: function(a, b, spatial_ndim=spatial_ndim, **options).mean()


def _jax_msssim():
    return {kind: ours(*kind) for kind in [("ssim", 2), ("ms_ssim", 2), ("ssim", 3)]}


def _pytorch_msssim():
    from pytorch_msssim import ms_ssim, ssim

    return {
        ("ssim", 2): functools.partial(ssim, data_range=1),
        ("ssim", 3): functools.partial(ssim, data_range=1),
        ("ms_ssim", 2): functools.partial(ms_ssim, data_range=1),
    }


def _torchmetrics():
    from torchmetrics.functional import image

    ssim = functools.partial(image.structural_similarity_index_measure, data_range=1.0)
    ms_ssim = functools.partial(image.multiscale_structural_similarity_index_measure, data_range=1.0)
    return {("ssim", 2): ssim, ("ssim", 3): ssim, ("ms_ssim", 2): ms_ssim}


def _piq():
    import piq

    return {("ssim", 2): functools.partial(piq.ssim, downsample=False), ("ms_ssim", 2): piq.multi_scale_ssim}


def _kornia():
    from kornia.metrics import ssim, ssim3d

    return {
        ("ssim", 2): lambda a, b: ssim(a, b, window_size=11, eps=0.0).mean(),
        ("ssim", 3): lambda a, b: ssim3d(a, b, window_size=11, eps=0.0).mean(),
    }


def _monai():
    from monai.metrics.regression import compute_ms_ssim, compute_ssim_and_cs

    def ssim(a, b, spatial_dims):
        windows = {"kernel_size": [11] * spatial_dims, "kernel_sigma": [1.5] * spatial_dims}
        return compute_ssim_and_cs(a, b, spatial_dims, data_range=1.0, **windows)[0].mean()

    return {
        ("ssim", 2): functools.partial(ssim, spatial_dims=2),
        ("ssim", 3): functools.partial(ssim, spatial_dims=3),
        ("ms_ssim", 2): lambda a, b: compute_ms_ssim(a, b, spatial_dims=2, data_range=1.0).mean(),
    }


def _dm_pix():
    import dm_pix

    def ssim(a, b):
        with jax.default_matmul_precision("highest"):  # as for PyTorch
            return dm_pix.ssim(a, b).mean()

    return {("ssim", 2): ssim}


def _scikit_image():
    from skimage.metrics import structural_similarity

    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    one_pair = functools.partial(structural_similarity, data_range=1, channel_axis=-1, **wang)

    def ssim(a, b, gradient=False):
        """One pair after the other. Its gradient is that for the second image, so ours goes there."""
        results = [one_pair(y, x, gradient=gradient) for x, y in zip(a, b, strict=True)]
        if not gradient:
            return np.mean(results)
        values, gradients = zip(*results, strict=True)
        return np.mean(values), np.stack(gradients) / len(a)

    return {("ssim", 2): ssim, ("ssim", 3): ssim}


def _fast_ssim():
    from fast_ssim import get_cpu_status, ssim

    get_cpu_status()  # loads its compiled part, which is for x86: ImportError elsewhere
    return {("ssim", 2): functools.partial(ssim, data_range=255)}


def _blazediff_ssim():
    from blazediff_ssim import compare_rgba

    return {("ms_ssim", 2): lambda a, b, width, height: compare_rgba(a, b, width, height, metric="ms-ssim").score}


SKIMAGE_GRADIENT = (
    "scikit-image's gradient is that of the sum over channels, and of a map that reaches beyond the positions its "
    "value is the mean of."
)
OURS = Library("jax_msssim", "jax_msssim", Jax(), _jax_msssim)
PEERS = (
    Library("pytorch-msssim", "pytorch-msssim", Torch(), _pytorch_msssim, "PYTORCH_MSSSIM"),
    Library("torchmetrics", "torchmetrics", Torch(), _torchmetrics, "TORCHMETRICS"),
    Library("piq", "piq", Torch(), _piq, "PIQ"),
    Library("kornia", "kornia", Torch(), _kornia, "KORNIA"),
    Library("MONAI", "monai", Torch(), _monai, "MONAI"),
    Library("dm_pix", "dm-pix", Jax(), _dm_pix, "DM_PIX"),
    Library("scikit-image", "scikit-image", Numpy(), _scikit_image, "SKIMAGE_WANG", SKIMAGE_GRADIENT),
)
# Forward only, of one pair of uint8 images ``[H, W, C]``; MS-SSIM is that of luma.
NATIVE = (
    Library("fast-ssim", "fast-ssim", Numpy(), _fast_ssim),
    Library("blazediff-ssim", "blazediff-ssim", Rgba(), _blazediff_ssim),
)
BY_NAME = {library.name: library for library in (OURS, *PEERS)}
