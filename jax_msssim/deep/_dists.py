r"""DISTS: SSIM's two terms on the feature maps of a network, over all positions of a map at once.

For channel :math:`j` of map :math:`k`, with means :math:`\mu` and population variances over all positions,

    1 - l = (mu_x - mu_y)^2 / (mu_x^2 + mu_y^2 + c1)      texture
    1 - s = Var(x - y) / (Var x + Var y + c2)             structure

are never negative, and 0 for equal maps. DISTS is their mean, by the weights alpha and beta of all channels.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jax_msssim._checks import Array, as_array, check_images, check_numbers, check_positive, check_where, own
from jax_msssim._means import mean_of_map, selected, spatial_axes, weighted_mean
from jax_msssim._options import Images, Options, arithmetic, prepare
from jax_msssim._scales import inside, sharded_alike
from jax_msssim._shards import refuse_shards
from jax_msssim._signatures import takes


class FeatureTerms(NamedTuple):
    """What makes two maps unlike, of each channel, ``[..., C]``."""

    texture: jax.Array
    """``1 - l``, by the means of the maps: the presence of a feature, wherever it is."""
    structure: jax.Array
    """``1 - s``, by their variances and covariance: where it is."""


class FeatureWeights(NamedTuple):
    """How much texture and structure count, each as one array ``[C]`` for each map."""

    alpha: Sequence[Any]
    beta: Sequence[Any]

    def __repr__(self):
        return f"<alpha and beta of {len(self.alpha)} maps>"


def _published() -> FeatureWeights:
    with np.load(Path(__file__).with_name("weights.npz")) as file:
        of_all = file["alpha"], file["beta"]
    for weights in of_all:
        weights.flags.writeable = False
    return FeatureWeights(*(tuple(np.split(weights, np.cumsum((3, 64, 128, 256, 512)))) for weights in of_all))


DISTS_WEIGHTS = _published()
"""The published alpha and beta, for the maps of :class:`VGG16`."""


class ImageOptions(TypedDict, total=False):
    """What :func:`dists_loss` takes as :func:`jax_msssim.ssim` does."""

    max_val: ArrayLike | None
    where: ArrayLike | None
    sizes: ArrayLike | None


def prepare_images(
    names: tuple[str, str],
    a: Any,
    b: Any,
    /,
    *,
    max_val: ArrayLike | None = None,
    where: ArrayLike | None = None,
    sizes: ArrayLike | None = None,
) -> tuple[Options, Images]:
    """The type of the arithmetic, in options of which the rest is not used, and the checked images."""
    options, images = prepare(names, a, b, max_val=max_val, filter_size=1, padding="same", where=where, sizes=sizes)
    refuse_shards("a network", names, images.a, images.b, 2)
    return options, images


def feature_terms(
    a: ArrayLike, b: ArrayLike, *, c1: float = 1e-6, c2: float = 1e-6, where: ArrayLike | None = None
) -> FeatureTerms:
    """Texture and structure of two feature maps, of any model: SSIM's terms over all positions at once.

    Args:
      a, b: maps of one shape ``[..., H, W, C]``, of any floating type; the arithmetic is at least float32.
      c1, c2: keep both terms finite where maps are 0, or flat; above 0.
      where: boolean, of the maps' rank, each axis of their length or 1: True for the positions that count. The others
        may hold anything, and have gradient 0.

    Returns:
      ``(texture, structure)``, both ``[..., C]``: ``1 - l`` and ``1 - s``, from 0, for equal maps, to 1 and 2. NaN
      where no position counts.

    Raises:
      TypeError: a map is not an array of real numbers, or ``where`` is not boolean.
      ValueError: shapes differ, or an axis is missing.

    Examples:
      >>> import jax.numpy as jnp
      >>> a = jnp.sin(jnp.arange(8 * 8 * 2.0)).reshape(8, 8, 2)
      >>> moved = jnp.roll(a, 1, 0)
      >>> terms = feature_terms(a, moved)
      >>> [f"{value:.3f}" for value in (*terms.texture, *terms.structure)]
      ['0.000', '0.000', '1.771', '1.789']

    References:
      Ding, Ma, Wang and Simoncelli, `Image quality assessment: unifying structure and texture similarity
      <https://arxiv.org/abs/2004.07728>`_, 2020, equations 5 and 6.
    """
    c1, c2 = check_positive("c1", c1), check_positive("c2", c2)
    a, b, where = _checked_maps(("a", "b"), a, b, where, "where")
    return _feature_terms(a, b, where, c1, c2)


def dists_from_features(
    features_a: Sequence[ArrayLike],
    features_b: Sequence[ArrayLike],
    *,
    weights: tuple[Sequence[ArrayLike], Sequence[ArrayLike]],
    c1: float = 1e-6,
    c2: float = 1e-6,
    where: Sequence[ArrayLike] | None = None,
) -> jax.Array:
    """The distance of two lists of feature maps: the mean of their :func:`feature_terms`, by weights.

    Args:
      features_a, features_b: as many maps of each image, ``[..., H, W, C]``, of any sizes.
      weights: ``(alpha, beta)``, the weights of texture and of structure: each as many arrays ``[C]`` as there are
        maps. None is negative; they are divided by their sum. They may be traced and differentiated.
      c1, c2: as for :func:`feature_terms`.
      where: a mask for each map, as for :func:`feature_terms`.

    Returns:
      One distance per image, shape ``[...]``, at least 0, and 0 for equal maps: float64 if a map is, else float32.

    Raises:
      TypeError: as for :func:`feature_terms`.
      ValueError: as for :func:`feature_terms`; the numbers of maps, masks, weights, or of their channels differ.

    Examples:
      >>> import jax.numpy as jnp
      >>> fine = jnp.sin(jnp.arange(8 * 8 * 2.0)).reshape(8, 8, 2)
      >>> coarse = fine[::2, ::2]
      >>> ones = [jnp.ones(2), jnp.ones(2)]
      >>> f"{dists_from_features([fine, coarse], [fine + 0.1, coarse], weights=(ones, ones)):.3f}"
      '0.210'

    References:
      Ding, Ma, Wang and Simoncelli, `Image quality assessment: unifying structure and texture similarity
      <https://arxiv.org/abs/2004.07728>`_, 2020, equation 7.
    """
    c1, c2 = check_positive("c1", c1), check_positive("c2", c2)
    of_all = (features_a, features_b, where or [None] * len(features_a))
    if len({len(x) for x in of_all}) != 1 or len(features_a) == 0:
        raise ValueError(
            "features_a, features_b and where must hold as many arrays, at least one, "
            f"got {', '.join(str(len(x)) for x in of_all)}."
        )
    triples = []
    for k, (a, b, mask) in enumerate(zip(*of_all, strict=True)):
        triples.append(_checked_maps((f"features_a[{k}]", f"features_b[{k}]"), a, b, mask, f"where[{k}]"))
    a, b, masks = zip(*triples, strict=True)
    if len({x.shape[:-3] for x in a}) != 1:
        raise ValueError(f"features_a must be of one batch, [..., H, W, C], got {', '.join(str(x.shape) for x in a)}.")
    return _distance(a, b, masks, *_checked_weights(weights, [x.shape[-1] for x in a]), c1, c2)


@takes(prepare_images)
def dists_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    network: Callable[..., Any],
    weights: tuple[Sequence[ArrayLike], Sequence[ArrayLike]] = DISTS_WEIGHTS,
    **options: Unpack[ImageOptions],
) -> jax.Array:
    """Deep image structure and texture similarity: how unlike two images are to a network, from 0 for equal ones.

    A texture may be replaced by another sample of itself, at which SSIM fails: the means of feature maps say which
    texture it is, their covariance where things are.

    Args:
      predictions: images of shape ``[..., H, W, C]``. :class:`VGG16` takes three channels, red, green and blue.
      targets: images of the same shape.
      network: a function of images over ``max_val`` that returns a list or tuple of feature maps ``[..., H', W', C']``:
        a :class:`VGG16`, or any other. It is called for predictions and for targets, each whole, and is not compiled
        here: that is its own matter, or that of a jitted training step. Nothing is resized or normalised but by it.
      weights: ``(alpha, beta)``, as for :func:`dists_from_features`. Those that were published are for :class:`VGG16`.
      max_val: the largest value a pixel can have, as for :func:`jax_msssim.ssim`.
      where: boolean mask, as for :func:`jax_msssim.ssim`; a pixel counts if all its channels do. The network must take
        ``where=``, ``[..., H, W, 1]``, and return the maps and a mask for each, as :class:`VGG16` does.
      sizes: the true sides of each image in a padded batch, as for :func:`jax_msssim.ssim`; as for ``where``.

    Returns:
      One loss per image, shape ``[...]``: float64 if an image is, else float32.

    Raises:
      TypeError: as for :func:`jax_msssim.ssim`; the network returns something else, or takes no ``where=``.
      ValueError: as for :func:`jax_msssim.ssim`; weights do not go with the maps.

    Examples:
      >>> import jax, jax.numpy as jnp
      >>> kernels = jax.random.normal(jax.random.key(0), (3, 3, 3, 8))  # any network: one layer, for example
      >>> layer = lambda x: jax.nn.relu(jax.lax.conv_general_dilated(
      ...     x, kernels, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")))
      >>> targets = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
      >>> ones = [jnp.ones(3), jnp.ones(8)]
      >>> network = lambda images: [images, layer(images)]
      >>> dists_loss(targets, targets, network=network, weights=(ones, ones))
      Array([0., 0.], dtype=float32)
      >>> loss = dists_loss(targets**2, targets, network=network, weights=(ones, ones))
      >>> loss.shape
      (2,)

    References:
      Ding, Ma, Wang and Simoncelli, `Image quality assessment: unifying structure and texture similarity
      <https://arxiv.org/abs/2004.07728>`_, 2020.
    """
    if not callable(network):
        raise TypeError(
            "network must be a function of images that returns feature maps, as jax_msssim.deep.VGG16 is, "
            f"got {type(network).__name__}."
        )
    prepared, images = prepare_images(("predictions", "targets"), predictions, targets, **options)
    a, b, where = _inputs(images, prepared)
    if where is None:
        features_a, features_b = (_checked_features(network(x)) for x in (a, b))
        return dists_from_features(features_a, features_b, weights=weights)
    parameters = inspect.signature(network).parameters.values()
    if not any(p.name == "where" or p.kind is p.VAR_KEYWORD for p in parameters):
        raise TypeError(
            f"network must take where= and return the maps and a mask for each, got {network}: a mask, or sizes, is "
            "given, and only the network knows which positions of its maps count. See jax_msssim.deep.VGG16."
        )
    (features_a, masks), (features_b, _) = (network(x, where=where) for x in (a, b))
    features_a, features_b = (_checked_features(x) for x in (features_a, features_b))
    return dists_from_features(features_a, features_b, weights=weights, where=masks)


@functools.partial(jax.jit, static_argnums=1)
def _inputs(images: Images, options: Options) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Both images over ``max_val``, 0 where masked, and the mask, ``[..., H, W, 1]``."""
    a, b = (jnp.asarray(x).astype(options.dtype) for x in (images.a, images.b))
    masks = () if images.where is None else (jnp.broadcast_to(jnp.asarray(images.where), a.shape),)
    a, b, *others = sharded_alike(a, b, *masks, *images.sides(options.window))
    where = inside(others[len(masks) :], (*a.shape[:-1], 1))
    if masks:
        counts = others[0].all(-1, keepdims=True)
        where = counts if where is None else jnp.logical_and(where, counts)
    if where is not None:
        a, b = selected(where, a), selected(where, b)
    max_val = images.max_val.reshape(*images.max_val.shape, 1, 1, 1)
    return a / max_val, b / max_val, where


def _checked_features(features: Any) -> Sequence[Any]:
    if not isinstance(features, list | tuple):
        raise TypeError(f"network must return a list or tuple of feature maps, got {type(features).__name__}.")
    return features


def _checked_maps(names: tuple[str, str], a: Any, b: Any, where: Any, name_of_where: str):
    a, b = (as_array(name, x, "where=") for name, x in zip(names, (a, b), strict=True))
    check_images(names, a, b, 2)
    refuse_shards("a mean of maps", names, a, b, 2)
    if where is not None:
        where = as_array(name_of_where, where, f"{name_of_where}.filled(False)")
        check_where(where, a.shape, (), "edge", 1)
        where = own(where)
    return own(a), own(b), where


def _checked_weights(weights: Any, channels: Sequence[int]) -> list[list[Array]]:
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise TypeError("weights must be a pair (alpha, beta), each one array of numbers for each map.")
    checked = [[check_numbers("weights", x) for x in of_maps] for of_maps in weights]
    for name, of_maps in zip(("alpha", "beta"), checked, strict=True):
        shapes = [list(x.shape) for x in of_maps]
        if shapes != [[c] for c in channels]:
            raise ValueError(
                f"weights must hold one number for each channel: the maps have {list(channels)} channels, {name} has "
                f"arrays of shape {shapes}. DISTS_WEIGHTS are for the maps of VGG16."
            )
    known = [x for of_maps in checked for x in of_maps if isinstance(x, np.ndarray)]
    if not all(np.all((x >= 0) & (x < np.inf)) for x in known):
        raise ValueError("weights must be finite and not negative.")
    if len(known) == 2 * len(channels) and not any(x.any() for x in known):
        raise ValueError("weights must not all be 0.")
    return checked


@functools.partial(jax.jit, static_argnums=(5, 6))
def _distance(features_a, features_b, masks, alpha, beta, c1: float, c2: float) -> jax.Array:
    with jax.named_scope("jax_msssim.dists"):
        dtype, parts = arithmetic(*features_a, *features_b), []
        for a, b, where, *numbers in zip(features_a, features_b, masks, alpha, beta, strict=True):
            for term, weight in zip(_feature_terms(a, b, where, c1, c2), numbers, strict=True):
                weight = jnp.asarray(weight).astype(dtype).reshape((1,) * (term.ndim - 1) + (-1,))
                parts.append(((weight * term.astype(dtype)).sum(-1), weight.sum()))
        distance, total = (functools.reduce(jnp.add, x) for x in zip(*parts, strict=True))
        distance /= total
        chex.assert_shape(distance, features_a[0].shape[:-3])
        return distance


@functools.partial(jax.jit, static_argnums=(3, 4))
def _feature_terms(a, b, where, c1: float, c2: float) -> FeatureTerms:
    dtype = arithmetic(a, b)
    a, b = (jnp.asarray(x).astype(dtype) for x in (a, b))
    axes = spatial_axes(a, 2)
    weights = None
    if where is not None:
        where = jnp.broadcast_to(jnp.asarray(where), a.shape)
        a, b, weights = selected(where, a), selected(where, b), where.astype(dtype)

    def mean(x):
        return mean_of_map(x, axes) if weights is None else weighted_mean(x, weights, axes)[0]

    def centred(x):
        of_all = mean(x)
        return of_all, x - lax.expand_dims(of_all, axes)

    (mean_a, a_above), (mean_b, b_above), (mean_d, d_above) = map(centred, (a, b, a - b))
    texture = jnp.square(mean_d) / (jnp.square(mean_a) + jnp.square(mean_b) + c1)
    structure = mean(jnp.square(d_above)) / (mean(jnp.square(a_above) + jnp.square(b_above)) + c2)
    terms = FeatureTerms(texture, structure)
    chex.assert_shape(terms, (*a.shape[:-3], a.shape[-1]))
    if where is None:
        return terms
    return FeatureTerms(*(jnp.where(where.any(axes), term, jnp.nan) for term in terms))
