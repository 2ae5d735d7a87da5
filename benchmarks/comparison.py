"""This library against the others: the same numbers, how fast, in how much memory. Each section yields records."""

import functools
import itertools
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from passes import CALLS
from peers import OURS, Library, ours
from process import in_own_process, what_prints
from timing import Contestant, take_turns
from works import PASSES, Crops, Work

from jax_msssim import conventions, ms_ssim, ssim

VALUE_TOLERANCE = 1e-5  # float32, and pytorch-msssim's window is rounded to it
GRADIENT_TOLERANCE = 1e-3  # of its norm


def check(peers: Sequence[Library], works: Sequence[Work]) -> Iterator[dict]:
    """Value and gradient of each library against ours under its convention, and its value against our defaults."""
    for work in works:
        images = work.images()
        ours_under = functools.cache(functools.partial(_ours, work, images))
        for peer in [peer for peer in peers if peer.supports(work)]:
            value, gradient = _value_and_gradient(peer, peer.functions[work.metric, work.spatial_ndim], images)
            options = getattr(conventions.ALL[peer.convention], work.metric)
            our_value, our_gradient = ours_under(**options)
            error = np.linalg.norm(gradient - our_gradient) / np.linalg.norm(our_gradient)
            same_gradient = bool(peer.gradient_note) or error <= GRADIENT_TOLERANCE
            yield {
                "work": work.name,
                "library": peer.name,
                "convention": peer.convention,
                "value": value,
                "difference": value - our_value,
                "difference_from_defaults": value - ours_under()[0],
                "gradient_error": float(error),
                "gradient_note": peer.gradient_note,
                "agrees": bool(abs(value - our_value) <= VALUE_TOLERANCE and same_gradient),
            }


def _ours(work: Work, images, **options) -> tuple[float, np.ndarray]:
    return _value_and_gradient(OURS, ours(work.metric, work.spatial_ndim, **options), images)


def _value_and_gradient(library: Library, function, images) -> tuple[float, np.ndarray]:
    value, gradient = library.runtime.calls(function, images).value_and_grad()
    return float(value), library.runtime.to_numpy(gradient)


def compare(peers: Sequence[Library], works: Sequence[Work], rounds: int) -> Iterator[dict]:
    """The time of every library, in turns."""
    for work in works:
        images = work.images()
        entrants = [library for library in (OURS, *peers) if library.supports(work)]
        calls = {library: library.contestants(work, images) for library in entrants}
        for which in PASSES:
            racing = [library for library in entrants if library is OURS or which in work.passes_of_peers]
            timings = take_turns({library.name: calls[library][which] for library in racing}, rounds)
            for library in racing:
                described = {"work": work.name, "pass": which, "library": library.name}
                yield described | {"framework": library.runtime.name} | timings[library.name]._asdict()


def first_calls(libraries: Sequence[Library], works: Sequence[Work]) -> Iterator[dict]:
    """Memory, and the time to the first value and gradient, or value, each in a process of its own."""
    for work in works:
        for library in [library for library in libraries if library.supports(work)]:
            which = work.passes_of_peers[-1]
            yield {"work": work.name, "pass": which, "library": library.name} | in_own_process(library, work, which)


def test_set(libraries: Sequence[Library], crops: Crops) -> Iterator[dict]:
    """SSIM and MS-SSIM of images of many sizes, on the CPU, each library in a process of its own."""
    names = {library.name for library in libraries}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pairs.npz"
        np.savez(path, *itertools.chain(*crops.pairs()))
        for name, how in [(name, how) for name, how in CALLS if name in names]:
            arguments = name, how, str(path), str(time.monotonic())
            taken = what_prints("passes.py", *arguments, JAX_PLATFORMS="cpu")
            yield {"work": crops.name, "library": name, "how": how} | taken


def native(programs: Sequence[Library], works: Sequence[Work], rounds: int) -> Iterator[dict]:
    """Processor time of native programs and of ours for the same number, from uint8 images, in turns."""
    alike = {"ssim": functools.partial(ssim, **conventions.SKIMAGE.ssim), "ms_ssim": _ms_ssim_of_luma}
    for work in works:
        a, b = ((255 * image[0]).round().astype(np.uint8) for image in work.images())
        for program in [program for program in programs if program.supports(work)]:
            calls = {
                OURS: OURS.runtime.calls(alike[work.metric], (a, b)).forward,
                program: program.calls(work, (a, b)).forward,
            }
            racing = {library.name: Contestant(call, jax.block_until_ready) for library, call in calls.items()}
            timings = take_turns(racing, rounds, time.process_time)
            for library, call in calls.items():
                described = {"work": work.name, "library": library.name, "value": float(call())}
                yield described | timings[library.name]._asdict()


def _ms_ssim_of_luma(a: jax.Array, b: jax.Array) -> jax.Array:
    a, b = ((image @ jnp.array([0.299, 0.587, 0.114]))[..., None] for image in (a, b))
    return ms_ssim(a, b, max_val=255.0)
