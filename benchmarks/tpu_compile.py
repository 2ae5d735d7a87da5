"""What a TPU's compiler makes of this library, on a machine without a TPU: ``make tpu-compile``.

The compiler is in the wheel of libtpu. It says of each instruction how many cycles it expects. Their sum is a model of
its own, no measurement, and only good to compare programs with each other. Temporary memory and collectives are facts
of the compiled program. Writes ``results_tpu.md``.
"""

import argparse
import collections
import os
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

os.environ["JAX_PLATFORMS"] = "cpu"  # the TPU is only compiled for
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # do not ask the network for a TPU
os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from works import PASSES, Work

import jax_msssim

CHIPS = ("v5e", "v6e")
WORKS = (
    Work("ssim", (8, 256, 256, 3)),
    Work("ms_ssim", (8, 256, 256, 3)),
    Work("ssim", (1, 1080, 1920, 3)),
    Work("ms_ssim", (1, 1080, 1920, 3)),
)
QUICK = (Work("ssim", (4, 32, 32, 3)),)
CYCLES = re.compile(r'estimated_cycles":"(\d+)"')
COLLECTIVES = re.compile(r"= [^=]*?\b(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\(")
HEAD = """# What a TPU's compiler says

The program of each work, compiled by libtpu {libtpu} with JAX {jax} on a machine without a TPU. **Cycles are the
compiler's estimate,** the sum of what it expects of each instruction: a model, to compare programs with. Nothing here
was timed on a TPU. Temporary memory is that of the compiled program, in times the two images. Four chips hold a fourth
of the batch each; the gradient is that of the mean of the losses.

| chips | work | pass | implementation | cycles, estimated | memory | collectives | seconds to compile |
|:--|:--|:--|:--|--:|--:|:--|--:|
"""


class Compiled(NamedTuple):
    """What is known of a compiled program."""

    cycles: int
    temporary: int  # bytes on each chip
    collectives: dict[str, int]
    seconds: float


def compiled(work: Work, which: str, implementation: str | None, devices) -> Compiled:
    """The program of a work for one chip, or for several over which the batch is laid."""
    sharding = NamedSharding(Mesh(np.array(devices), ("batch",)), PartitionSpec("batch"))
    image = jax.ShapeDtypeStruct(work.shape, jnp.float32, sharding=sharding)
    if which == "forward":
        function = lambda a, b: getattr(jax_msssim, work.metric)(a, b, implementation=implementation)  # noqa: E731
    else:
        loss = getattr(jax_msssim, f"{work.metric}_loss")
        function = jax.value_and_grad(lambda a, b: loss(a, b, implementation=implementation).mean())
    start = time.perf_counter()
    program = jax.jit(function).lower(image, image).compile()
    seconds = time.perf_counter() - start
    text = program.as_text()
    return Compiled(
        sum(map(int, CYCLES.findall(text))),
        program.memory_analysis().temp_size_in_bytes,
        dict(collections.Counter(COLLECTIVES.findall(text))),
        seconds,
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a small work on one kind of chip, written nowhere")
    quick = parser.parse_args().quick
    table = HEAD.format(libtpu=version("libtpu"), jax=jax.__version__)
    for chip in CHIPS[:1] if quick else CHIPS:
        four = topologies.get_topology_desc(platform="tpu", topology_name=f"{chip}:2x2").devices
        for devices in (four[:1], four):
            for work in QUICK if quick else WORKS:
                if work.shape[0] % len(devices):
                    continue
                for which in PASSES:
                    for implementation in (None, "stencil"):
                        table += row(chip, work, which, implementation, devices) + "\n"
    if not quick:
        Path(__file__).with_name("results_tpu.md").write_text(table)


def row(chip, work: Work, which, implementation, devices) -> str:
    """A line of the table, printed as well. A collective that is not the sum of the losses is an error."""
    got = compiled(work, which, implementation, devices)
    allowed = {"all-reduce": 1} if len(devices) > 1 and which != "forward" else {}
    if got.collectives != allowed:
        raise SystemExit(f"{work.name} {which} on {len(devices)} {chip}: {got.collectives}, and not {allowed}.")
    cells = (
        f"{len(devices)} {chip}",
        work.name,
        which,
        "default" if implementation is None else f'`"{implementation}"`',
        f"{got.cycles / 1e6:.2f}M",
        f"{got.temporary * len(devices) / work.input_bytes:.2f}",
        ", ".join(f"{count} {name}" for name, count in got.collectives.items()) or "none",
        f"{got.seconds:.1f}",
    )
    line = f"| {' | '.join(cells)} |"
    print(line, flush=True)
    return line


if __name__ == "__main__":
    main()
