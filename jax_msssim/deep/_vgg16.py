"""VGG16 as DISTS uses it: the feature maps of its five stages, with L2 pooling between them."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike, DTypeLike

try:
    from flax import nnx
except ImportError as error:
    raise ImportError('jax_msssim.deep needs Flax 0.12.6 or newer: pip install "jax_msssim[flax]".') from error

from jax_msssim._means import selected
from jax_msssim._options import arithmetic

# Of each stage, the place of its convolutions in torchvision's ``vgg16().features``, and their outputs.
STAGES = (((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21), 512), ((24, 26, 28), 512))
CHANNELS = (3, *(channels for _, channels in STAGES))
"""Of the maps: the images themselves, and one for each stage."""

# Of ImageNet, by which torchvision normalises images in [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class VGG16(nnx.Module):
    """The feature maps of VGG16 that DISTS compares; made by :meth:`from_torch`.

    They are the images themselves and ``relu1_2``, ``relu2_2``, ``relu3_3``, ``relu4_3`` and ``relu5_3``, with 3, 64,
    128, 256, 512 and 512 channels. In place of maximum pooling, which aliases, there is L2 pooling: the root of the
    local mean square, in windows ``[1, 2, 1] / 4`` along each axis, at every second position. Images of any size will
    do, and none is resized.

    Nothing is downloaded: the weights are yours to bring. They are ``nnx.Variable`` and no ``nnx.Param``, so an
    optimizer of ``nnx.Param`` leaves them as they are. Pass the network to a jitted function as an argument; one that
    is closed over is copied into the program.

    Args:
      kernels, biases: of the 13 convolutions in turn, ``[3, 3, in, out]`` and ``[out]``.
      dtype: the type of the arithmetic, by default that of the images, at least float32. ``jnp.bfloat16`` is for
        training on accelerators; otherwise the convolutions there keep the digits of float32, at some cost.

    Examples:
      >>> import jax.numpy as jnp
      >>> import numpy as np
      >>> rng, weights, inputs = np.random.default_rng(0), {}, 3  # means nothing: it is for you to bring true weights
      >>> for stage, outputs in [((0, 2), 64), ((5, 7), 128), ((10, 12, 14), 256), ((17, 19, 21, 24, 26, 28), 512)]:
      ...     for i in stage:
      ...         deviation = (2 / (9 * inputs)) ** 0.5
      ...         weights[f"features.{i}.weight"] = deviation * rng.standard_normal((outputs, inputs, 3, 3), np.float32)
      ...         weights[f"features.{i}.bias"] = np.zeros(outputs, np.float32)
      ...         inputs = outputs
      >>> network = VGG16.from_torch(weights)
      >>> [feature_map.shape for feature_map in network(jnp.ones((32, 48, 3)))[1:3]]
      [(32, 48, 64), (16, 24, 128)]

    References:
      Simonyan and Zisserman, `Very deep convolutional networks for large-scale image recognition
      <https://arxiv.org/abs/1409.1556>`_, 2015; Henaff and Simoncelli, `Geodesics of learned representations
      <https://arxiv.org/abs/1511.06394>`_, 2016 (L2 pooling).
    """

    def __init__(self, kernels: Sequence[ArrayLike], biases: Sequence[ArrayLike], *, dtype: DTypeLike | None = None):
        self.kernels = nnx.List([nnx.Variable(jnp.asarray(kernel)) for kernel in kernels])
        self.biases = nnx.List([nnx.Variable(jnp.asarray(bias)) for bias in biases])
        self.dtype = None if dtype is None else jnp.dtype(dtype)

    @classmethod
    def from_torch(cls, weights: Mapping[str, Any], *, dtype: DTypeLike | None = None) -> Self:
        """The network with PyTorch's weights.

        Args:
          weights: arrays by the names of torchvision or timm, ``features.0.weight`` to ``features.28.bias``, whatever
            stands before: a ``state_dict`` on the CPU, what ``safetensors.numpy.load_file`` or ``numpy.load`` return.
            Other names, such as the classifier's, are ignored.
          dtype: as above.

        Raises:
          ValueError: an array is missing, there twice, or of another shape; or the weights are Keras', which are
            other ones.
        """
        names = _names(weights)
        kernels, biases, inputs = [], [], CHANNELS[0]
        for places, outputs in STAGES:
            for i in places:
                kernel = _array(weights, names, f"features.{i}.weight", (outputs, inputs, 3, 3))
                kernels.append(np.transpose(kernel, (2, 3, 1, 0)))
                biases.append(_array(weights, names, f"features.{i}.bias", (outputs,)))
                inputs = outputs
        return cls(kernels, biases, dtype=dtype)

    def __call__(self, images: ArrayLike, where: ArrayLike | None = None):
        """The maps of images.

        Args:
          images: ``[..., H, W, 3]``, floating, from 0 to 1: red, green and blue.
          where: boolean ``[..., H, W, 1]``: True for the pixels that count. The others are zeros to every layer, as is
            what lies around an image, so the maps of a masked rectangle that begins at multiples of 16 are those of its
            crop.

        Returns:
          A tuple of six maps ``[..., H', W', C]``. With ``where``, a pair: the maps, and of each the positions that
          count, ``[..., H', W', 1]``.

        Raises:
          TypeError: the images are not floating.
          ValueError: they do not have three channels.
        """
        images = jnp.asarray(images)
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise TypeError(f"images must be floating, from 0 to 1, got {images.dtype}: divide by the value of white.")
        if images.ndim < 3 or images.shape[-1] != CHANNELS[0]:
            raise ValueError(
                f"images must have shape [..., H, W, 3], red, green and blue, for VGG16, got {list(images.shape)}. "
                "Grey ones can be repeated: jnp.repeat(images, 3, -1)."
            )
        dtype = arithmetic(images) if self.dtype is None else self.dtype
        kernels, biases = ([x[...] for x in xs] for xs in (self.kernels, self.biases))
        maps, masks = _maps(images, None if where is None else jnp.asarray(where), kernels, biases, dtype)
        return maps if where is None else (maps, masks)


def _names(weights: Mapping[str, Any]) -> dict[str, str]:
    """The names in a mapping by those in torchvision; the files of DISTS say ``stage1.0`` for ``features.0``."""
    names = {}
    for name in weights:
        if "block1_conv1" in name:
            raise ValueError(
                f"weights holds {name!r}: these are the weights of Keras, for other images (BGR, 0 to 255, their mean "
                "subtracted). The alpha and beta of DISTS belong to torchvision's: vgg16(weights='IMAGENET1K_V1')."
            )
        if match := re.fullmatch(r"(?:(?:.*\.)?(?:features|stage\d)\.)?(\d+\.(?:weight|bias))", name):
            known = f"features.{match[1]}"
            if known in names:
                raise ValueError(f"weights holds {known} twice, as {names[known]!r} and {name!r}: pass one network's.")
            names[known] = name
    return names


def _array(weights: Mapping[str, Any], names: Mapping[str, str], name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in names:
        raise ValueError(
            f"weights must hold {name}, of shape {list(shape)}, as torchvision's and timm's vgg16 do (not vgg16_bn, "
            f"not vgg19); the names here are {', '.join([*weights][:4])}, ..."
        )
    array = np.asarray(weights[names[name]])
    if array.shape != shape:
        raise ValueError(f"weights[{names[name]!r}] must have shape {list(shape)}, got {list(array.shape)}.")
    return array


@functools.partial(jax.jit, static_argnames="dtype")
def _maps(images, where, kernels, biases, dtype):
    """The maps, and where they count."""
    with jax.named_scope("jax_msssim.vgg16"):
        batch = images.shape[:-3]
        mean, deviation = (jnp.asarray(x, images.dtype).reshape((1,) * (images.ndim - 1) + (3,)) for x in (MEAN, STD))
        x = ((images - mean) / deviation).astype(dtype)
        x = x.reshape(-1, *x.shape[-3:])
        mask = None if where is None else jnp.broadcast_to(where, (*images.shape[:-1], 1)).reshape(*x.shape[:-1], 1)
        x = _counting(mask, x)
        layers = zip(kernels, biases, strict=True)
        maps, masks = [images], [where]
        for k, (places, _) in enumerate(STAGES):
            if k:
                mask = None if mask is None else mask[:, ::2, ::2]
                x = _counting(mask, l2_pool(x))
            for _, (kernel, bias) in zip(places, layers, strict=False):
                x = _counting(mask, jax.nn.relu(_convolution(x, kernel.astype(dtype), bias.astype(dtype))))
            maps.append(x.reshape(*batch, *x.shape[1:]))
            masks.append(None if mask is None else mask.reshape(*batch, *mask.shape[1:]))
        return tuple(maps), tuple(masks)


def _counting(mask, x):
    return x if mask is None else selected(mask, x)


def _convolution(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    # Without the precision a TPU would round float32 to bfloat16, and a GPU to TF32.
    x = lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout, precision=lax.Precision.HIGHEST)
    return x + bias.reshape(1, 1, 1, -1)


def l2_pool(x: jax.Array) -> jax.Array:
    """The root of the mean square around every second position, with zeros around the map; in float32 at least."""
    squares = jnp.square(x.astype(arithmetic(x)))
    for axis in (1, 2):
        squares = _halved(squares, axis)
    return jnp.sqrt(squares + 1e-12).astype(x.dtype)


def _halved(x: jax.Array, axis: int) -> jax.Array:
    """Means by ``[1, 2, 1] / 4`` around positions 0, 2, 4, ... along an axis."""
    side = x.shape[axis]
    half = (side + 1) // 2
    margins = [(0, 0, 0)] * x.ndim
    margins[axis] = (1, side % 2, 0)
    x = lax.pad(x, np.zeros((), x.dtype), margins)
    before, at, after = (lax.slice_in_dim(x, k, k + 2 * half - 1, 2, axis) for k in range(3))
    return (before + after) * 0.25 + at * 0.5
