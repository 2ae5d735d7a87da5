"""The kernel's PTX, by NVRTC, and what ptxas makes of it. Neither needs a GPU.

``python tests/kernel/ptx.py`` writes the PTX that is in the package. It takes NVRTC 12.1, of the wheel
``nvidia-cuda-nvrtc-cu12 == 12.1.105``: its PTX is for GPUs from compute capability 7.5 on, and for drivers from 530 on.
ptxas comes with the wheel ``nvidia-cuda-nvcc``.
"""

import ctypes
import gzip
import itertools
import pathlib
import re
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parents[2] / "jax_msssim" / "_cuda"
TERMS, GRADIENTS = ("contrast_structure", "similarity"), (0, 1, 2)
VARIANTS = {f"{term}_{gradients}": (term, gradients) for term, gradients in itertools.product(TERMS, GRADIENTS)}
ARCHITECTURES = ("sm_75", "sm_80", "sm_89", "sm_90", "sm_100")


def installed(pattern: str) -> pathlib.Path | None:
    """A file of NVIDIA's wheels."""
    return next((path for folder in sys.path for path in pathlib.Path(folder, "nvidia").glob(pattern)), None)


NVRTC, PTXAS = installed("cuda_nvrtc/lib/libnvrtc.so.12"), installed("*/bin/ptxas")


def packaged(variant: str) -> str:
    """The PTX of a variant that is in the package."""
    return gzip.decompress((FOLDER / "ptx" / f"{variant}.ptx.gz").read_bytes()).decode()


def compiled(variant: str, **macros: int) -> str:
    """The PTX of a variant that NVRTC makes of the source."""
    term, gradients = VARIANTS[variant]
    macros |= {"SIMILARITY": TERMS.index(term), "GRAD": gradients}
    options = [f"-D{name}={x}" for name, x in (macros | {"NAME": variant}).items()]
    options += ["--gpu-architecture=compute_75", "--std=c++17"]
    nvrtc, program, size = ctypes.CDLL(str(NVRTC)), ctypes.c_void_p(), ctypes.c_size_t()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), (FOLDER / "scale.cu").read_bytes(), b"scale.cu", 0, None, None)
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    if nvrtc.nvrtcCompileProgram(program, len(options), array):
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        raise RuntimeError(log.value.decode())
    nvrtc.nvrtcGetPTXSize(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    nvrtc.nvrtcGetPTX(program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    return text.value.decode()


def resources(text: str, architecture: str) -> dict[str, int]:
    """Registers of a thread, bytes of spills, and bytes of a block's shared memory, by ptxas."""
    command = [str(PTXAS), "-v", f"-arch={architecture}", "-", "-o", "/dev/null"]
    log = subprocess.run(command, input=text, capture_output=True, text=True, check=True).stderr
    found = {"registers": r"(\d+) registers", "spilled": r"(\d+) bytes spill stores", "shared": r"(\d+) bytes smem"}
    return {name: int(re.search(pattern, log)[1]) for name, pattern in found.items()}


def main() -> None:
    for variant in VARIANTS:
        text, path = compiled(variant), FOLDER / "ptx" / f"{variant}.ptx.gz"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(text.encode(), mtime=0))
        print(variant, *((name, resources(text, name)) for name in ARCHITECTURES))


if __name__ == "__main__":
    main()
