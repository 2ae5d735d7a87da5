"""NumPy arrays are the caller's again when a call returns: what becomes of them then changes no value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import FUNCTIONS, POWERS, function_of
from images import random_pair
from jax import lax

# Signals compile soonest.
A, B = (x.astype(np.float32) for x in random_pair((2, 32, 1)))
OPTIONS = {"max_val": np.array([1.0, 0.9]), "sizes": np.array([[31], [29]]), "where": np.arange(32)[:, None] + A < 28}
OF_SOME = {
    **{name: {"power_factors": POWERS} for name in ("ms_ssim", "ms_ssim_db", "ms_ssim_loss", "log_ms_ssim_loss")},
    "ms_ssim_l1_loss": {"power_factors": POWERS, "alpha": np.array(0.84)},
    "single_resolution": {"alpha": np.array(0.84)},
    "ssim_l1_loss": {"weight": np.array(0.2)},
}


def buffer(x) -> np.ndarray:
    """A copy that begins at a multiple of 64 bytes: JAX on a CPU uses it in place."""
    memory = np.empty(x.nbytes + 64, np.uint8)
    start = -memory.ctypes.data % 64
    copy = memory[start : start + x.nbytes].view(x.dtype).reshape(x.shape)
    copy[...] = x
    return copy


@jax.jit
def late(x):
    """``x`` after some tenths of a second of computing: no program that takes it begins before."""
    zeros = lax.fori_loop(0, 100, lambda _, y: y @ y, jnp.zeros((500, 500), x.dtype))
    return x + zeros[0, 0]


def assert_free_after(function, numpy_image, jax_image, **options):
    """Every NumPy array is overwritten as soon as the call has returned, before anything is computed."""
    expected = function(numpy_image, late(jax_image), **options)
    assert all(np.isfinite(x).any() for x in jax.tree.leaves(expected))
    image, arrays = buffer(numpy_image), {name: buffer(x) for name, x in options.items()}
    got = function(image, late(jax_image), **arrays)
    for x in (image, *arrays.values()):
        x[...] = 0
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_are_free_after_the_call(name):
    function = function_of(name, spatial_ndim=1, min_coverage=0.1)
    assert_free_after(function, A, B, **OPTIONS | OF_SOME.get(name, {}))


@pytest.mark.parametrize("dtype", ["float32", "uint8"])
def test_the_second_image_is_free(dtype):
    function = function_of("ssim", max_val=255.0, spatial_ndim=1)
    assert_free_after(lambda x, other: function(other, x), (255 * A).astype(dtype), 255 * B)


def test_arrays_are_free_where_the_other_image_is_differentiated():
    gradient = jax.value_and_grad(lambda x, target: function_of("ssim_loss", spatial_ndim=1)(x, target).sum())
    assert_free_after(lambda target, x: gradient(x, target), A, B)
