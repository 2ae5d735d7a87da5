"""The programs for GPU and TPU, with no blocks, other stages or matrices: the same numbers. A CPU runs them, too."""

import contextlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import assert_same, function_of, pair, total
from images import random_pair
from jax import export
from test_sharding import check, value_and_gradients

from jax_msssim import ms_ssim
from jax_msssim._stencil import _platforms

SHAPE = (2, 9, 10, 1)
# In float64; sums of a hundred numbers, and derivatives of powers of means near 0.01.
RTOL = 1e-12


@contextlib.contextmanager
def program_of(platform):
    """The CPU runs the program of a platform (None: of all that have none of their own). Compiled programs remember."""
    jax.clear_caches()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(_platforms.PLATFORMS, "cpu", _platforms.PLATFORMS[platform])
            yield
    finally:
        jax.clear_caches()


def of_each(a, b):
    """A masked function, mapped."""
    where = np.random.default_rng(2).random(a.shape) > 0.05
    function = function_of("ms_ssim", min_coverage=0.5)
    return jax.vmap(lambda a, b, where: function(a, b, where=where))(a, b, where)


CASES = {
    **{name: (function_of(name), SHAPE) for name in ("ms_ssim", "ssim_map", "ms_ssim_terms")},
    "one image": (function_of("ssim"), SHAPE[1:]),
    "a signal": (function_of("ssim", spatial_ndim=1), (3, 14, 2)),
    "a volume": (function_of("ssim", spatial_ndim=3), (2, 7, 9, 8, 3)),
    "masks and vmap": (of_each, SHAPE),
    "tiles": (function_of("ms_ssim"), (270, 9, 2)),
}


BY_MATRICES = ("ms_ssim", "ms_ssim_terms", "a signal", "a volume", "masks and vmap", "tiles")


@pytest.mark.parametrize(
    ("case", "platform"),
    [
        pytest.param(case, platform, marks=[pytest.mark.slow] * (case != "ms_ssim"))
        for platform, cases in ((None, CASES), ("tpu", BY_MATRICES))
        for case in cases
    ],
)
def test_numbers(case, platform, x64):
    """Outputs, the gradient of their sum by both images, and the derivative of that along one direction."""
    function, shape = CASES[case]

    def program(*images):
        gradients, along = jax.jvp(jax.grad(total(function), (0, 1)), images, images[::-1])
        return function(*images), gradients, along

    images = random_pair(shape)
    expected = jax.device_get(jax.jit(program)(*images))
    with program_of(platform):
        got = jax.device_get(jax.jit(program)(*images))
    assert_same(got, expected, RTOL)


@pytest.mark.slow
@pytest.mark.parametrize("platform", [None, "tpu"])
def test_a_sharded_batch_stays_put(platform, eight_devices):
    with program_of(platform):
        check(value_and_gradients(function_of("ms_ssim")), *pair(8, 270, 9, 1))


@pytest.mark.parametrize(
    ("platform", "implementation", "barriers", "products"),
    [
        ("cpu", None, 0, 0),
        # A barrier comes after every stage. Each of five scales has four: two passes, the map, and its mean over rows.
        # Four halvings, the sum and difference of the first images, and the means over columns come to these.
        ("cuda", None, 26, 0),
        ("tpu", "stencil", 26, 0),
        # Four blurs at each scale and two arrays halved four times, along two axes.
        ("tpu", None, 0, 56),
        ("cpu", "matmul", 0, 56),
    ],
)
def test_each_platform_has_its_own_program(platform, implementation, barriers, products):
    image = jax.ShapeDtypeStruct((176, 176, 1), jnp.float32)
    function = jax.jit(lambda a, b: ms_ssim(a, b, implementation=implementation))
    text = export.export(function, platforms=[platform])(image, image).mlir_module()
    assert len(re.findall("stablehlo.optimization_barrier", text)) == barriers
    matrices = re.findall("stablehlo.dot_general.*", text)
    assert len(matrices) == products
    assert all(line.count("precision = [HIGHEST, HIGHEST]") == 1 for line in matrices)
