"""The interface of an implementation: what SSIM and MS-SSIM need of local means and variances."""

from abc import ABC, abstractmethod

import jax
import jax.numpy as jnp

from jax_msssim._scales import Pyramid, Scale
from jax_msssim._terms import Constants, Term
from jax_msssim._windows import Window


class Implementation(ABC):
    """One way to compute local statistics: ``"stencil"``, ``"conv"``, ``"matmul"`` or ``"cuda"``.

    Callers jit, differentiate and map these functions. Batch axes are kept as they are: they may be sharded.
    """

    @abstractmethod
    def centre(self, image: jax.Array, counts: jax.Array | None, window: Window) -> jax.Array:
        """A number near the pixels of each image to measure them from, ``[..., 1, 1, 1 or C]``, without derivative.

        All shards of an image have the same.

        ``counts`` tells which pixels count (None: all); of the others the first may be read.
        """

    @abstractmethod
    def term_map(self, term: Term, scale: Scale, constants: Constants, window: Window) -> jax.Array:
        """The term's value at every position of a padded scale, ``[..., *positions, C]``, whether it counts or not."""

    def counted(self, scale: Scale, window: Window) -> jax.Array | None:
        """Which positions of a padded scale count: whose window lies inside the image, little of it masked. None: all.

        It is ``[..., *positions, 1 or C]``.
        """
        covered, windows = self.covered(scale, window), scale.windows(window)
        return covered if windows is None else windows if covered is None else jnp.logical_and(covered, windows)

    @abstractmethod
    def covered(self, scale: Scale, window: Window) -> jax.Array | None:
        """The positions of a padded scale whose window has little enough masked. None: nothing is masked."""

    @abstractmethod
    def term_means(self, pyramid: Pyramid, first: Scale, constants: Constants) -> list[tuple[jax.Array, ...]]:
        """At each scale the mean of each of its terms over the positions that count, ``[..., C]``; NaN where none does.

        ``first`` is the first scale, neither centred nor padded.
        """
