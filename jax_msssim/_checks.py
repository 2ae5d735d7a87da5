"""Single checks of what callers pass: shapes and types when traced, numbers before that, never a traced value."""

import functools
import numbers
from collections.abc import Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array | np.ndarray

MAX_VAL_OF_INTEGERS = {"uint8": 255.0, "uint16": 65535.0}

AXES = {1: "T, C", 2: "H, W, C", 3: "D, H, W, C"}

# --- numbers and names ---------------------------------------------------------------------------------------


def check_static(name: str, value) -> np.ndarray:
    """``value`` as float64 NumPy; a traced value cannot shape a compiled program, so it is refused."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{name} must be plain Python or NumPy numbers, known before compilation, got {type(value).__name__}. "
            "If it comes from an argument of a jitted function, mark that argument static."
        ) from error


def check_positive(name: str, value) -> float:
    """``value`` as a Python float above 0."""
    number = check_static(name, value)
    if number.ndim != 0:
        raise TypeError(f"{name} must be one number, got an array of shape {list(number.shape)}.")
    if not 0 < number < np.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {value!r}.")
    return float(number)


def check_count(name: str, value) -> int:
    """``value`` as a Python int, at least 1."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a Python int, known before compilation, got {value!r}.")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}.")
    return int(value)


def check_option(name: str, value: Any, names: Any) -> None:
    """One of the values of a ``Literal`` type."""
    allowed = get_args(names)
    if not any(type(value) is type(option) and value == option for option in allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}.")


def check_numbers(name: str, value) -> Array:
    """Real numbers as an array: those of JAX, which may be traced, as they are, others in float64."""
    array = value if isinstance(value, jax.Array) else np.asarray(value)
    if not is_real(array.dtype):
        raise TypeError(f"{name} must be a number or an array of numbers, got {value!r}.")
    return array if isinstance(array, jax.Array) else array.astype(np.float64)


def check_unit_interval(name: str, value) -> Array:
    """A share between 0 and 1, as an array without axes; a traced one is not looked at."""
    share = check_numbers(name, value)
    if isinstance(share, np.ndarray) and not np.all((share >= 0) & (share <= 1)):
        raise ValueError(f"{name} must be between 0 and 1, got {value!r}.")
    if share.ndim != 0:
        raise ValueError(f"{name} must be a single number, got shape {list(share.shape)}.")
    return share


def is_real(dtype) -> bool:
    return jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)


# --- images and masks ------------------------------------------------------------------------------------------


def as_array(name: str, x, instead: str) -> Array:
    """What JAX computes with, of what it would misread or does not take: other byte orders, variables of Flax."""
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, of which JAX would drop the mask: pass {name}.data and {instead}.")
    if isinstance(x, np.ndarray):
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if not isinstance(x, jax.Array) and hasattr(x, "__jax_array__"):
        x = x.__jax_array__()
    if not isinstance(x, jax.Array):
        raise TypeError(f"{name} must be an array, got {type(x).__name__}. Wrap it in jnp.asarray.")
    return x


def own(x: Array) -> Array:
    """A copy of a NumPy array, in the type JAX has for it, for callers to change theirs; an array of JAX as it is.

    JAX may read a NumPy array after the call has returned. On a CPU it computes with one that begins at a multiple of
    64 bytes in place, and some releases copy others later, whatever ``device_put`` is asked for. This copy is made at
    once, and begins at such a multiple, so that JAX makes no other. Constants of traced functions stay NumPy arrays.
    """
    if not isinstance(x, np.ndarray):
        return x
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    memory = np.empty(x.size * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + x.size * dtype.itemsize].view(dtype).reshape(x.shape)
    copy[...] = x
    return copy


def placed(x: Array, image: Any) -> Array:
    """A few NumPy numbers, on the devices of an image: ``jax.transfer_guard`` wants that said. Kept for next time."""
    if not isinstance(x, np.ndarray) or not isinstance(image, jax.Array) or isinstance(image, Tracer):
        return x
    return _placed(x.tobytes(), x.dtype, x.shape, image.sharding, image.committed)


@functools.lru_cache
def _placed(numbers: bytes, dtype, shape, sharding, committed: bool) -> jax.Array:
    x = np.frombuffer(numbers, dtype).reshape(shape)
    if isinstance(sharding, NamedSharding):  # whole on each device; no process asks another whether it has the same
        return jax.make_array_from_callback(shape, NamedSharding(sharding.mesh, PartitionSpec()), lambda part: x[part])
    with jax.ensure_compile_time_eval():
        return jax.device_put(x, sharding if committed else None)


