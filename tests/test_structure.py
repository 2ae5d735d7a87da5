"""What the speed on the CPU rests on, as properties of the compiled program."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_msssim import ms_ssim, ssim, ssim_loss

TAPS = 11
on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks, and stages of this kind, are the CPU's")


def compiled(function, *shape, dtype="float32"):
    image = jax.ShapeDtypeStruct(shape, dtype)
    return jax.jit(function).lower(image, image).compile()


def computations(text) -> list[str]:
    """The computations of a compiled program; fusions are among them."""
    return re.split(r"\n(?=%\S+ \()", text)


@on_cpu
@pytest.mark.parametrize(
    "function",
    [
        ssim,
        jax.vmap(ssim),
        jax.grad(lambda a, b: ssim_loss(a, b).sum()),
        jax.grad(lambda a, b: ssim_loss(a, b).sum(), (0, 1)),
    ],
    ids=["forward", "vmap", "gradient", "both gradients"],
)
def test_stages_stay_apart(function):
    # A pass fused into the next one would be computed again for each of its taps, 121 products and more in one
    # computation. Three for each tap are what a pass takes, and the map has two.
    text = compiled(function, 2, 32, 32, 3).as_text()
    assert TAPS <= max(part.count(" multiply(") for part in computations(text)) <= 7 * TAPS


@pytest.mark.parametrize(
    ("function", "shape", "images"),
    [
        (ssim_loss, (2, 32, 32, 3), 1),
        # In blocks, one image of each scale.
        (functools.partial(ms_ssim, filter_size=5, power_factors=np.ones(3)), (2, 150, 32, 3), 1 + 1 / 4 + 1 / 16),
    ],
    ids=["one scale", "three scales"],
)
def test_the_backward_pass_needs_one_image(function, shape, images):
    # Saved between the forward and the backward pass: one gradient image, not a dozen maps, and not that by the image
    # that is not differentiated. A tenth of an image is left for the rest.
    a = jax.ShapeDtypeStruct(shape, jnp.float32)
    pullback = jax.eval_shape(lambda a, b: jax.vjp(lambda x: function(x, b), a)[1], a, a)
    saved = [x.size for x in jax.tree.leaves(pullback) if hasattr(x, "size")]
    assert a.size <= sum(saved) <= (images + 0.1) * a.size


@on_cpu
@pytest.mark.parametrize("function", [ssim, functools.partial(ms_ssim, power_factors=np.ones(3))])
def test_the_loop_runs_over_pixels_and_keeps_the_batch(function):
    image = jax.ShapeDtypeStruct((7, 150, 32, 3), jnp.float32)
    text = jax.jit(lambda x: function(x, x, filter_size=5)).lower(image).as_text()
    assert "stablehlo.while" in text
    slices = re.findall(r"dynamic_slice .*sizes = \[([\d, ]+)\]", text)
    assert slices
    assert all(re.match(r"(2, )?7, ", sizes) for sizes in slices)  # of one image, or of a stack of two


# In images. Each scale is two arrays, those of the second half an image; maps of one block are 1/21 each, seven alive,
# ten in JAX 0.9; each block leaves one row, 29 of 1080 in all.
FORWARD = 1 / 2 + 1 / 8 + 1 / 32 + 10 / 21 + 29 / 1080
# The gradient, and before it the two arrays of the second scale, 1; the gradient of that and what is passed on of it
# 1/4 each; maps of one block 1/8 each, four moments and four that are summed or blurred, and a little more. If they do
# not share it is half an image more.
BACKWARD = 1 + 2 / 4 + 8.5 / 8
TWO_SCALES = jax.value_and_grad(lambda a, b: ms_ssim(a, b, power_factors=(0.5, 0.5)).sum())


@on_cpu
@pytest.mark.parametrize(
    ("function", "shape", "dtype", "images"),
    [
        (ms_ssim, (1, 1080, 1920, 3), "float32", FORWARD),
        (ms_ssim, (1, 1080, 1920, 3), "uint8", FORWARD),  # converted whole they would be two images more
        (TWO_SCALES, (1, 512, 512, 3), "float32", BACKWARD),
    ],
    ids=["value", "value of bytes", "gradient"],
)
def test_memory_of_large_images(function, shape, dtype, images):
    program = compiled(function, *shape, dtype=dtype)
    assert program.memory_analysis().temp_size_in_bytes <= images * np.prod(shape) * 4
    assert re.search(r" while\(", program.as_text())
    # JAX takes what is the same in every block out of the loop: to be read from memory, block after block.
    assert not re.search(r"= f32\[\d+,\d+,\d+\]\S* call\(\)", program.as_text())


@on_cpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "dtype", "bytes_of_a_pixel"),
    [
        # A block of 32 rows leaves one. MS-SSIM has two arrays of each coarser scale, a quarter as large as the one
        # before. JAX 0.9 copies both.
        (ssim, "uint8", 2 * 4 / 32),
        (ms_ssim, "uint8", 2 * (4 / 32 + 8 / 3)),
        (jax.value_and_grad(lambda a, b: ssim_loss(a, b).sum()), "float32", 2 * 4 / 32 + 4),
    ],
    ids=["ssim", "ms_ssim", "gradient"],
)
def test_more_than_two_to_the_31_pixels(function, dtype, bytes_of_a_pixel):
    side = 46_400
    memory = compiled(function, 1, side, side, 1, dtype=dtype).memory_analysis().temp_size_in_bytes
    assert memory <= (bytes_of_a_pixel + 0.05) * side**2
