"""Every option, size and batch shape against the definition in ``oracle.py``, in float64."""

import numpy as np
import oracle
import pytest
from images import random_pair

import jax_msssim

# Both sides compute in float64; sums of a few hundred numbers round by 1e-14, and a power of 0.4 of a mean
# near 0.01 magnifies that a hundredfold.
RTOL = 1e-12
TWO_SCALES = {"filter_size": 5, "power_factors": (0.4, 0.6)}
ASYMMETRIC = (0.05, 0.3, 0.4, 0.15, 0.1)


def pairs(shape, spatial_ndim=2):
    """Of a batch, every other pair is anticorrelated: its terms are negative."""
    a, b = random_pair(shape)
    _, unlike = random_pair(shape, likeness=-0.7)
    batch = shape[: -spatial_ndim - 1]
    odd = np.arange(np.prod(batch, dtype=int)).reshape(*batch, *(1,) * (spatial_ndim + 1)) % 2 == 1
    return a, np.where(odd, unlike, b)


def expected(function, a, b, *, filter_size=11, filter_sigma=1.5, window=None, **options):
    window = oracle.gaussian(filter_size, filter_sigma) if window is None else window
    return function(a, b, window=window, **options)


SSIM_OPTIONS = [
    {},
    {"padding": "same"},
    {"filter_sigma": 0.8},
    {"filter_size": 1},
    {"window": ASYMMETRIC},
    {"window": ASYMMETRIC, "padding": "same"},
    {"k1": 0.05, "k2": 0.1, "max_val": 2.5},
]


def name(options):
    return "-".join(f"{key}={value}" for key, value in options.items()) or "defaults"


@pytest.mark.parametrize("options", SSIM_OPTIONS, ids=name)
def test_ssim_and_its_map(options, implementation, x64):
    a, b = pairs((2, 12, 15, 2))
    options = {"filter_size": 5} | options
    got = jax_msssim.ssim_map(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, expected(oracle.ssim_map, a, b, **options), RTOL, atol=1e-14)
    got = jax_msssim.ssim(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, expected(oracle.ssim, a, b, **options), RTOL)


MS_SSIM_OPTIONS = [
    {"downsample": "floor"},
    {"padding": "same"},
    {"padding": "same", "downsample": "floor", "window": ASYMMETRIC},
    {"window": ASYMMETRIC},
    {"luminance": "all"},
    {"negative": "soft"},
    {"negative": "shift"},
    {"channel_mean": "before"},
    {"channel_mean": "before", "luminance": "all", "negative": "soft", "downsample": "floor"},
    {"k1": 0.05, "k2": 0.1, "max_val": 2.5},
    {"power_factors": (1.0,)},
    {"power_factors": (0.3, 0.0, 1.7), "filter_size": 3},
]


@pytest.mark.parametrize("options", MS_SSIM_OPTIONS, ids=name)
def test_ms_ssim(options, implementation, x64):
    a, b = pairs((2, 13, 18, 2))
    options = TWO_SCALES | options
    got = jax_msssim.ms_ssim(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, expected(oracle.ms_ssim, a, b, **options), RTOL)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("spatial_ndim", [1, 2, 3])
def test_terms_in_one_two_and_three_dimensions(spatial_ndim, padding, implementation, x64):
    a, b = pairs((2, *(11, 10, 13)[:spatial_ndim], 2), spatial_ndim)
    options = {"filter_size": 5, "scales": 2, "spatial_ndim": spatial_ndim, "padding": padding}
    got = jax_msssim.ms_ssim_terms(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(np.stack(got, 1), expected(oracle.ms_ssim_terms, a, b, **options), RTOL, atol=1e-14)


@pytest.mark.parametrize("shape", [(9, 9, 1), (10, 9, 3), (11, 16, 2), (2, 9, 12, 1), (2, 3, 14, 10, 3), (0, 9, 9, 1)])
def test_sizes_channels_and_batches(shape, implementation, x64):
    a, b = pairs(shape)
    got = jax_msssim.ms_ssim(a, b, implementation=implementation, **TWO_SCALES)
    assert got.shape == shape[:-3]
    if got.size:
        np.testing.assert_allclose(got, expected(oracle.ms_ssim, a, b, **TWO_SCALES), RTOL)


def test_max_val_and_power_factors_of_each_image(implementation, x64):
    a, b = random_pair((2, 3, 10, 9, 1))
    max_val = np.array([1.0, 2.0, 255.0])  # broadcast over the first batch axis
    power_factors = np.array([[[0.4, 0.6]], [[0.9, 0.2]]])  # and over the second
    got = jax_msssim.ms_ssim(
        a, b, max_val=max_val, power_factors=power_factors, filter_size=5, implementation=implementation
    )
    for i, j in np.ndindex(2, 3):
        options = {"filter_size": 5, "max_val": max_val[j], "power_factors": power_factors[i, 0]}
        np.testing.assert_allclose(got[i, j], expected(oracle.ms_ssim, a[i, j], b[i, j], **options), RTOL)


LOSSES = {
    "ssim_loss": lambda a, b: 1 - expected(oracle.ssim, a, b, filter_size=5),
    "dssim_loss": lambda a, b: (1 - expected(oracle.ssim, a, b, filter_size=5)) / 2,
    "ms_ssim_loss": lambda a, b: 1 - expected(oracle.ms_ssim, a, b, negative="soft", **TWO_SCALES),
    "log_ms_ssim_loss": lambda a, b: -np.log(expected(oracle.ms_ssim, a, b, negative="soft", **TWO_SCALES)),
    "ms_ssim_db": lambda a, b: -10 * np.log10(1 - expected(oracle.ms_ssim, a, b, **TWO_SCALES)),
    "ssim_l1_loss": lambda a, b: (
        0.8 * np.abs(a - b).mean((-3, -2, -1)) + 0.2 * (1 - expected(oracle.ssim, a, b, filter_size=5, padding="same"))
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, implementation, x64):
    a, b = pairs((3, 10, 11, 2))
    options = TWO_SCALES if "ms_ssim" in loss else {"filter_size": 5}
    got = getattr(jax_msssim, loss)(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, LOSSES[loss](a, b), RTOL, atol=1e-12)  # the oracle subtracts from 1


def test_l1_is_relative_to_max_val(implementation, x64):
    a, b = pairs((2, 10, 11, 2))
    options = {"filter_size": 5, "implementation": implementation}
    for weight in (0.0, 0.3):
        got = jax_msssim.ssim_l1_loss(255 * a, 255 * b, max_val=255, weight=weight, padding="valid", **options)
        mixed = (1 - weight) * np.abs(a - b).mean((-3, -2, -1)) + weight * jax_msssim.ssim_loss(a, b, **options)
        np.testing.assert_allclose(got, mixed, RTOL)
