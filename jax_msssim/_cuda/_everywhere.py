"""The means of all scales by the kernel, where a program is lowered for CUDA, on any mesh."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.custom_partitioning import custom_partitioning
from jax.extend.core import ClosedJaxpr
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_msssim._cuda._launch import launch, means
from jax_msssim._scales import Scale
from jax_msssim._stencil._blocks import IMAGES
from jax_msssim._stencil._term_means import Static, all_scales, scales_of
from jax_msssim._terms import Constants


def with_kernel(platform: str, static: Static, first: Scale, constants: Constants) -> list[jax.Array]:
    """What :func:`all_scales` gives, of unmasked images."""
    if platform != "cuda" or not set(static[1]) <= set(IMAGES):
        return all_scales(platform, static, first, constants)
    images = [x.astype(first.dtype) for x in first.images]
    batch = images[0].shape[:-3]  # an axis of the others may have size 1
    numbers = [jnp.broadcast_to(x, (*batch, 1, 1, 1)) for x in (*constants, *first.centres)]
    return _on_mesh(jax.jit(functools.partial(_all_scales, static)), *images, *numbers)


@functools.cache
def like() -> ClosedJaxpr:
    """A program with ``custom_partitioning``, which needs to know the devices when it is lowered."""
    partitioned = custom_partitioning(lambda x: x)
    partitioned.def_partition(partition=None, sharding_rule="... -> ...")
    return jax.make_jaxpr(partitioned)(np.float32(0))


def _all_scales(static: Static, a: jax.Array, b: jax.Array, *of_images: jax.Array) -> list[jax.Array]:
    (pyramid, wrt), images, sums, results = static, [], [], []
    numbers = lax.optimization_barrier(jnp.concatenate(of_images, -1))  # computed once
    first = Scale((a, b), (numbers[..., 2:3], numbers[..., 3:]))
    for terms, scale in zip(pyramid.terms, scales_of("cuda", pyramid, first)[1], strict=True):
        of_blocks, gradients = launch(scale, numbers, pyramid.window, "similarity" in terms, wrt)
        sums.append(of_blocks)
        images.append(gradients)
    for terms, x, gradients in zip(pyramid.terms, means(sums), images, strict=True):
        results += [*(x[..., i, :] for i in range(len(terms))), *gradients]
    return results


def _on_mesh(program: Callable[..., list[jax.Array]], *arrays: jax.Array) -> list[jax.Array]:
    """Where the compiler lays arrays over a mesh, it must be told that images are computed one by one."""
    batch, sharding = arrays[0].ndim - 3, jax.typeof(arrays[0]).sharding
    mesh = sharding.mesh
    if any(sharding.spec):  # on an explicit mesh
        cut = PartitionSpec(*sharding.spec[:batch])
        resharded = [jax.sharding.reshard(x, NamedSharding(mesh, cut)) for x in arrays]
        return jax.shard_map(program, mesh=mesh, in_specs=cut, out_specs=cut)(*resharded)
    if not mesh.empty and AxisType.Auto not in mesh.axis_types:  # inside a shard_map
        return program(*arrays)

    # The batch is laid out alike everywhere, all other axes are whole.
    every = [*arrays, *jax.eval_shape(program, *arrays)]
    axes = [[f"array{i}axis{j}" for j in range(x.ndim - batch)] for i, x in enumerate(every)]
    rules = [" ".join(["...", *each]) for each in axes]
    partitioned = custom_partitioning(program)
    partitioned.def_partition(
        partition=lambda mesh, of, to: (mesh, program, *(jax.tree.map(lambda x: x.sharding, x) for x in (to, of))),
        sharding_rule=" -> ".join(", ".join(some) for some in (rules[: len(arrays)], rules[len(arrays) :])),
        need_replication_factors=tuple(name for each in axes for name in each),
    )
    return partitioned(*arrays)