def check_images(names, a, b, spatial_ndim) -> None:
    axes = AXES[spatial_ndim]
    for name, x in zip(names, (a, b), strict=True):
        if not is_real(x.dtype) or x.dtype.itemsize > 8:
            raise TypeError(f"{name} must hold real numbers, floating or integer, of at most 64 bits, got {x.dtype}.")
        if x.ndim < spatial_ndim + 1:
            raise ValueError(
                f"{name} must have shape [..., {axes}], channels last, got {list(x.shape)}. "
                f"Give images without a channel axis one of size 1: {name}[..., None]."
            )
    if a.shape != b.shape:
        raise ValueError(
            f"{names[0]} and {names[1]} must have the same shape, got {list(a.shape)} and {list(b.shape)}. "
            "Images are never broadcast or resized."
        )
    for name, x in zip(names, (a, b), strict=True):
        _check_sharding(name, x, spatial_ndim)
    if 0 in a.shape[-spatial_ndim - 1 :]:
        raise ValueError(f"{names[0]} and {names[1]} have no pixels: their shape is {list(a.shape)} ([..., {axes}]).")


def _check_sharding(name: str, x, spatial_ndim: int) -> None:
    """On an explicit mesh JAX moves no data by itself; the types of an automatic one know of no sharding."""
    kind = jax.typeof(x)
    batch = x.ndim - spatial_ndim - 1
    first, *others = AXES[spatial_ndim].split(", ")
    for axis, over in zip(others, kind.sharding.spec[batch + 1 :], strict=True):
        if over is not None:
            kept, instead = (", ".join(map(repr, (*kind.sharding.spec[:batch], *cut))) for cut in ((), (over,)))
            raise ValueError(
                f"{name}, {kind}, is sharded along {axis}: on an explicit mesh only the batch and {first} can be. "
                f"Pass jax.sharding.reshard(x, jax.P({kept})), or cut along {first} by jax.P({instead})."
            )


def check_where(where, shape, paddings, downsample: str, scales: int) -> None:
    if where.dtype != jnp.bool_:
        raise TypeError(f"where must be boolean, True for the pixels that count, got {where.dtype}: use mask > 0.")
    if where.ndim != len(shape) or any(n not in (1, m) for n, m in zip(where.shape, shape, strict=True)):
        raise ValueError(
            f"where must have the images' rank, each axis equal to theirs or 1, got {list(where.shape)} "
            f"for images of shape {list(shape)}. A mask [..., H, W] needs a channel axis: where[..., None]."
        )
    for padding in paddings:
        if padding not in ("valid", "same"):
            raise ValueError(
                f'padding={padding!r} cannot repeat masked pixels: use padding="valid" or "same" with where.'
            )
    if scales > 1 and downsample not in ("edge", "floor"):
        raise ValueError(
            f'downsample={downsample!r} is not defined for masked pixels: use downsample="edge" or "floor" with where.'
        )


def check_sizes(sizes, batch: tuple[int, ...], sides: tuple[int, ...], least: Sequence[int]) -> Array:
    """``sizes`` as int32 over the batch; traced ones that cannot be are 0, of which every value is NaN."""
    sizes = sizes if isinstance(sizes, jax.Array) else np.asarray(sizes)
    if not jnp.issubdtype(sizes.dtype, jnp.integer):
        raise TypeError(f"sizes must be integers, the true sides of each image in pixels, got {sizes.dtype}.")
    if sizes.ndim == 0 or sizes.shape[-1] != len(sides):
        raise ValueError(
            f"sizes must have shape {[*batch, len(sides)]}, the true sides of each image, got {list(sizes.shape)}."
        )
    sizes = over_batch("sizes", sizes, batch, trailing=1)
    if isinstance(sizes, Tracer) or (isinstance(sizes, jax.Array) and not sizes.is_fully_addressable):
        limits = enumerate(zip(least, sides, strict=True))
        possible = [(sizes[..., axis] >= low) & (sizes[..., axis] <= high) for axis, (low, high) in limits]
        return jnp.where(functools.reduce(jnp.logical_and, possible)[..., None], sizes, 0).astype(np.int32)
    each = np.asarray(jax.device_get(sizes)).reshape(-1, len(sides))
    wrong = np.flatnonzero(((each < least) | (each > sides)).any(-1))
    if wrong.size:
        raise ValueError(
            f"sizes must be at least {list(least)} and at most {list(sides)}, the sides of the array, "
            f"got {each[wrong[0]].tolist()} for image {wrong[0]}."
        )
    return sizes.astype(np.int32)


def over_batch(name: str, x: Array, batch: tuple[int, ...], trailing: int = 0) -> Array:
    """``x`` with as many leading axes as the batch, each equal to the batch's or 1."""
    leading = x.shape[: x.ndim - trailing]
    missing = len(batch) - len(leading)
    if missing < 0 or any(n not in (1, m) for n, m in zip(leading, batch[missing:], strict=True)):
        raise ValueError(f"{name} of shape {list(x.shape)} does not broadcast over a batch of shape {list(batch)}.")
    return x.reshape((1,) * missing + x.shape)
