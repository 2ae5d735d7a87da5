"""Values that are known: golden ones, of the oracle too; fractions, which the oracle is held against; closed forms."""

from fractions import Fraction

import jax
import numpy as np
import oracle
import pytest
from compat import enable_x64
from functions import conv_is_slow
from images import noisy_camera, p2d

import jax_msssim
from jax_msssim import conventions, fit_power_factors, gaussian_window, uniform_window

GOLDEN = {  # float64, of the pair P2D, in a convention
    ("MATLAB", "ssim"): 0.9736344192,
    ("MATLAB", "ms_ssim"): 0.9166501795,
    ("TENSORFLOW", "ms_ssim"): 0.9166501795,
    ("PYTORCH_MSSSIM", "ssim"): 0.9736344192,
    ("PYTORCH_MSSSIM", "ms_ssim"): 0.9147992077,
    ("TORCHMETRICS", "ssim"): 0.9736515845,
    ("TORCHMETRICS", "ms_ssim"): 0.9165088969,
    ("TORCHMETRICS_SIMPLE", "ms_ssim"): 0.9587452773,
    ("PIQ", "ssim"): 0.9736344192,
    ("PIQ", "ms_ssim"): 0.9162704790,
    ("MONAI", "ms_ssim"): 0.9168578060,
    ("KORNIA", "ssim"): 0.9736515845,
    ("SKIMAGE", "ssim"): 0.9732096036,
    ("SKIMAGE_WANG", "ssim"): 0.9736344192,
    ("FUSED_SSIM", "ssim"): 0.9742312577,
}
ZHAO = {"form": "single_resolution"}
OTHERS = [
    ("ssim", {"padding": "symmetric"}, 0.9736488441),
    ("ssim", {"window": uniform_window(7)}, 0.9732130139),  # scikit-image
    ("ms_ssim_l1_loss", ZHAO | {"alpha": 1}, 0.1190055810),  # kornia
    ("ms_ssim_l1_loss", ZHAO | {"alpha": 0}, 0.0504487463),
]
TABLE = [(metric, getattr(conventions.ALL[name], metric), value) for (name, metric), value in GOLDEN.items()] + OTHERS
# The golden values have ten decimals: half of the last one is 5e-11 / 0.05 = 1e-9 of the smallest. The rounding of
# float32 pixels is 6e-8, that of max_val and of the sums some times as much.
RTOL = {"float32": 2e-6, "float64": 1e-9}


@conv_is_slow
@pytest.mark.parametrize(("metric", "options", "value"), TABLE)
def test_golden(metric, options, value, implementation, x64):
    got = getattr(jax_msssim, metric)(*p2d(), implementation=implementation, **options)
    np.testing.assert_allclose(got, value, RTOL["float64"])


@pytest.mark.parametrize(
    ("metric", "options", "value"),
    [pytest.param(*row, marks=pytest.mark.slow) if "form" in row[1] else row for row in TABLE],
)
def test_golden_of_the_oracle(metric, options, value):
    np.testing.assert_allclose(getattr(oracle, metric)(*p2d(), **options), value, RTOL["float64"])


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


@conv_is_slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_photograph_and_terms_of_each_scale(dtype, implementation):
    with enable_x64(dtype == "float64"):
        options, rtol = {"implementation": implementation}, RTOL[dtype]
        a, b = noisy_camera()
        if dtype == "float64":
            a, b = a.astype(dtype), b.astype(dtype)
        value = jax_msssim.ssim(a, b, max_val=255, **options)
        assert value.dtype == dtype
        np.testing.assert_allclose(value, 0.3579642362, rtol)  # scikit-image, as Wang
        np.testing.assert_allclose(jax_msssim.ms_ssim(a, b, max_val=255, **options), 0.7933915443, rtol)
        terms = jax_msssim.ms_ssim_terms(*(x.astype(dtype) for x in p2d()), **options)
        np.testing.assert_allclose(terms.luminance[0, 0], 0.9989504736, rtol)
        np.testing.assert_allclose(terms.contrast_structure[0, 0], 0.9746573203, rtol)
        np.testing.assert_allclose(terms.similarity[0, 0], 0.9736344192, rtol)
        known = [0.97465732, 0.96866553, 0.89359742, 0.83544058]  # eight decimals: 5e-9 / 0.8
        np.testing.assert_allclose(terms.contrast_structure[:4, 0], known, max(rtol, 7e-9))
        np.testing.assert_allclose(terms.similarity[4, 0], 0.99595707, max(rtol, 7e-9))


@conv_is_slow
def test_constant_images(implementation, x64):
    # Flat images differ by luminance alone: l = (2ab + C1) / (a^2 + b^2 + C1), cs = 1, MS-SSIM = l^w5.
    a, b = np.array([(0, 1), (0, 0), (1, 1), (0.5, 0.4), (0.2, 0.9)]).T
    luminance = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    pair = [np.broadcast_to(x[:, None, None, None], (5, 33, 34, 1)) for x in (a, b)]
    options = {"filter_size": 3, "implementation": implementation}
    # 1 - l is summed over 31 rows and 32 columns, 1e-16 each: of the smallest l, 1e-4, that is 6e-11.
    np.testing.assert_allclose(jax_msssim.ssim(*pair, **options), luminance, 2e-10)
    np.testing.assert_allclose(jax_msssim.ms_ssim(*pair, **options), luminance**0.1333, 2e-10)


def test_windows():
    # MATLAB: w = fspecial('gaussian', [11 1], 1.5), to eight decimals.
    half = [0.00102838, 0.00759876, 0.03600077, 0.10936069, 0.21300554, 0.26601172]
    np.testing.assert_allclose(gaussian_window(11, 1.5), half + half[-2::-1], rtol=0, atol=1.1e-8)
    for size, sigma in [(11, 0.3), (33, 8.0), (31, 20.0), (1, 1.0), (3, 1e-200), (5, 1e200)]:
        window = gaussian_window(size, sigma)
        assert window.dtype == np.float64  # also where JAX computes in float32
        assert abs(window.sum() - 1) < 1e-15  # a few roundings of 1e-16
        np.testing.assert_array_equal(window, window[::-1])
        np.testing.assert_array_equal(uniform_window(size), [1 / size] * size)
        if 0.1 < sigma < 1e100:  # a tap is an exponential of a number of up to 150, whose last bit is 3e-14
            np.testing.assert_allclose(window, oracle.gaussian(size, sigma), 3e-14)


@pytest.mark.parametrize("downsample", ["edge", "floor"])
def test_what_fits_is_what_ms_ssim_takes(downsample):
    def shape_of(size, weights):
        image = jax.ShapeDtypeStruct((60, size, 1), np.float32)
        options = {"filter_size": 5, "downsample": downsample, "power_factors": weights}
        return jax.eval_shape(lambda a, b: jax_msssim.ms_ssim(a, b, **options), image, image)

    for size in (5, 8, 9, 10, 16, 17, 19, 20):  # around 4 * 2^j + 1 and 5 * 2^j
        weights = fit_power_factors((60, size), filter_size=5, downsample=downsample, power_factors=(1, 1, 1))
        assert shape_of(size, weights).shape == ()
        if len(weights) < 3:
            with pytest.raises(ValueError, match="too small"):
                shape_of(size, (*weights, 1))
