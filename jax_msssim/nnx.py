"""SSIM, MS-SSIM, D-SSIM and DISTS as metrics of Flax NNX: the mean over all images seen, kept on the device.

They need Flax: ``pip install "jax_msssim[flax]"``. Each is an ``nnx.Metric``, alone or in an ``nnx.MultiMetric`` beside
others, whose keyword arguments it ignores. Under ``nnx.jit`` it is an argument, as a model is. Of a batch sharded over
devices only the values, one per image, move between them. It is a pytree, too: ``jax.jit`` can take and return it, and
the ``TrainState`` of Flax Linen can hold it,

>>> from flax.training import train_state
>>> class TrainState(train_state.TrainState):
...     metric: nnx.Metric

made by ``TrainState.create(metric=MSSSIM(), ...)``; the jitted step calls ``state.metric.update(...)`` and returns the
state. ``flax.serialization`` saves the state, and restores it into one with a metric of the same class. For clu no
class is needed::

    MSSSIM = clu.metrics.Average.from_fun(lambda predictions, targets, **_: jax_msssim.ms_ssim(predictions, targets))
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Self, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import ArrayLike

try:
    from flax import nnx, serialization
except ImportError as error:
    raise ImportError('jax_msssim.nnx needs Flax 0.12.6 or newer: pip install "jax_msssim[flax]".') from error

from jax_msssim._checks import Array, as_array, check_positive, check_static, own, placed
from jax_msssim._losses import dssim_loss, ms_ssim_loss, ssim_loss
from jax_msssim._options import Negative, PyramidOptions, SSIMOptions, prepare, prepare_ms_ssim
from jax_msssim._signatures import takes
from jax_msssim._windows import is_of_each_axis
from jax_msssim.deep import DISTS_WEIGHTS, dists_loss
from jax_msssim.deep._dists import FeatureWeights, ImageOptions, prepare_images

__all__ = ["DISTS", "DSSIM", "MSSSIM", "SSIM"]

_OF_UPDATE: Mapping[str, str] = dict.fromkeys(("where", "sizes"), "It is an argument of update")

# No image is larger: what is wrong with options whatever the images, is wrong with these.
_LARGE = jax.ShapeDtypeStruct((2**62, 2**62, 2**62, 1), jnp.float32)


class _Sums(NamedTuple):
    """What a metric keeps: its sum, what has been rounded off that, and the number of images, by its digits."""

    total: Any
    compensation: Any
    images: Any
    rounds: Any  # of 2^32 images


class _MeanOverImages(nnx.Metric):
    """The mean of a value per image, of their sum in float32 and what its additions rounded off."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        cls.__signature__ = inspect.Signature(parameters)  # which Flax's metaclass hides
        serialization.register_serialization_state(cls, cls._saved, cls._restored)

    def __init__(self, check: Callable, options: Mapping[str, Any]):
        keywords = (p for p in inspect.signature(check).parameters.values() if p.kind is p.KEYWORD_ONLY)
        defaults = {p.name: p.default for p in keywords if p.name not in _OF_UPDATE}
        static = {name: _static(name, value) for name, value in (defaults | dict(options)).items()}
        jax.eval_shape(lambda a, b: check(("predictions", "targets"), a, b, **static)[1], _LARGE, _LARGE)
        self.options = tuple(static.items())
        # Among several processes neither of this one nor of all, before the first images are. It can be saved.
        zeros = jnp.zeros if jax.process_count() == 1 else np.zeros
        self.total = nnx.metrics.MetricState(zeros((), jnp.float32))
        self.compensation = nnx.metrics.MetricState(zeros((), jnp.float32))
        self.count = nnx.metrics.MetricState(zeros((), jnp.uint32))
        self.rounds = nnx.metrics.MetricState(zeros((), jnp.uint32))

    def _values(self, predictions, targets, **options) -> jax.Array:
        """One value per image."""
        raise NotImplementedError

    def reset(self) -> None:
        """Forgets all images."""
        self._set(_zeros(self._sums()))

    def update(
        self,
        *,
        predictions: ArrayLike,
        targets: ArrayLike,
        mask: ArrayLike | None = None,
        where: ArrayLike | None = None,
        sizes: ArrayLike | None = None,
        **_: Any,
    ) -> None:
        """Adds images.

        An image that holds NaN, or in which no position counts, has no value: the mean is NaN from then on, until
        :meth:`reset`. To leave it out silently would flatter the model that failed on it; ``mask`` leaves it out.

        Args:
          predictions, targets: images of one shape ``[..., H, W, C]``, with any batch axes or none.
          mask: boolean, ``[...]``: True for the images that count. The others may hold anything, NaN included; they
            fill up a last batch, say.
          where: boolean mask of pixels, as for :func:`jax_msssim.ssim`.
          sizes: the true sides of each image in a padded batch, as for :func:`jax_msssim.ssim`.
          **_: arguments of other metrics, ignored.

        Raises:
          TypeError: as for :func:`jax_msssim.ssim`, or ``mask`` is not boolean.
          ValueError: as for :func:`jax_msssim.ssim`; ``mask`` has another shape; the images are those of this process
            alone and earlier ones were of all processes, or the other way round.
        """
        values = self._values(predictions, targets, where=where, sizes=sizes, **dict(self.options))
        if mask is not None:
            mask = _checked_mask(mask, values.shape)
        self._add(_sum(values, mask))

    def compute(self) -> jax.Array:
        """The mean over all images since the last reset, NaN if there were none.

        Returns:
          A scalar: float32, or float64 under ``jax_enable_x64``.
        """
        return _mean(self._sums())

    def merge(self, other: Self) -> None:
        """Adds, in place, the images that another metric has seen; returns nothing and leaves the other as it is.

        Args:
          other: a metric of the same class with the same options.

        Raises:
          ValueError: it is not one.
        """
        if type(other) is not type(self):
            raise ValueError(f"other must be a {type(self).__name__} too, got {type(other).__name__}.")
        mine, theirs = dict(self.options), dict(other.options)
        different = [f"{name} is {theirs[name]!r}, not {mine[name]!r}" for name in mine if theirs[name] != mine[name]]
        if different:
            raise ValueError(f"other must have the same options, but its {', its '.join(different)}.")
        self._add(other._sums())

    @property
    def _state(self) -> tuple[nnx.Variable, ...]:
        return self.total, self.compensation, self.count, self.rounds

    def _sums(self) -> _Sums:
        return _Sums(*(variable[...] for variable in self._state))

    def _set(self, sums: _Sums) -> None:
        for variable, x in zip(self._state, sums, strict=True):
            variable.set_value(x)  # not by [...], which leaves it where it was

    def _add(self, sums: _Sums) -> None:
        mine, new = self._sums(), sums.total
        arrays = [x for x in (mine.total, new) if isinstance(x, jax.Array) and not isinstance(x, Tracer)]
        of = ["this process alone" if x.is_fully_addressable else "all processes" for x in arrays]
        if len(set(of)) > 1:
            raise ValueError(
                f"the metric has the images of {of[0]}, and these are those of {of[1]}. Make them global with "
                "jax.make_array_from_process_local_data; or have a metric in each process, and merge them at the end."
            )
        self._set(_add(_Sums(*(placed(x, new) for x in mine)), sums))

    def _saved(self) -> dict[str, Any]:
        """The arrays, those of a network too, by their path, as ``flax.serialization`` keeps them."""
        return _arrays(nnx.state(self))

    def _restored(self, saved: dict[str, Any]) -> Self:
        """Another metric, with the arrays that were saved."""
        graph, state = nnx.split(self)
        arrays = serialization.from_state_dict(_arrays(state), saved).values()
        variables = nnx.to_flat_state(state)
        full = [(path, variable.replace(x)) for (path, variable), x in zip(variables, arrays, strict=True)]
        return nnx.merge(graph, nnx.from_flat_state(full))


