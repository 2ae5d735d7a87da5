"""SSIM, MS-SSIM and D-SSIM for JAX, as metrics and as training losses.

Images are channels-last with any leading batch axes, ``[..., H, W, C]``; every function is pure, jitted,
differentiable, and returns one value per image, ``[...]``.
"""

from importlib.metadata import version as _version

from jax_msssim import conventions as conventions
from jax_msssim._losses import dssim_loss as dssim_loss
from jax_msssim._losses import log_ms_ssim_loss as log_ms_ssim_loss
from jax_msssim._losses import ms_ssim_l1_loss as ms_ssim_l1_loss
from jax_msssim._losses import ms_ssim_loss as ms_ssim_loss
from jax_msssim._losses import ssim_l1_loss as ssim_l1_loss
from jax_msssim._losses import ssim_loss as ssim_loss
from jax_msssim._ms_ssim import WANG2003 as WANG2003
from jax_msssim._ms_ssim import MSSSIMTerms as MSSSIMTerms
from jax_msssim._ms_ssim import fit_power_factors as fit_power_factors
from jax_msssim._ms_ssim import ms_ssim as ms_ssim
from jax_msssim._ms_ssim import ms_ssim_db as ms_ssim_db
from jax_msssim._ms_ssim import ms_ssim_terms as ms_ssim_terms
from jax_msssim._ssim import ssim as ssim
from jax_msssim._ssim import ssim_map as ssim_map
from jax_msssim._windows import gaussian_window as gaussian_window
from jax_msssim._windows import uniform_window as uniform_window

__all__ = [
    "WANG2003",
    "MSSSIMTerms",
    "conventions",
    "dssim_loss",
    "fit_power_factors",
    "gaussian_window",
    "log_ms_ssim_loss",
    "ms_ssim",
    "ms_ssim_db",
    "ms_ssim_l1_loss",
    "ms_ssim_loss",
    "ms_ssim_terms",
    "ssim",
    "ssim_l1_loss",
    "ssim_loss",
    "ssim_map",
    "uniform_window",
]

__version__ = _version("jax_msssim")
