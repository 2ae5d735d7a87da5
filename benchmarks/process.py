"""What is measured in a process of its own, which prints it as JSON.

``python benchmarks/process.py jax_msssim ms_ssim 8x256x256x3 value_and_grad`` takes one library, one work and one pass:
the time to the first result, and the memory it took.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from peers import BY_NAME, Library
from works import Work


def in_own_process(library: Library, work: Work, which: str) -> dict:
    """What :func:`first_call` says in a fresh process."""
    return what_prints("process.py", library.name, work.metric, "x".join(map(str, work.shape)), which)


def what_prints(script: str, *arguments: str, **environment: str) -> dict:
    """What a script of this folder prints in the end, run in a fresh process."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    environment |= {"JAX_ENABLE_COMPILATION_CACHE": "false"}  # a cached program needs no compilation
    process = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{script} failed, called with {' '.join(arguments)}:\n{process.stderr}")
    return json.loads(process.stdout.splitlines()[-1])


def first_call(library: Library, work: Work, which: str) -> dict:
    """Call it once. What is made before stays alive, so that no memory given back hides what the call needs."""
    images = work.images()
    call = getattr(library.calls(work, images), which)
    before = library.runtime.peak_bytes()
    start = time.perf_counter()
    library.runtime.wait(call())
    return {
        "first_result_seconds": time.perf_counter() - start,
        "growth_bytes": library.runtime.peak_bytes() - before,
        "peak_bytes": library.runtime.peak_bytes(),
    }


if __name__ == "__main__":
    name, metric, shape, which = sys.argv[1:]
    print(json.dumps(first_call(BY_NAME[name], Work(metric, tuple(map(int, shape.split("x")))), which)))