class SSIM(_MeanOverImages):
    """Mean SSIM over images.

    Args:
      **options: the keyword arguments of :func:`jax_msssim.ssim` but for ``where`` and ``sizes``, arguments of
        :meth:`update`. They are static: ``max_val`` is one number.

    Raises:
      TypeError: an option is unknown, or traced.
      ValueError: an option has a value it cannot have.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
      >>> metrics = nnx.MultiMetric(ssim=SSIM(max_val=1.0), loss=nnx.metrics.Average("loss"))
      >>> metrics.update(predictions=0.9 * targets, targets=targets, loss=jnp.array([0.3, 0.1]))
      >>> {name: f"{value:.4f}" for name, value in metrics.compute().items()}
      {'ssim': '0.9916', 'loss': '0.2000'}

    References:
      Wang et al., `Image quality assessment: from error visibility to structural similarity
      <https://doi.org/10.1109/TIP.2003.819861>`_, 2004.
    """

    @takes(prepare, but=_OF_UPDATE)
    def __init__(self, **options: Unpack[SSIMOptions]):
        super().__init__(prepare, options)

    def _values(self, predictions, targets, **options):
        return _one_minus(ssim_loss(predictions, targets, **options))


class MSSSIM(_MeanOverImages):
    """Mean MS-SSIM over images.

    Args:
      negative: ``"relu"``, ``"shift"`` or ``"soft"``, as for :func:`jax_msssim.ms_ssim`.
      **options: the other keyword arguments of :func:`jax_msssim.ms_ssim` but for ``where`` and ``sizes``, arguments
        of :meth:`update`. They are static: ``max_val`` is one number, ``power_factors`` one for each scale.

    Raises:
      TypeError: an option is unknown, or traced.
      ValueError: an option has a value it cannot have.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 3 * 176 * 176).reshape(3, 176, 176, 1)
      >>> metric = MSSSIM()
      >>> metric.update(predictions=0.9 * targets, targets=targets)
      >>> f"{metric.compute():.4f}"
      '0.9976'
      >>> metric.reset()
      >>> metric.update(predictions=targets, targets=targets, mask=jnp.array([True, True, False]))
      >>> metric.compute()
      Array(1., dtype=float32)

    References:
      Wang, Simoncelli and Bovik, `Multiscale structural similarity for image quality assessment
      <https://doi.org/10.1109/ACSSC.2003.1292216>`_, 2003.
    """

    @takes(prepare_ms_ssim, but=_OF_UPDATE)
    def __init__(self, *, negative: Negative = "relu", **options: Unpack[PyramidOptions]):
        super().__init__(prepare_ms_ssim, {"negative": negative, **options})

    def _values(self, predictions, targets, **options):
        return _one_minus(ms_ssim_loss(predictions, targets, **options))


