"""This library alone: compilation, memory, cost per pixel, batches, implementations. Each section yields records."""

import contextlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from peers import OURS, Calls, Jax, contestants, on_gpu, ours
from process import in_own_process
from timing import Contestant, take_turns
from works import PASSES, Work

import jax_msssim

CYCLED_BYTES = 2**28  # of input in all, where the cache of a GPU must not hold it
COPIED_BYTES = 2**30


def compilation(work: Work, processes: int) -> Iterator[dict]:
    """The time to the first value and gradient, in fresh processes."""
    for _ in range(processes):
        yield {"work": work.name} | in_own_process(OURS, work, "value_and_grad")


def temporaries(works: Sequence[Work]) -> Iterator[dict]:
    """The temporary memory that the compiled program asks for, beside its inputs and results."""
    for work, which in itertools.product(works, PASSES):
        function = ours(work.metric)
        function = function if which == "forward" else jax.value_and_grad(function)
        image = jax.ShapeDtypeStruct(work.shape, jnp.float32)
        analysis = jax.jit(function).lower(image, image).compile().memory_analysis()
        temp_bytes = analysis.temp_size_in_bytes if analysis else None
        yield {"work": work.name, "pass": which, "temp_bytes": temp_bytes, "input_bytes": work.input_bytes}


def scaling(works: Sequence[Work], rounds: int) -> Iterator[dict]:
    """The time of one image, from small to large."""
    racing = {work: OURS.contestants(work, work.images()) for work in works}
    for which in PASSES:
        timings = take_turns({work: racing[work][which] for work in works}, rounds)
        for work, timing in timings.items():
            yield {"work": work.name, "pass": which, "pixels": work.pixels} | timing._asdict()


def largest(work: Work) -> Iterator[dict]:
    """The memory of a process that compares the largest images, everything in it included."""
    for which in PASSES:
        yield {"work": work.name, "pass": which} | in_own_process(OURS, work, which)


def batching(work: Work, rounds: int) -> Iterator[dict]:
    """A batch, the same by ``vmap`` over single images, and one image of it, in turns."""
    function = getattr(jax_msssim, work.metric)
    images = work.images()
    calls = {
        "batched": Jax().calls(ours(work.metric), images),
        "vmap": Jax().calls(lambda a, b: jax.vmap(function)(a, b).mean(), images),
        "batch of one": Jax().calls(ours(work.metric), [image[:1] for image in images]),
    }
    racing = {how: contestants(calls[how], Jax()) for how in calls}
    for which in PASSES:
        for how, timing in take_turns({how: racing[how][which] for how in racing}, rounds).items():
            yield {"work": work.name, "pass": which, "how": how, "batch": work.shape[0]} | timing._asdict()


def implementations(works: Sequence[Work], rounds: int) -> Iterator[dict]:
    """Each implementation in turns, with the bytes that must move: the images in, the gradient out.

    On a GPU also the kernel, the stages as XLA fuses them if it may, the bandwidth of a copy, to compare with, and
    enough images in turns that none is still in a cache.
    """
    kept_apart = contextlib.nullcontext
    variants = {"stencil": ("stencil", kept_apart), "conv": ("conv", kept_apart)}
    if on_gpu():
        variants |= {"cuda": ("cuda", kept_apart), "stencil, fused by XLA": ("stencil", _fused_by_xla)}
        yield {"implementation": "copy", "bytes": 2 * COPIED_BYTES} | _copy(rounds)._asdict()
    for work in works:
        sets = _image_sets(work)
        racing = {}
        for name, (implementation, stages) in variants.items():
            with stages():
                racing[name] = contestants(_cycling(ours(work.metric, implementation=implementation), sets), Jax())
        for which in PASSES:
            moved = work.input_bytes * (1 if which == "forward" else 1.5)
            for name, timing in take_turns({name: racing[name][which] for name in racing}, rounds).items():
                described = {"work": work.name, "pass": which, "implementation": name, "bytes": moved}
                yield described | timing._asdict()


@contextlib.contextmanager
def _fused_by_xla():
    """Programs compiled meanwhile leave the choice of what to fuse to XLA."""
    jax.clear_caches()
    with mock.patch("jax.lax.optimization_barrier", lambda x: x):
        yield
    jax.clear_caches()


def _copy(rounds: int):
    block = jnp.ones(COPIED_BYTES // 4, jnp.float32)
    copy = jax.jit(lambda x: -x)  # reads and writes every byte; XLA has no copy that it could not leave out
    return take_turns({"copy": Contestant(lambda: copy(block), jax.block_until_ready, queued=True)}, rounds)["copy"]


def _image_sets(work: Work) -> list[tuple[np.ndarray, np.ndarray]]:
    a, b = work.images()
    count = max(1, CYCLED_BYTES // work.input_bytes) if on_gpu() else 1
    return [(np.roll(a, i, axis=-2), np.roll(b, i, axis=-2)) for i in range(count)]


def _cycling(function, sets) -> Calls:
    """Calls with one pair after the other, compiled here and now."""
    sets = [tuple(jnp.asarray(image) for image in images) for images in sets]
    forward, value_and_grad = (jax.jit(f).lower(*sets[0]).compile() for f in (function, jax.value_and_grad(function)))
    pairs = itertools.cycle(sets)
    return Calls(lambda: forward(*next(pairs)), lambda: value_and_grad(*next(pairs)))


def training(shapes: Sequence[tuple[int, ...]], rounds: int) -> Iterator[dict]:
    """A step of training the demonstration's network, with its loss and with plain L2 in its place, in turns."""
    sys.path.append(str(Path(__file__).parents[1] / "notebooks"))
    import demo

    losses = {"the demo's loss": demo.restoration_loss, "L2": lambda restored, clean: ((restored - clean) ** 2).mean()}
    for shape in shapes:
        clean = jnp.asarray(Work("ms_ssim", shape).images()[0])
        noisy = demo.add_noise(clean, jax.random.key(0))
        steps = {name: _training_step(demo, loss, noisy, clean) for name, loss in losses.items()}
        racing = {name: Contestant(step, jax.block_until_ready, queued=on_gpu()) for name, step in steps.items()}
        for name, timing in take_turns(racing, rounds).items():
            yield {"shape": "x".join(map(str, shape)), "loss": name} | timing._asdict()


def _training_step(demo, loss, noisy, clean):
    import optax
    from flax import nnx

    model = demo.Denoiser(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-4), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        value, gradients = nnx.value_and_grad(lambda model: loss(model(noisy), clean))(model)
        optimizer.update(model, gradients)
        return value

    return lambda: step(model, optimizer)
