"""Exported programs: one for any number of images and every platform, saved, loaded and called."""

import jax
import jax.numpy as jnp
import pytest
from functions import FUNCTIONS, assert_same, function_of, pair, total
from jax import export

from jax_msssim import ssim

PLATFORMS = ("cpu", "cuda", "tpu")
# What XLA makes of a program and of a saved one may order sums otherwise: of a value, and of a gradient.
VALUE, GRADIENT = 2e-6, 1e-5

pytest.importorskip("flatbuffers")  # which JAX saves programs with


def saved_and_loaded(function, sizes, vjp_order=0, constraints=()):
    """The program for float32 images of symbolic sizes, with a list of outputs: JAX does not save MSSSIMTerms."""
    image = jax.ShapeDtypeStruct(export.symbolic_shape(sizes, constraints=constraints), jnp.float32)
    program = export.export(jax.jit(lambda *x: jax.tree.leaves(function(*x))), platforms=PLATFORMS)(image, image)
    assert program.platforms == PLATFORMS
    return export.deserialize(program.serialize(vjp_order=vjp_order))


@pytest.mark.parametrize(
    "name", [name if name == "ssim" else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]
)
def test_any_number_of_images(name, implementation):
    function = function_of(name, implementation=implementation)
    program = saved_and_loaded(function, "batch, 9, 10, 1")
    for batch in (1, 3):
        images = pair(batch, 9, 10, 1)
        assert_same(program.call(*images), jax.tree.leaves(function(*images)), VALUE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssim", "ssim_map", "ssim_l1_loss", "ms_ssim", "log_ms_ssim_loss"])
def test_gradient_of_a_saved_program(name):
    function = function_of(name)
    program = saved_and_loaded(function, "batch, 9, 10, 1", vjp_order=1)
    images = pair(3, 9, 10, 1)
    got, expected = (jax.jit(jax.grad(total(f), (0, 1)))(*images) for f in (program.call, function))
    assert_same(got, expected, GRADIENT)


@pytest.mark.slow
def test_any_number_of_large_images():
    # 240 rows are worked through in blocks, as many as fit one image of unknown number.
    program = saved_and_loaded(lambda a, b: ssim(a, b, filter_size=3), "batch, 240, 10, 1")
    images = pair(2, 240, 10, 1)
    assert_same(program.call(*images), [ssim(*images, filter_size=3)], VALUE)


def test_images_of_any_size(implementation):
    def function(a, b):
        return ssim(a, b, filter_size=3, implementation=implementation)

    program = saved_and_loaded(function, "height, width, 1", constraints=("height >= 3", "width >= 3"))
    for size in ((3, 4), (30, 11)):
        images = pair(*size, 1)
        assert_same(program.call(*images), [function(*images)], VALUE)