class DSSIM(_MeanOverImages):
    """Mean D-SSIM, ``(1 - SSIM) / 2``, over images.

    Args:
      **options: as for :class:`SSIM`.

    Raises:
      TypeError: an option is unknown, or traced.
      ValueError: an option has a value it cannot have.

    Examples:
      >>> import jax.numpy as jnp
      >>> targets = jnp.linspace(0, 1, 2 * 32 * 32).reshape(2, 32, 32, 1)
      >>> metric, other = DSSIM(), DSSIM()
      >>> metric.update(predictions=targets, targets=targets)
      >>> other.update(predictions=0.9 * targets, targets=targets)
      >>> metric.merge(other)
      >>> f"{other.compute():.4f}, and with two equal pairs {metric.compute():.4f}"
      '0.0042, and with two equal pairs 0.0021'

    References:
      Godard et al., `Unsupervised monocular depth estimation with left-right consistency
      <https://arxiv.org/abs/1609.03677>`_, 2017, equation 2.
    """

    @takes(prepare, but=_OF_UPDATE)
    def __init__(self, **options: Unpack[SSIMOptions]):
        super().__init__(prepare, options)

    def _values(self, predictions, targets, **options):
        return dssim_loss(predictions, targets, **options)


class DISTS(_MeanOverImages):
    """Mean DISTS, deep image structure and texture similarity, over images: a distance, 0 for equal ones.

    Args:
      network: gives the feature maps, as for :func:`jax_msssim.deep.dists_loss`. A module is part of the metric: its
        variables are its state, beside ``nnx.metrics.MetricState``.
      weights: ``(alpha, beta)``, as for :func:`jax_msssim.deep.dists_loss`; plain numbers.
      **options: ``max_val``, one number.

    Raises:
      TypeError: an option is unknown, or traced.
      ValueError: an option has a value it cannot have.

    Examples:
      >>> import jax.numpy as jnp
      >>> ones = [jnp.ones(3), jnp.ones(3)]
      >>> metric = DISTS(network=lambda images: [images, images[..., ::2, ::2, :]], weights=(ones, ones))
      >>> targets = jnp.linspace(0, 1, 2 * 32 * 32 * 3).reshape(2, 32, 32, 3)
      >>> metric.update(predictions=targets**2, targets=targets)
      >>> f"{metric.compute():.3f}"
      '0.184'

    References:
      Ding, Ma, Wang and Simoncelli, `Image quality assessment: unifying structure and texture similarity
      <https://arxiv.org/abs/2004.07728>`_, 2020.
    """

    @takes(prepare_images, but=_OF_UPDATE)
    def __init__(
        self,
        *,
        network: Callable[..., Any],
        weights: tuple[Sequence[ArrayLike], Sequence[ArrayLike]] = DISTS_WEIGHTS,
        **options: Unpack[ImageOptions],
    ):
        super().__init__(prepare_images, options)
        self.options += (("weights", _static("weights", weights)),)
        self.network = network

    def _values(self, predictions, targets, **options):
        return dists_loss(predictions, targets, network=self.network, **options)


