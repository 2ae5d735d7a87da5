"""Every function that takes two images, with options that fit tiny ones, for tests that go through them all."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from images import random_pair

import jax_msssim

POWERS = np.array([0.4, 0.6])
SINGLE_SCALE = {name: {"filter_size": 3} for name in ("ssim", "ssim_map", "ssim_loss", "dssim_loss", "ssim_l1_loss")}
# Its gradient compiles for half a minute with the other implementation: five windows, none of them with a mean alone.
SINGLE_RESOLUTION = {"single_resolution": {"form": "single_resolution", "implementation": "conv"}}
POWER_LAWS = {
    name: {"filter_size": 3, "power_factors": POWERS}
    for name in ("ms_ssim", "ms_ssim_db", "ms_ssim_loss", "log_ms_ssim_loss", "ms_ssim_l1_loss")
}
FUNCTIONS = SINGLE_SCALE | SINGLE_RESOLUTION | POWER_LAWS | {"ms_ssim_terms": {"filter_size": 3, "scales": 2}}
# A line of arithmetic away from SSIM or MS-SSIM.
ARITHMETIC = ("ssim_loss", "dssim_loss", "ms_ssim_db", "ms_ssim_loss", "log_ms_ssim_loss")
# One of each kind, for tests that are slow; the others are a line of arithmetic away from one of them.
KINDS = ("ssim", "ssim_map", "ssim_l1_loss", "single_resolution", "ms_ssim_loss", "ms_ssim_terms")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
# The implementation that JAX differentiates by itself is left to the slow part where a test goes through everything.
conv_is_slow = pytest.mark.parametrize("implementation", ["stencil", slow("conv")])


def implementations(i, case):
    """The stencil, and one of the linear blurs, which share all else: with tiles, but not thousands, by matrices."""
    thousands = {"blocks", "signal"} <= {*case.split("-")}
    return "stencil", "matmul" if "tiles" in case or (i % 2 and not thousands) else "conv"


def function_of(name, **options):
    """The function of two images; ``"single_resolution"`` is that form of ``ms_ssim_l1_loss``."""
    function = getattr(jax_msssim, "ms_ssim_l1_loss" if name == "single_resolution" else name)
    return functools.partial(function, **FUNCTIONS[name] | options)


def total(function):
    """One number that every output of a function moves by another amount."""

    def of(*images, **options):
        return sum(
            (out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape)).sum()
            for out in jax.tree.leaves(function(*images, **options))
        )

    return of


def pair(*shape, dtype=np.float32, **options):
    """A random pair of images in a floating type."""
    return tuple(jnp.asarray(x, dtype) for x in random_pair(shape, **options))


def assert_same(got, expected, tolerance):
    """Equal structure, shapes and types, and values to a share of the largest finite one."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)
        largest = np.abs(np.where(np.isfinite(y), y, 0)).max(initial=0)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * largest)
