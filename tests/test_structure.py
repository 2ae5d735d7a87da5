"""What the speed on the CPU rests on, as properties of the compiled program."""

import re

import jax
import jax.numpy as jnp
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


def test_the_loop_runs_over_rows_and_keeps_the_batch(small_blocks):
    text = str(jax.make_jaxpr(lambda x: jax_msssim.ssim(x, x, filter_size=5))(jnp.zeros((7, 32, 32, 3))))
    slices = re.findall(r"dynamic_slice\[.*?slice_sizes=\(([\d, ]+)\)", text, re.DOTALL)
    assert slices
    assert all(sizes.startswith("7,") for sizes in slices)