def _arrays(state: nnx.State) -> dict[str, Any]:
    return {"/".join(map(str, path)): variable.get_value() for path, variable in nnx.to_flat_state(state)}


def _static(name: str, value):
    """An option as JAX can compare and hash it: numbers and sequences of numbers as Python's own."""
    if value is None:
        return value
    if name in ("max_val", "filter_sigma", "k1", "k2", "min_coverage"):
        return check_positive(name, value)
    if name == "window" and is_of_each_axis(value):
        return tuple(_static(name, taps) for taps in value)
    if name in ("power_factors", "window"):
        numbers = check_static(name, value)
        if numbers.ndim != 1:
            raise ValueError(f"{name} must be a sequence of numbers, got an array of shape {list(numbers.shape)}.")
        return tuple(numbers.tolist())
    if name == "weights":
        return FeatureWeights(*(tuple(tuple(check_static(name, x).tolist()) for x in of_maps) for of_maps in value))
    return value


def _checked_mask(mask, batch: tuple[int, ...]) -> Array:
    mask = as_array("mask", mask, "mask=mask.filled(False)")
    if mask.dtype != jnp.bool_:
        raise TypeError(f"mask must be boolean, True for the images that count, got {mask.dtype}: use mask > 0.")
    if mask.shape != batch:
        raise ValueError(
            f"mask must have one value per image, shape {list(batch)}, got {list(mask.shape)}. "
            "A mask of pixels is passed as where."
        )
    return own(mask)


# Compiled: the constants of what is not are transfers, which jax.transfer_guard forbids.
@jax.jit
def _one_minus(x: jax.Array) -> jax.Array:
    return 1 - x


@functools.partial(jax.jit, keep_unused=True)  # they tell the devices
def _zeros(sums: _Sums) -> _Sums:
    return jax.tree.map(jnp.zeros_like, sums)


@jax.jit
def _mean(sums: _Sums) -> jax.Array:
    total, compensation, images, rounds = (x.astype(float) for x in sums)
    return (total + compensation) / (2.0**32 * rounds + images)


@jax.jit
def _add(sums: _Sums, more: _Sums) -> _Sums:
    total, rest = _two_sum(sums[:2], more[:2])
    images = sums.images + more.images
    return _Sums(total, rest, images, sums.rounds + more.rounds + (images < more.images).astype(jnp.uint32))


@jax.jit
def _sum(values: jax.Array, mask: jax.Array | None) -> _Sums:
    """The sum of the values that count, with what has been rounded off it, and their number."""
    count = jnp.asarray(values.size, jnp.uint32)
    if mask is not None:
        values, count = jnp.where(mask, values, 0), mask.sum(dtype=jnp.uint32)
    rounded = lax.reduce_precision(values, 8, 23)  # to float32; nothing is left of values that are
    parts = rounded.astype(jnp.float32), (values - rounded).astype(jnp.float32)
    zeros = jnp.float32(0), jnp.float32(0)
    total, rest = lax.reduce(parts, zeros, _two_sum, tuple(range(values.ndim)))
    return _Sums(total, rest, count, jnp.zeros_like(count))


def _two_sum(x, y):
    """``x + y``, each a sum and what has been rounded off it (Knuth's exact addition, renormalised)."""
    (a, a_rest), (b, b_rest) = x, y
    total = a + b
    b_in_total = total - a
    rest = (a - (total - b_in_total)) + (b - b_in_total)
    rest = a_rest + b_rest + rest
    whole = total + rest  # else the rest, a sum of millions, would have digits rounded off itself
    return whole, rest - (whole - total)
