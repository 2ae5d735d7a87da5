"""The program for GPU and TPU, which has no blocks and other stages: the same numbers. A CPU runs it, too."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import FUNCTIONS, assert_same, function_of, pair, total
from images import random_pair
from jax import export
from test_sharding import check, value_and_gradients

from jax_msssim import ms_ssim
from jax_msssim._stencil import _platforms

SHAPE = (2, 9, 10, 1)
# In float64; sums of a hundred numbers, and derivatives of powers of means near 0.01.
RTOL = 1e-12


@contextlib.contextmanager
def off_cpu():
    """The CPU runs the program of the other platforms. Compiled programs remember."""
    jax.clear_caches()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(_platforms.PLATFORMS, "cpu", _platforms.PLATFORMS[None])
            yield
    finally:
        jax.clear_caches()


def of_each(a, b):
    """A masked function, mapped."""
    where = np.random.default_rng(2).random(a.shape) > 0.05
    function = function_of("ms_ssim", min_coverage=0.5)
    return jax.vmap(lambda a, b, where: function(a, b, where=where))(a, b, where)


CASES = {
    **{name: (function_of(name), SHAPE) for name in ("ms_ssim", *FUNCTIONS)},
    "one image": (function_of("ssim"), SHAPE[1:]),
    "a signal": (function_of("ssim", spatial_ndim=1), (3, 14, 2)),
    "a volume": (function_of("ssim", spatial_ndim=3), (2, 7, 9, 8, 3)),
    "masks and vmap": (of_each, SHAPE),
}


@pytest.mark.parametrize("case", ["ms_ssim", *(pytest.param(x, marks=pytest.mark.slow) for x in [*CASES][1:])])
def test_numbers(case, x64):
    """Outputs, the gradient of their sum by both images, and the derivative of that along one direction."""
    function, shape = CASES[case]

    def program(*images):
        gradients, along = jax.jvp(jax.grad(total(function), (0, 1)), images, images[::-1])
        return function(*images), gradients, along

    images = random_pair(shape)
    expected = jax.device_get(jax.jit(program)(*images))
    with off_cpu():
        got = jax.device_get(jax.jit(program)(*images))
    assert_same(got, expected, RTOL)


@pytest.mark.slow
def test_a_sharded_batch_stays_put(eight_devices):
    with off_cpu():
        check(value_and_gradients(function_of("ms_ssim")), *pair(8, 9, 10, 1))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_has_its_own_stages(platform):
    # Everywhere but on a CPU a barrier comes after every stage. Each of five scales has four: two passes, the map, and
    # its mean over rows. Four halvings, the sum and difference of the first images, and the means over columns come to
    # these.
    image = jax.ShapeDtypeStruct((176, 176, 1), jnp.float32)
    text = export.export(jax.jit(ms_ssim), platforms=[platform])(image, image).mlir_module()
    barriers = len(re.findall("stablehlo.optimization_barrier", text))
    assert barriers == 0 if platform == "cpu" else barriers == 26
