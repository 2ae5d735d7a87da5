"""Keyword arguments that reproduce the number of another program.

Each convention holds the arguments of :func:`jax_msssim.ssim` and of :func:`jax_msssim.ms_ssim` as mappings::

    ms_ssim(a, b, max_val=1.0, **conventions.PIQ.ms_ssim)

They can be compared, hashed, copied, pickled, and be static arguments of ``jax.jit``. ``ms_ssim`` is false where
the program has no MS-SSIM, and says so where it is passed with ``**``. What a program does to the images before, or to
the number after (luma, clipping, downsampling), is not part of it. The documentation has a table with the largest
difference seen between each program and its convention.

Examples:
  >>> import jax.numpy as jnp
  >>> from jax_msssim import conventions, ms_ssim
  >>> a = jnp.linspace(0, 1, 181 * 181).reshape(181, 181, 1)
  >>> f"{ms_ssim(a, 0.9 * a, **conventions.PYTORCH_MSSSIM.ms_ssim):.4f}"
  '0.9956'
  >>> dict(conventions.SKIMAGE_WANG.ssim)
  {}
  >>> bool(conventions.KORNIA.ms_ssim)
  False
"""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, NoReturn

from jax_msssim._windows import uniform_window


class _Arguments(Mapping[str, Any]):
    """Keyword arguments that do not change; with ``|`` and more of them they are a new dictionary."""

    def __init__(self, **arguments: Any):
        self._arguments = arguments

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._arguments)

    def __len__(self) -> int:
        return len(self._arguments)

    def __hash__(self) -> int:
        return hash(frozenset(self._arguments.items()))

    def __or__(self, others: Mapping[str, Any]) -> dict[str, Any]:
        return self._arguments | dict(others)

    def __repr__(self) -> str:
        return repr(self._arguments)


class _NoArguments(_Arguments):
    """Those of a function that the program does not have."""

    def keys(self) -> NoReturn:
        """Asked for by ``**``: says what to write."""
        raise TypeError(
            "this program has no MS-SSIM, and no arguments of it: take its SSIM, ssim(a, b, **convention.ssim), or "
            "the MS-SSIM of another program, ms_ssim(a, b, **conventions.MATLAB.ms_ssim)."
        )


class Convention(NamedTuple):
    """The keyword arguments of one program."""

    ssim: Mapping[str, Any]
    ms_ssim: Mapping[str, Any]

    def keys(self) -> NoReturn:
        """Asked for by ``**``: says what to write."""
        raise TypeError(
            "a convention holds the arguments of two functions: write ssim(a, b, **convention.ssim) or "
            "ms_ssim(a, b, **convention.ms_ssim), not **convention."
        )


_TORCHMETRICS = {"padding": ("valid", "reflect"), "downsample": "floor", "channel_mean": "before"}

MATLAB = Convention(_Arguments(), _Arguments(downsample="edge"))
"""Wang's ``ssim_index.m`` (2004) and ``msssim.m`` (product). ``ssim.m`` at full size: it halves large images first."""
TENSORFLOW = Convention(_Arguments(), _Arguments(downsample="edge"))
"""``tf.image.ssim`` and ``tf.image.ssim_multiscale``; Keras, metrax and plenoptic give the same."""
PYTORCH_MSSSIM = Convention(_Arguments(), _Arguments(downsample="zero"))
"""``pytorch_msssim.ssim`` and ``ms_ssim``."""
TORCHMETRICS = Convention(_Arguments(padding="reflect"), _Arguments(**_TORCHMETRICS))
"""torchmetrics' ``structural_similarity_index_measure`` and its multiscale twin with ``normalize="relu"``."""
TORCHMETRICS_SIMPLE = Convention(_Arguments(padding="reflect"), _Arguments(negative="shift", **_TORCHMETRICS))
"""torchmetrics with ``normalize="simple"``."""
PIQ = Convention(_Arguments(), _Arguments(downsample="edge_start"))
"""``piq.ssim(downsample=False)`` and ``piq.multi_scale_ssim``."""
MONAI = Convention(_Arguments(), _Arguments(downsample="floor", channel_mean="before"))
"""``SSIMMetric`` and ``MultiScaleSSIMMetric`` with the Gaussian kernel."""
KORNIA = Convention(_Arguments(padding="reflect"), _NoArguments())
"""``kornia.metrics.ssim(window_size=11, eps=0)``, its mean; ``MS_SSIMLoss`` is :func:`jax_msssim.ms_ssim_l1_loss`."""
DM_PIX = Convention(_Arguments(), _NoArguments())
"""``dm_pix.ssim``."""
SKIMAGE = Convention(_Arguments(window=tuple(uniform_window(7).tolist()), covariance="sample"), _NoArguments())
"""``skimage.metrics.structural_similarity`` as it comes, with a uniform window of 7 and the sample covariance."""
SKIMAGE_WANG = Convention(_Arguments(), _NoArguments())
"""The same with ``gaussian_weights=True, sigma=1.5, use_sample_covariance=False``."""
IMAGEMAGICK = Convention(_Arguments(padding="edge"), _NoArguments())
"""ImageMagick's ``compare -metric SSIM``, of which 7.1.2-30 prints ``(1 - SSIM) / 2``."""
OPENCV = Convention(_Arguments(padding="reflect"), _NoArguments())
"""OpenCV's ``QualitySSIM``, the mean of what it gives for each channel."""
SEWAR = Convention(
    _Arguments(window=tuple(uniform_window(11).tolist())), _Arguments(downsample="start", channel_mean="before")
)
"""``sewar.ssim``; ``sewar.msssim`` of grey images: it halves an image of several channels along those as well."""
JULIA = Convention(_Arguments(padding="symmetric"), _NoArguments())
"""``assess_ssim`` of ImageQualityIndexes.jl; with ``crop=true`` the defaults."""
FUSED_SSIM = Convention(_Arguments(padding="same"), _NoArguments())
"""``fused_ssim`` and the loss of 3D Gaussian Splatting."""
ALL: Mapping[str, Convention] = MappingProxyType(
    {name: value for name, value in list(globals().items()) if isinstance(value, Convention)}
)
"""All of them, by name."""
