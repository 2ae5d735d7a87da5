"""What the speed on the CPU rests on, as properties of the compiled program."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_msssim

TAPS = 11


def compiled_text(function) -> str:
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    return jax.jit(function).lower(image, image).compile().as_text()


def computations(text) -> list[str]:
    """The computations of a compiled program; fusions are among them."""
    return re.split(r"\n(?=%\S+ \()", text)


# Name: function, and passes that are stages of their own. Two images, two axes: four passes. Without a derivative the
# last one of both is part of the stage of the map.
FUNCTIONS = {
    "forward": (jax_msssim.ssim, 2),
    "vmap": (jax.vmap(jax_msssim.ssim), 2),
    "gradient": (jax.grad(lambda a, b: jax_msssim.ssim_loss(a, b).sum()), 4),
    "both gradients": (jax.grad(lambda a, b: jax_msssim.ssim_loss(a, b).sum(), (0, 1)), 4),
}


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="stages are kept apart on the CPU alone")
@pytest.mark.parametrize("name", FUNCTIONS)
def test_stages_stay_apart(name):
    # A pass fused into the next one would be computed again for each of its taps, 121 products and more in one
    # computation. Three for each tap are what a pass takes, and the map has two.
    function, passes = FUNCTIONS[name]
    text = compiled_text(function)
    assert len(re.findall(r" call\(.*to_apply=%_pass", text)) == passes
    assert max(part.count(" multiply(") for part in computations(text)) <= 7 * TAPS


def test_the_backward_pass_needs_one_image():
    # Saved between the forward and the backward pass: one gradient image, not a dozen maps.
    a = jnp.zeros((2, 32, 32, 3))
    _, pullback = jax.vjp(lambda x: jax_msssim.ssim_loss(x, a), a)
    saved = [x.size for x in jax.tree.leaves(pullback) if hasattr(x, "size")]
    assert sum(saved) <= 1.1 * a.size


@pytest.mark.parametrize("function", [jax_msssim.ssim, functools.partial(jax_msssim.ms_ssim, power_factors=np.ones(3))])
def test_the_loop_runs_over_pixels_and_keeps_the_batch(function, small_blocks):
    text = str(jax.make_jaxpr(lambda x: function(x, x, filter_size=5))(jnp.zeros((7, 32, 32, 3))))
    slices = re.findall(r"dynamic_slice\[.*?slice_sizes=\(([\d, ]+)\)", text, re.DOTALL)
    assert slices
    assert all(sizes.startswith("7,") for sizes in slices)


def test_a_gradient_of_a_large_image_needs_one_image_of_each_scale(small_blocks):
    # Not that by the image that is not differentiated, either: 1 + 1/4 + 1/16 of the pixels.
    a = jnp.zeros((2, 32, 32, 3))
    options = {"filter_size": 5, "power_factors": np.ones(3)}
    _, pullback = jax.vjp(lambda x: jax_msssim.ms_ssim(x, a, **options), a)
    saved = [x.size for x in jax.tree.leaves(pullback) if hasattr(x, "size")]
    assert sum(saved) <= (1 + 1 / 4 + 1 / 16 + 0.1) * a.size


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are for the CPU alone")
def test_the_second_scale_of_large_images_is_never_held():
    # Its four arrays are as large as an image. Those of the third are a quarter of that and the fourth's a sixteenth,
    # and a map of one block is 1/21 of an image, of which seven are alive.
    image = jax.ShapeDtypeStruct((1, 1080, 1920, 3), jnp.float32)
    program = jax.jit(jax_msssim.ms_ssim).lower(image, image).compile()
    assert program.memory_analysis().temp_size_in_bytes <= (1 / 4 + 1 / 16 + 7 / 21) * image.size * 4
    assert not re.search(r"= f32\[\d+,\d+,\d+\]\S* call\(\)", program.as_text())


@pytest.fixture(scope="module")
def step_in_blocks():
    """Value and gradient of two scales, compiled for images of several blocks."""
    image = jax.ShapeDtypeStruct((1, 512, 512, 3), jnp.float32)
    step = jax.value_and_grad(lambda a, b: jax_msssim.ms_ssim(a, b, power_factors=(0.5, 0.5)).sum())
    return jax.jit(step).lower(image, image).compile()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are for the CPU alone")
def test_stages_read_no_constant_arrays(step_in_blocks):
    # JAX takes what is the same in every block out of the loop: to be read from memory, block after block.
    assert re.search(r" while\(", step_in_blocks.as_text())
    assert not re.search(r"= f32\[\d+,\d+,\d+\]\S* call\(\)", step_in_blocks.as_text())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="blocks are for the CPU alone")
def test_the_gradient_takes_the_memory_of_the_coarser_images(step_in_blocks):
    # In images: the gradient and before it the four arrays of the second scale 1, the gradient of that and what is
    # passed on of it 1/4 each, maps of one block 1/8 each, half a dozen at a time. If they do not share it is one more.
    image = 512 * 512 * 3 * 4
    assert step_in_blocks.memory_analysis().temp_size_in_bytes <= (1 + 2 / 4 + 6 / 8) * image
