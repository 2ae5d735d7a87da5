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
    assert "scan[" in str(jax.make_jaxpr(programs[0])(a, b))  # in blocks
digests = set()
for _ in range(3):
    bits = b"".join(np.asarray(x).tobytes() for program in programs for x in jax.tree.leaves(jax.jit(program)(a, b)))
    digests.add(hashlib.sha256(bits).hexdigest())
print(*digests)
"""


@pytest.mark.slow
def test_the_same_bits(implementation):
    digests = set()
    for _ in range(2):
        run = subprocess.run(
            [sys.executable, "-c", PROGRAM, implementation], capture_output=True, text=True, check=True, timeout=300
        )
        digests |= set(run.stdout.split())
    assert len(digests) == 1
