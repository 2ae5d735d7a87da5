"""The kernel on the CPU: its source, built by a C++ compiler, which XLA calls where a GPU would get the PTX."""

import contextlib
import ctypes
import os
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from jax_msssim import _cuda, ms_ssim, ssim
from jax_msssim._cuda._launch import TARGET
from jax_msssim._stencil import _platforms

COMPILER = shutil.which("g++") or shutil.which("clang++")


def build(folder: pathlib.Path, *options: str) -> pathlib.Path:
    library, source = folder / "emulation.so", pathlib.Path(__file__).with_name("emulation.cpp")
    # As on a GPU a product and a sum are one instruction, where the CPU has that.
    command = [COMPILER, "-O1", "-w", "-ffp-contract=fast", "-march=native", "-std=c++17", "-shared", "-fPIC", *options]
    subprocess.run([*command, f"-I{jax.ffi.include_dir()}", str(source), "-o", str(library)], check=True)
    return library


@contextlib.contextmanager
def emulated(library: pathlib.Path):
    """The CPU runs the program for CUDA, with whatever release of JAX is here. Compiled programs remember."""
    handler = ctypes.CDLL(str(library)).launch
    jax.ffi.register_ffi_target(TARGET, jax.ffi.pycapsule(handler), platform="cpu")
    jax.clear_caches()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_cuda, "has_device", lambda: True)
            patch.setattr(_cuda, "RELEASES", (jax.__version__,))
            patch.setitem(_platforms.PLATFORMS, "cpu", "cuda")
            yield
    finally:
        jax.clear_caches()


def sanitizers() -> str | None:
    """The libraries that must be loaded before Python where a library is built with AddressSanitizer."""
    paths = [
        subprocess.run([COMPILER, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
        for name in ("libasan.so", "libstdc++.so")  # the latter, or exceptions end the process
    ]
    return " ".join(paths) if all(map(os.path.isabs, paths)) else None


def results(folder: pathlib.Path, *options: str, preload: str = "") -> list[np.ndarray]:
    """Values and gradients of some images in a process of its own, with the kernel built so."""
    command = [sys.executable, __file__, str(build(folder, *options)), str(folder / "results.npz")]
    paths = [pathlib.Path(_cuda.__file__).parents[2], *sys.path]
    subprocess.run(
        command,
        check=True,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(map(str, paths)),
            "LD_PRELOAD": preload,
            "ASAN_OPTIONS": "detect_leaks=0",
            "JAX_PLATFORMS": "cpu",
        },
    )
    with np.load(folder / "results.npz") as found:
        return [found[name] for name in found.files]


def main(library: str, path: str) -> None:
    found, rng = [], np.random.default_rng(0)
    with emulated(pathlib.Path(library)):
        for function, *shape in ((ssim, 11, 11, 1), (ssim, 2, 41, 97, 3), (ms_ssim, 2, 45, 51, 4)):
            options = {"power_factors": (0.4, 0.6), "luminance": "all"} if function is ms_ssim else {}

            def total(*images, function=function, options=options):
                return function(*images, **options).sum()

            images = rng.random((2, *shape), np.float32)
            program = jax.jit(lambda a, b, f=total: [jax.value_and_grad(f, x)(a, b) for x in (0, 1, (0, 1))])
            found += jax.tree.leaves(program(*images))
    np.savez(path, *found)


if __name__ == "__main__":
    main(*sys.argv[1:])
