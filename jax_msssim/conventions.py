"""Keyword arguments that reproduce the number of another program.

Each convention holds the arguments of :func:`jax_msssim.ssim` and of :func:`jax_msssim.ms_ssim` as plain mappings::

    ms_ssim(a, b, max_val=1.0, **conventions.PIQ.ms_ssim)

``ms_ssim`` is None where the program has no MS-SSIM. What a program does to the images before, or to the number after
(luma, clipping, downsampling), is not part of it. The documentation has a table with the largest difference seen
between each program and its convention.

Examples:
  >>> import jax.numpy as jnp
  >>> from jax_msssim import conventions, ms_ssim
  >>> a = jnp.linspace(0, 1, 181 * 181).reshape(181, 181, 1)
  >>> f"{ms_ssim(a, 0.9 * a, **conventions.PYTORCH_MSSSIM.ms_ssim):.4f}"
  '0.9956'
  >>> dict(conventions.SKIMAGE_WANG.ssim)
  {}
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from jax_msssim._windows import uniform_window


class Convention(NamedTuple):
    """The keyword arguments of one program."""

    ssim: Mapping[str, Any]
    ms_ssim: Mapping[str, Any] | None


def _arguments(**arguments) -> Mapping[str, Any]:
    return MappingProxyType(arguments)


_TORCHMETRICS = {"padding": ("valid", "reflect"), "downsample": "floor", "channel_mean": "before"}

MATLAB = Convention(_arguments(), _arguments(downsample="edge"))
"""Wang's ``ssim.m`` (2004) and ``msssim.m`` (product). ``ssim.m`` at full size; see the recipe for its downsampling."""
TENSORFLOW = Convention(_arguments(), _arguments(downsample="edge"))
"""``tf.image.ssim`` and ``tf.image.ssim_multiscale``; Keras, metrax and plenoptic give the same."""
PYTORCH_MSSSIM = Convention(_arguments(), _arguments(downsample="zero"))
"""``pytorch_msssim.ssim`` and ``ms_ssim``."""
TORCHMETRICS = Convention(_arguments(padding="reflect"), _arguments(**_TORCHMETRICS))
"""torchmetrics' ``structural_similarity_index_measure`` and its multiscale twin with ``normalize="relu"``."""
TORCHMETRICS_SIMPLE = Convention(_arguments(padding="reflect"), _arguments(negative="shift", **_TORCHMETRICS))
"""torchmetrics with ``normalize="simple"``."""
PIQ = Convention(_arguments(), _arguments(downsample="edge_start"))
"""``piq.ssim(downsample=False)`` and ``piq.multi_scale_ssim``."""
MONAI = Convention(_arguments(), _arguments(downsample="floor", channel_mean="before"))
"""``SSIMMetric`` and ``MultiScaleSSIMMetric`` with the Gaussian kernel."""
KORNIA = Convention(_arguments(padding="reflect"), None)
"""``kornia.metrics.ssim(window_size=11, eps=0)``, its mean; ``MS_SSIMLoss`` is :func:`jax_msssim.ms_ssim_l1_loss`."""
DM_PIX = Convention(_arguments(), None)
"""``dm_pix.ssim``."""
SKIMAGE = Convention(_arguments(window=tuple(uniform_window(7).tolist()), covariance="sample"), None)
"""``skimage.metrics.structural_similarity`` as it comes, with a uniform window of 7 and the sample covariance."""
SKIMAGE_WANG = Convention(_arguments(), None)
"""The same with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``."""
FUSED_SSIM = Convention(_arguments(padding="same"), None)
"""``fused_ssim`` and the loss of 3D Gaussian Splatting."""
ALL: Mapping[str, Convention] = MappingProxyType(
    {name: value for name, value in list(globals().items()) if isinstance(value, Convention)}
)
"""All of them, by name."""
