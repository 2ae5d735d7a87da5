"""Exported programs: one for any number of images and every platform, saved, loaded and called."""

import jax
import jax.numpy as jnp
import pytest
from functions import KINDS, assert_same, function_of, pair, total
from jax import export

PLATFORMS = ("cpu", "cuda", "tpu")
# What XLA makes of a program and of a saved one may order sums otherwise: of a value, and of a gradient.
VALUE, GRADIENT = 2e-6, 1e-5

pytest.importorskip("flatbuffers")  # which JAX saves programs with


def saved_and_loaded(function, sizes, vjp_order=0):
    """The program for float32 images of symbolic sizes, with a list of outputs: JAX does not save MSSSIMTerms."""
    constraints = [f"{side} >= 3" for side in ("height", "width") if side in sizes]
    image = jax.ShapeDtypeStruct(export.symbolic_shape(sizes, constraints=constraints), jnp.float32)
    program = export.export(jax.jit(lambda *x: jax.tree.leaves(function(*x))), platforms=PLATFORMS)(image, image)
    assert program.platforms == PLATFORMS
    return export.deserialize(program.serialize(vjp_order=vjp_order))


ANY_NUMBER = "batch, 9, 10, 1", [(1, 9, 10, 1), (3, 9, 10, 1)]
# Worked through in blocks of rows, as many as fit one image of unknown number.
ANY_NUMBER_OF_LARGE = "batch, 240, 10, 1", [(2, 240, 10, 1)]
ANY_SIZE = "height, width, 1", [(3, 4, 1), (30, 11, 1)]


@pytest.mark.parametrize(
    ("name", "sizes", "shapes", "implementation"),
    [
        ("ssim", *ANY_NUMBER, None),
        ("ssim", *ANY_SIZE, None),
        ("ssim", *ANY_SIZE, "matmul"),
        pytest.param("ssim", *ANY_NUMBER_OF_LARGE, None, marks=pytest.mark.slow),
        *(pytest.param(name, *ANY_NUMBER, None, marks=pytest.mark.slow) for name in KINDS if name != "ssim"),
        *(pytest.param("ms_ssim", *ANY_NUMBER, kind, marks=pytest.mark.slow) for kind in ("conv", "matmul")),
        pytest.param("ssim", *ANY_SIZE, "conv", marks=pytest.mark.slow),
    ],
)
def test_images(name, sizes, shapes, implementation):
    function = function_of(name, implementation=implementation)
    program = saved_and_loaded(function, sizes)
    for shape in shapes:
        images = pair(*shape)
        assert_same(program.call(*images), jax.tree.leaves(function(*images)), VALUE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssim", "ssim_map", "ssim_l1_loss", "ms_ssim", "log_ms_ssim_loss"])
def test_gradient_of_a_saved_program(name):
    function = function_of(name)
    program = saved_and_loaded(function, "batch, 9, 10, 1", vjp_order=1)
    images = pair(3, 9, 10, 1)
    got, expected = (jax.jit(jax.grad(total(f), (0, 1)))(*images) for f in (program.call, function))
    assert_same(got, expected, GRADIENT)
