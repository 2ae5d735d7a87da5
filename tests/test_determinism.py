"""The same images give the same bits: again, and in another process."""

import subprocess
import sys

import pytest

# Large enough for several blocks of rows and for every thread; what is printed are the bytes themselves.
PROGRAM = """
import hashlib
import jax, numpy as np
import jax_msssim

rng = np.random.default_rng(0)
a, b = (rng.random((2, 200, 300, 3), np.float32) for _ in range(2))
where = rng.random((2, 200, 300, 1)) > 1e-3

for name in ("stencil", "conv", "matmul"):
    def loss(a, b):
        powers = (0.4, 0.6)
        return jax_msssim.ms_ssim_loss(a, b, filter_size=5, power_factors=powers, implementation=name).sum()

    def masked(a, b):
        return jax_msssim.ssim(a, b, where=where, min_coverage=0.5, filter_size=5, implementation=name)

    programs = [jax.jit(function).lower(a, b) for function in (jax.value_and_grad(loss, (0, 1)), masked)]
    assert name != "stencil" or "stablehlo.while" in programs[0].as_text()  # in blocks
    programs = [program.compile() for program in programs]
    for _ in range(3):
        bits = b"".join(np.asarray(x).tobytes() for program in programs for x in jax.tree.leaves(program(a, b)))
        print(name, hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bits():
    command = [sys.executable, "-c", PROGRAM]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=300) for _ in range(2)]
    digests = [line for run in runs for line in run.stdout.splitlines()]
    assert (len(digests), len(set(digests))) == (18, 3)
