"""The same images give the same bits: again, and in another process."""

import subprocess
import sys

import pytest

# Large enough for several blocks of rows and for every thread; what is printed are the bytes themselves.
PROGRAM = """
import hashlib, sys
import jax, numpy as np
import jax_msssim

implementation = sys.argv[1]
rng = np.random.default_rng(0)
a, b = (rng.random((2, 200, 300, 3), np.float32) for _ in range(2))
where = rng.random((2, 200, 300, 1)) > 1e-3
options = {"filter_size": 5, "power_factors": (0.4, 0.6), "implementation": implementation}
programs = [
    jax.value_and_grad(lambda a, b: jax_msssim.ms_ssim_loss(a, b, **options).sum(), (0, 1)),
    lambda a, b: jax_msssim.ssim(a, b, where=where, min_coverage=0.5, filter_size=5, implementation=implementation),
]
if implementation == "stencil":
    assert "stablehlo.while" in jax.jit(programs[0]).lower(a, b).as_text()  # in blocks
for _ in range(3):
    bits = b"".join(np.asarray(x).tobytes() for program in programs for x in jax.tree.leaves(jax.jit(program)(a, b)))
    print(hashlib.sha256(bits).hexdigest())
"""


@pytest.mark.slow
def test_the_same_bits(implementation):
    command = [sys.executable, "-c", PROGRAM, implementation]
    runs = [subprocess.run(command, capture_output=True, text=True, check=True, timeout=300) for _ in range(2)]
    digests = [digest for run in runs for digest in run.stdout.split()]
    assert (len(digests), len(set(digests))) == (6, 1)
