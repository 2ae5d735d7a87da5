"""One of several processes that compute together: ``python -m tests.process RANK COUNT PORT FOLDER``.

They have two devices in all. Each leaves numbers by name in the folder, ``COUNT.RANK.npz``. Two leave checkpoints,
which one restores.
"""

import contextlib
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import orbax.checkpoint
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_msssim import ms_ssim, ms_ssim_loss
from jax_msssim.nnx import MSSSIM

OPTIONS = {"filter_size": 3, "power_factors": (0.4, 0.6)}
BATCH, SIDE = 4, 16
RNG = np.random.default_rng(0)
A = RNG.random((BATCH, SIDE, SIDE, 2), np.float32)
B = np.clip(A + 0.1 * RNG.standard_normal(A.shape, np.float32), 0, 1)
LAST = 3  # images of the last batch, the rest of which is filled up


def part(x, axis, rank, count):
    """What a process has of an array that lies along an axis over all of them."""
    size = x.shape[axis] // count
    return np.take(x, range(rank * size, (rank + 1) * size), axis)


def own(x):
    """The part of an array that lies in this process."""
    return np.concatenate([shard.data for shard in sorted(x.addressable_shards, key=lambda shard: str(shard.index))])


def over_the_batch(rank, count, mesh):
    """Values, a training step, and a metric, of images that lie over the processes."""

    def everywhere(x, *axes):
        local = part(np.asarray(x), 0, rank, count) if axes else np.asarray(x)
        return jax.make_array_from_process_local_data(NamedSharding(mesh, PartitionSpec(*axes)), local)

    a, b = everywhere(A, "batch"), everywhere(B, "batch")
    values = ms_ssim(b, a, **OPTIONS)

    model = nnx.Conv(2, 2, kernel_size=(3, 3), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    for module in (model, optimizer):
        nnx.update(module, jax.tree.map(lambda x: everywhere(x), nnx.state(module)))

    @nnx.jit
    def step(model, optimizer, b, a):
        loss, gradients = nnx.value_and_grad(lambda model: ms_ssim_loss(model(b), a, **OPTIONS).mean())(model)
        optimizer.update(model, gradients)
        return loss

    losses = [float(step(model, optimizer, b, a)) for _ in range(3)]

    metric = MSSSIM(**OPTIONS)
    metric.update(predictions=b, targets=a)
    filled = np.arange(BATCH) < LAST
    last = [everywhere(np.where(filled[:, None, None, None], x, np.nan), "batch") for x in (B, A)]
    metric.update(predictions=last[0], targets=last[1], mask=everywhere(filled, "batch"))
    return metric, {"values": own(values), "losses": losses, "metric": metric.compute(), "count": metric.count[...]}


def over_lines(rank, count, mesh):
    """Value and gradient of images whose lines lie over the processes."""
    sharding = NamedSharding(mesh, PartitionSpec(None, "batch"))
    a, b = (jax.make_array_from_process_local_data(sharding, part(x, 1, rank, count)) for x in (A, B))
    loss, gradient = jax.value_and_grad(lambda b: ms_ssim_loss(b, a, **OPTIONS).mean())(b)
    lines = sorted(gradient.addressable_shards, key=lambda shard: shard.index[1].start or 0)
    return {"loss by lines": loss, "gradient by lines": np.concatenate([shard.data for shard in lines], 1)}


def refused(metric, rank, count):
    """What the metric, which has seen images of all processes, says to those of one."""
    try:
        metric.update(predictions=part(B, 0, rank, count), targets=part(A, 0, rank, count))
    except ValueError as error:
        return str(error)
    return ""


def merged(rank, count):
    """The mean over a metric in each process."""
    metric = MSSSIM(**OPTIONS)
    metric.update(predictions=part(B, 0, rank, count), targets=part(A, 0, rank, count))
    graph, state = nnx.split(metric)
    states, whole = multihost_utils.process_allgather(state, tiled=False), MSSSIM(**OPTIONS)
    for i in range(count):
        whole.merge(nnx.merge(graph, jax.tree.map(lambda x, i=i: np.reshape(x, (count,))[i], states)))
    return whole.compute()


def restored(folder, mesh):
    """The mean of a saved metric, and with the images of a new one."""
    metric = MSSSIM(**OPTIONS)
    graph, state = nnx.split(metric)
    whole = NamedSharding(mesh, PartitionSpec())
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), state)
    metric = nnx.merge(graph, orbax.checkpoint.StandardCheckpointer().restore(folder, like))
    before = metric.compute()
    metric.update(predictions=B, targets=A)
    return before, metric.compute()


def main(rank, count, port, folder):
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2 // count)
    if count > 1:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=count, process_id=rank)
    results = {}
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((2,), ("batch",), axis_types=(kind,))
        with jax.set_mesh(mesh) if kind == AxisType.Explicit else contextlib.nullcontext():
            metric, found = over_the_batch(rank, count, mesh)
            results |= {f"{name}, {kind.name}": x for name, x in found.items()}
            if kind == AxisType.Explicit:
                results |= over_lines(rank, count, mesh)
            elif count > 1:
                results["refused"] = refused(metric, rank, count)
                save = orbax.checkpoint.StandardCheckpointer()
                for name, saved in (("metric", metric), ("new", MSSSIM(**OPTIONS))):
                    save.save(folder / name, nnx.state(saved))
                    save.wait_until_finished()
            else:
                for name in ("metric", "new"):
                    results[f"restored {name}"] = restored(folder / name, mesh)
    results["merged"] = merged(rank, count)
    np.savez(folder / f"{count}.{rank}.npz", **{name: np.asarray(x) for name, x in results.items()})
    if count > 1:
        multihost_utils.sync_global_devices("end")
        jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
