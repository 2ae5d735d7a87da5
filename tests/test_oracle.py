"""The definition in ``oracle.py``, and every option, size and batch shape against it, in float64."""

from fractions import Fraction

import numpy as np
import oracle
import pytest
from images import p2d, random_pair

import jax_msssim

# Both sides compute in float64; sums of a few hundred numbers round by 1e-14, and a power of 0.4 of a mean
# near 0.01 magnifies that a hundredfold.
RTOL = 1e-12
TWO_SCALES = {"filter_size": 5, "power_factors": (0.4, 0.6)}
ASYMMETRIC = (0.05, 0.3, 0.4, 0.15, 0.1)


# --- the oracle itself ----------------------------------------------------------------------------------------

UNIFORM = {"window": oracle.uniform(7)}
TORCHMETRICS = {"padding": ("valid", "reflect"), "downsample": "floor", "channel_mean": "before"}


@pytest.mark.parametrize(
    ("function", "options", "value"),
    [
        (oracle.ssim, {}, 0.9736344192),  # piq, kornia, scikit-image
        (oracle.ssim, {"padding": "same"}, 0.9742312577),  # fused-ssim
        (oracle.ssim, {"padding": "reflect"}, 0.9736515845),  # torchmetrics, kornia
        (oracle.ssim, {"padding": "symmetric"}, 0.9736488441),
        (oracle.ssim, UNIFORM | {"covariance": "sample"}, 0.9732096036),  # scikit-image
        (oracle.ssim, UNIFORM, 0.9732130139),
        (oracle.ms_ssim, {}, 0.9166501795),  # MATLAB, TensorFlow
        (oracle.ms_ssim, {"downsample": "floor"}, 0.9168578060),  # MONAI
        (oracle.ms_ssim, {"downsample": "zero"}, 0.9147992077),  # pytorch-msssim
        (oracle.ms_ssim, {"downsample": "edge_start"}, 0.9162704790),  # piq
        (oracle.ms_ssim, TORCHMETRICS, 0.9165088969),
        (oracle.ms_ssim, TORCHMETRICS | {"negative": "shift"}, 0.9587452773),
        pytest.param(oracle.single_resolution, {"alpha": 1}, 0.1190055810, marks=pytest.mark.slow),  # kornia
        pytest.param(oracle.single_resolution, {"alpha": 0}, 0.0504487463, marks=pytest.mark.slow),
    ],
)
def test_oracle_gives_the_published_numbers(function, options, value):
    np.testing.assert_allclose(function(*p2d(), **options), value, rtol=0, atol=6e-11)  # ten decimals


@pytest.mark.parametrize("min_coverage", [1.0, 0.7])
@pytest.mark.parametrize("offset", [0, 1e4, 1e15])
def test_oracle_rounds_as_little_as_fractions(offset, min_coverage):
    """Fractions do not round at all: what is left is the rounding of sums of a hundred numbers, at any brightness."""
    rng = np.random.default_rng(0)
    a, b = (offset + 8.0 * rng.integers(0, 8, (9, 11, 1)) for _ in range(2))  # whose 2x2 means are exact
    a[:5] += offset / 2  # a jump, too
    where = rng.random(a.shape) > 0.02
    where[3, :8] = False
    options = {"scales": 2, "where": where, "min_coverage": min_coverage, "padding": "same", "max_val": 64.0}
    window = np.array([1, 2, 2, 2, 1]) / 8
    rounded = oracle.ms_ssim_terms(a, b, window=window, **options)
    a, b, window = (np.vectorize(Fraction, otypes=[object])(x) for x in (a, b, window))
    exact = oracle.ms_ssim_terms(a, b, window=window, **options | {"max_val": Fraction(64)})
    assert np.isfinite(rounded).all()
    np.testing.assert_allclose(rounded, exact.astype(np.float64), rtol=0, atol=1e-13)


# --- the library ----------------------------------------------------------------------------------------------


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
    {"window": ASYMMETRIC, "padding": "reflect", "covariance": "sample"},
    {"padding": "symmetric"},
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
    {"downsample": "edge_start"},
    {"downsample": "zero", "padding": ("symmetric", "same")},
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
    "ssim_loss": {},
    "dssim_loss": {},
    "ms_ssim_loss": TWO_SCALES,
    "log_ms_ssim_loss": TWO_SCALES,
    "ms_ssim_db": TWO_SCALES,
    "ssim_l1_loss": {"weight": 0.3, "max_val": 2.0},
    "ms_ssim_l1_loss": TWO_SCALES | {"alpha": 0.4, "max_val": 2.0},
}


@pytest.mark.parametrize("loss", LOSSES)
def test_losses(loss, implementation, x64):
    a, b = pairs((3, 10, 11, 2))
    options = {"filter_size": 5} | LOSSES[loss]
    got = getattr(jax_msssim, loss)(a, b, implementation=implementation, **options)
    exact = expected(getattr(oracle, loss), a, b, **options)
    np.testing.assert_allclose(got, exact, RTOL, atol=1e-12)  # the oracle subtracts from 1


@pytest.mark.slow
def test_single_resolution(implementation, x64):
    a, b = pairs((2, 12, 15, 2))
    where = np.random.default_rng(0).random(a.shape) > 0.002
    options = {"alpha": 0.4, "max_val": 2.0, "form": "single_resolution"}
    for mask in ({}, {"where": where, "min_coverage": 0.7}):
        got = jax_msssim.ms_ssim_l1_loss(a, b, implementation=implementation, **options, **mask)
        # Taps beyond 8 sigmas, below 1e-14, are left out.
        np.testing.assert_allclose(got, oracle.ms_ssim_l1_loss(a, b, **options, **mask), 1e-11)


def test_windows():
    for size in (1, 3, 11):
        np.testing.assert_allclose(jax_msssim.uniform_window(size), oracle.uniform(size), 1e-15)
        for sigma in (0.3, 1.5, 20):
            # A tap is an exponential of a number of up to 150, whose last bit is 3e-14.
            np.testing.assert_allclose(jax_msssim.gaussian_window(size, sigma), oracle.gaussian(size, sigma), 3e-14)


def test_fit_power_factors():
    for downsample in ("edge", "floor", "zero", "edge_start"):
        for height in range(5, 90):
            options = {"filter_size": 5, "downsample": downsample}
            got = jax_msssim.fit_power_factors((height, 40), **options)
            np.testing.assert_allclose(got, oracle.fit_power_factors((height, 40), **options), 1e-15)


def test_l1_is_relative_to_max_val(implementation, x64):
    a, b = pairs((2, 10, 11, 2))
    options = {"filter_size": 5, "implementation": implementation}
    for weight in (0.0, 0.3):
        got = jax_msssim.ssim_l1_loss(255 * a, 255 * b, max_val=255, weight=weight, padding="valid", **options)
        mixed = (1 - weight) * np.abs(a - b).mean((-3, -2, -1)) + weight * jax_msssim.ssim_loss(a, b, **options)
        np.testing.assert_allclose(got, mixed, RTOL)
