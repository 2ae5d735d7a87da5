"""Images that are cut along their first spatial axis over the devices of a mesh: each computes with its own lines.

A shard is to the rest of the library an array with an image in it that has ``sizes`` of its own (``_scales``): they
tell where the image ends, seen from the shard's first line, which may be far beyond its last. Windows reach across the
border of a shard, so at every scale it takes the lines it lacks from the shards beside it. Means are averaged over
shards. Nothing else moves between devices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jax_msssim._checks import AXES
from jax_msssim._means import places, selected

CutOver = tuple[str, ...]  # the axes of the mesh that images are cut over; (): they are whole


def finest(*arrays: Any) -> NamedSharding:
    """Of the shardings of some arrays that which cuts along the most axes."""
    return min((jax.typeof(x).sharding for x in arrays), key=lambda sharding: tuple(sharding.spec).count(None))


def cut_over(a: Any, b: Any, spatial_ndim: int) -> CutOver:
    """The axes of an explicit mesh over which two images are cut along their first spatial axis."""
    return _names(finest(a, b).spec[a.ndim - spatial_ndim - 1])


def _names(axis: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return axis if isinstance(axis, tuple) else () if axis is None else (axis,)


def check_shards(names: tuple[str, str], a: Any, b: Any, spatial_ndim: int, scales: int) -> CutOver:
    """:func:`cut_over`, of shards that can be halved one by one."""
    over = cut_over(a, b, spatial_ndim)
    shards = math.prod(finest(a, b).mesh.shape[name] for name in over)
    lines, multiple = a.shape[-spatial_ndim - 1], 2 ** (scales - 1)
    if not over or lines % (shards * multiple) == 0:
        return over
    axis = AXES[spatial_ndim][0]
    raise ValueError(
        f"{names[0]} and {names[1]} are cut along {axis} into {shards} shards of {lines // shards} lines, and for "
        f"{scales} scales each must have a multiple of {multiple}. Pad {axis} from {lines} to "
        f"{math.ceil(lines / (shards * multiple)) * shards * multiple} and pass sizes, which changes no value; or cut "
        "over fewer devices."
    )


def refuse_shards(what: str, names: tuple[str, str], a: Any, b: Any, spatial_ndim: int) -> None:
    """For what is not computed by shards: maps and networks."""
    if over := cut_over(a, b, spatial_ndim):
        kept = ", ".join(map(repr, finest(a, b).spec[: a.ndim - spatial_ndim - 1]))
        axis, of_mesh = AXES[spatial_ndim][0], ", ".join(map(repr, over))
        raise ValueError(
            f"{names[0]} and {names[1]} are sharded along {axis} over {of_mesh}, and {what} needs whole images. "
            f"Pass jax.sharding.reshard(x, jax.P({kept}))."
        )


def where_they_lie(function: Callable[..., Any], images: Any, *numbers: Any) -> Any:
    """``function(images, *numbers)``, by each device for its lines where images are cut; one value per image."""
    sharding, batch = finest(images.a, images.b), images.max_val.ndim
    mesh, spec = sharding.mesh, sharding.spec
    if spec[batch] is None:
        return function(images, *numbers)

    def cut(x):  # what is of the images' rank, a mask for example, along the lines as well
        axes = batch + (x.ndim == images.a.ndim)
        return PartitionSpec(*(over if n > 1 else None for n, over in zip(x.shape[:axes], spec, strict=False)))

    arrays = jax.tree.map(jnp.asarray, (images, *numbers))
    specs = jax.tree.map(cut, arrays)
    arrays = jax.tree.map(lambda x, spec: jax.sharding.reshard(x, NamedSharding(mesh, spec)), arrays, specs)
    of_each_image, over = PartitionSpec(*spec[:batch]), {name for axis in spec for name in _names(axis)}
    return jax.shard_map(function, mesh=mesh, in_specs=specs, out_specs=of_each_image, axis_names=over)(*arrays)


# --- inside a shard -----------------------------------------------------------------------------------------------


def shards(over: CutOver) -> int:
    """How many there are of an image."""
    return lax.axis_size(over) if over else 1


def mean_over(over: CutOver, x: jax.Array) -> jax.Array:
    """The mean over all shards."""
    return lax.pmean(x, over) if over else x


def of_first(over: CutOver, x: jax.Array) -> jax.Array:
    """What the first shard has of it, the others none."""
    if not over:
        return x
    first = jnp.broadcast_to(lax.axis_index(over) == 0, x.shape)
    # In a select, which is known to lie on each device: a loop that begins with it ends with such arrays.
    return lax.select(first, x, lax.psum(selected(first, x), over))


def first_line(over: CutOver, lines: int) -> jax.Array | int:
    """Which line of the image is the first of this shard, of so many."""
    return lax.axis_index(over) * lines if over else 0


def with_neighbours(over: CutOver, x: jax.Array, axis: int, before: int, after: int, black: Any) -> jax.Array:
    """The shard with some lines of those before and after it, which are black where there are none."""
    above = [_lines_of(over, x, axis, -away, lines, black) for away, lines in _shares(before, x.shape[axis])]
    below = [_lines_of(over, x, axis, away, lines, black) for away, lines in _shares(after, x.shape[axis])]
    return jnp.concatenate([*reversed(above), x, *below], axis)


def repeated(
    over: CutOver, x: jax.Array, axis: int, before: Sequence[int], after: Sequence[int], size: Any
) -> jax.Array:
    """The same, and beyond both ends of the image some of its lines, each given by its distance from that end."""
    out, begin = with_neighbours(over, x, axis, len(before), len(after), 0), -first_line(over, x.shape[axis])
    place = places(out.shape, axis) - len(before)
    at_begin = [(begin + source, begin - 1 - k) for k, source in enumerate(before)]
    at_end = [(size - 1 - source, size + k) for k, source in enumerate(after)]
    for source, target in (*at_begin, *at_end):
        line = selected(places(x.shape, axis) == source, x).sum(axis, x.dtype, keepdims=True)
        out = jnp.where(place == target, lax.psum(line, over), out)
    return out


def _shares(lines: int, of_each: int) -> list[tuple[int, int]]:
    """How many of the next lines lie in the next shard, in the one behind it, and so on."""
    return [(away + 1, min(of_each, lines - away * of_each)) for away in range(-(-lines // of_each))]


def _lines_of(over: CutOver, x: jax.Array, axis: int, away: int, lines: int, black: Any) -> jax.Array:
    """The nearest lines of a shard that is so many places away."""
    shards, begin = lax.axis_size(over), 0 if away > 0 else x.shape[axis] - lines
    part = lax.slice_in_dim(x, begin, begin + lines, axis=axis)
    pairs = [(source, source - away) for source in range(shards) if 0 <= source - away < shards]
    source = lax.axis_index(over) + away
    return jnp.where((source >= 0) & (source < shards), lax.ppermute(part, over, pairs), black)
