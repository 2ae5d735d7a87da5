"""SSIM, MS-SSIM and D-SSIM for JAX, as metrics and as training losses.

Images are channels-last with any leading batch axes, ``[..., H, W, C]``; every function is pure, jitted,
differentiable, and returns one value per image, ``[...]``.
"""

from jax_msssim import conventions
from jax_msssim._evaluate import PaddedImages, evaluate, pad_images
from jax_msssim._losses import dssim_loss, log_ms_ssim_loss, ms_ssim_l1_loss, ms_ssim_loss, ssim_l1_loss, ssim_loss
from jax_msssim._ms_ssim import MSSSIMTerms, fit_power_factors, ms_ssim, ms_ssim_db, ms_ssim_terms
from jax_msssim._options import WANG2003
from jax_msssim._ssim import ssim, ssim_map
from jax_msssim._warnings import ImageWarning
from jax_msssim._windows import gaussian_window, uniform_window

__all__ = [
    "WANG2003",
    "ImageWarning",
    "MSSSIMTerms",
    "PaddedImages",
    "conventions",
    "dssim_loss",
    "evaluate",
    "fit_power_factors",
    "gaussian_window",
    "log_ms_ssim_loss",
    "ms_ssim",
    "ms_ssim_db",
    "ms_ssim_l1_loss",
    "ms_ssim_loss",
    "ms_ssim_terms",
    "pad_images",
    "ssim",
    "ssim_l1_loss",
    "ssim_loss",
    "ssim_map",
    "uniform_window",
]

__version__ = "0.1.0"
