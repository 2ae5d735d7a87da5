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

from jax_msssim import _stencil, ms_ssim, ssim

SHAPE = (2, 9, 10, 1)
# In float64; sums of a hundred numbers, and derivatives of powers of means near 0.01.
RTOL = 1e-12


@contextlib.contextmanager
def off_cpu():
    """The CPU runs the program of the other platforms. Compiled programs remember."""

    def chosen(stencil, function, *arrays):
        return function(stencil._replace(on_cpu=False), *arrays)

    jax.clear_caches()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_stencil.Stencil, "per_platform", chosen)
            yield
    finally:
        jax.clear_caches()


def assert_same_both_ways(function, *arrays):
    """A function returns what it does on a CPU."""
    expected = jax.device_get(jax.jit(function)(*arrays))
    with off_cpu():
        got = jax.device_get(jax.jit(function)(*arrays))
    assert_same(got, expected, RTOL)


def outputs_and_derivatives(function):
    """Outputs, the gradient of their sum by both images, and the derivative of that along one direction."""

    def of(*images):
        gradients, along = jax.jvp(jax.grad(total(function), (0, 1)), images, images[::-1])
        return function(*images), gradients, along

    return of


@pytest.mark.parametrize(
    "name", [name if name == "ms_ssim" else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]
)
def test_numbers(name, x64):
    assert_same_both_ways(outputs_and_derivatives(function_of(name)), *random_pair(SHAPE))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "spatial_ndim"), [((9, 10, 1), 2), ((2, 7, 9, 8, 3), 3), ((3, 14, 2), 1)])
def test_axes(shape, spatial_ndim, x64):
    function = outputs_and_derivatives(lambda a, b: ssim(a, b, filter_size=3, spatial_ndim=spatial_ndim))
    assert_same_both_ways(function, *random_pair(shape))


@pytest.mark.slow
def test_masks_and_vmap(x64):
    a, b = random_pair(SHAPE)
    where = np.random.default_rng(2).random(a.shape) > 0.05
    of_one = function_of("ms_ssim", min_coverage=0.5)

    def of_each(a, b):
        return jax.vmap(lambda a, b, where: of_one(a, b, where=where))(a, b, where)

    assert_same_both_ways(outputs_and_derivatives(of_each), a, b)


@pytest.mark.slow
def test_a_sharded_batch_stays_put(mesh):
    with off_cpu():
        check(mesh, value_and_gradients(function_of("ms_ssim")), *pair(8, 9, 10, 1))


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_has_its_own_stages(platform):
    # Everywhere but on a CPU a barrier comes after every stage. Each of five scales has six: changes and two passes
    # along rows, changes along columns, the map and its sum.
    image = jax.ShapeDtypeStruct((176, 176, 1), jnp.float32)
    text = export.export(jax.jit(ms_ssim), platforms=[platform])(image, image).mlir_module()
    barriers = len(re.findall("optimization_barrier", text))
    assert barriers == 0 if platform == "cpu" else barriers >= 30
