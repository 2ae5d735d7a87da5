"""Masked images: the crop, the ragged batch, and pixels that are never seen."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import conv_is_slow
from images import random_pair

import jax_msssim

FLOAT32 = {"rtol": 1e-6}  # two orders of the same float32 means: a dozen roundings of 6e-8
SMALL = {"filter_size": 5, "power_factors": (0.3, 0.3, 0.4)}
LOSSES = {
    "ssim_loss": {"filter_size": 5},
    "dssim_loss": {"filter_size": 5},
    "ms_ssim_loss": SMALL,
    "log_ms_ssim_loss": SMALL,
    "ssim_l1_loss": {"filter_size": 5, "padding": "valid"},
    "ms_ssim_l1_loss": SMALL,
}


@conv_is_slow
@pytest.mark.parametrize(
    ("downsample", "padding"),
    [("edge", "valid"), ("floor", "same")]
    + [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("edge", "same"), ("floor", "valid"))],
)
def test_all_true_is_no_mask(downsample, padding, implementation):
    a, b = (x.astype(np.float32) for x in random_pair((2, 45, 38, 2)))
    options = {**SMALL, "downsample": downsample, "padding": padding, "implementation": implementation}
    where = np.ones((1, 45, 1, 1), bool)
    value, masked = (jax_msssim.ms_ssim(a, b, **options, **mask) for mask in ({}, {"where": where}))
    np.testing.assert_allclose(masked, value, **FLOAT32)


@conv_is_slow
@pytest.mark.parametrize(("height", "width", "downsample"), [(24, 37, "edge"), (31, 26, "floor")])
def test_rectangle_is_its_crop(height, width, downsample, implementation, x64):
    # It starts on a multiple of 2^(scales - 1); its size is arbitrary. In float64, of numbers of order 1: what either
    # is measured from differs, and in float32 the largest gradient's 6th digit with it.
    a, b = random_pair((56, 60, 2))
    where = np.zeros(a.shape, bool)
    here = np.s_[8 : 8 + height, 16 : 16 + width]
    where[here] = True
    a_masked, b_masked = np.where(where, a, np.nan), np.where(where, b, np.inf)
    options = {**SMALL, "downsample": downsample, "implementation": implementation}
    of_crop = jax.value_and_grad(lambda x: jax_msssim.ms_ssim(x, b[here], **options))
    of_rest = jax.value_and_grad(lambda x: jax_msssim.ms_ssim(x, b_masked, where=where, **options))
    value, gradient = of_crop(jnp.asarray(a[here]))
    masked_value, masked_gradient = of_rest(jnp.asarray(a_masked))
    np.testing.assert_allclose(masked_value, value, rtol=1e-12)
    np.testing.assert_allclose(masked_gradient[here], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())
    assert not np.asarray(masked_gradient)[~where].any()  # exactly 0, under NaN


@pytest.mark.slow
def test_ragged_batch_is_its_images_one_by_one(implementation):
    sizes = [(32, 40), (21, 29), (40, 23)]
    pairs = [[x.astype(np.float32) for x in random_pair((*size, 1), seed)] for seed, size in enumerate(sizes)]
    a, b, where = (np.zeros((3, 40, 40, 1), dtype) for dtype in (np.float32, np.float32, bool))
    for i, (x, y) in enumerate(pairs):
        a[i, : x.shape[0], : x.shape[1]], b[i, : x.shape[0], : x.shape[1]] = x, y
        where[i, : x.shape[0], : x.shape[1]] = True
    options = {**SMALL, "implementation": implementation}
    one_by_one = [jax_msssim.ms_ssim(x, y, **options) for x, y in pairs]
    np.testing.assert_allclose(jax_msssim.ms_ssim(a, b, where=where, **options), one_by_one, **FLOAT32)
    mapped = jax.vmap(lambda x, y, w: jax_msssim.ms_ssim(x, y, where=w, **options))(a, b, where)
    np.testing.assert_allclose(mapped, one_by_one, **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("implementation", "name"),
    [("stencil", name) for name in LOSSES] + [("conv", "ms_ssim_l1_loss"), ("matmul", "ssim_l1_loss")],
)
def test_losses_never_see_masked_pixels(name, implementation):
    a, b = (x.astype(np.float32) for x in random_pair((3, 40, 36, 1)))
    where = np.random.default_rng(2).random(a.shape) > 0.01
    where[:, :16, 16:] = False
    where[0] = False  # an image without a counted position
    options = {**LOSSES[name], "where": where, "min_coverage": 0.7, "implementation": implementation}

    @jax.jit
    def program(x, y):
        def total(x):
            values = getattr(jax_msssim, name)(x, y, **options)
            return jnp.nansum(values), values

        return jax.grad(total, has_aux=True)(x)

    def gradient_and_values(fill):
        return program(jnp.where(where, a, np.float32(fill)), jnp.where(where, b, np.float32(-fill)))

    gradient, values = map(np.asarray, gradient_and_values(0))
    for fill in (1e30, np.inf, np.nan):
        for other, expected in zip(gradient_and_values(fill), (gradient, values), strict=True):
            np.testing.assert_array_equal(other, expected)
    assert [*np.isfinite(values)] == [False, True, True]
    assert np.isfinite(gradient).all()
    assert not gradient[~where].any()
    assert gradient[1].any()
    assert gradient[2].any()


def test_without_a_mask_no_mask_operation(implementation):
    # A mask is a boolean array of the images' size that is made a number.
    a = np.zeros((32, 32, 1), np.float32)
    options = {"power_factors": (0.5, 0.5), "filter_size": 5, "implementation": implementation}

    def masks_made_numbers(**mask):
        program = jax.jit(lambda x: jax_msssim.ms_ssim(x, x, **options, **mask)).lower(a).as_text()
        return re.findall(r"stablehlo.convert .*: \(tensor<32x32\w*xi1>\)", program)

    assert not masks_made_numbers()
    assert masks_made_numbers(where=np.ones(a.shape, bool))
