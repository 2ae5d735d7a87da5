"""Values that are known: golden ones, computed by other programs too, and closed forms."""

import jax
import numpy as np
import pytest
from compat import enable_x64
from images import noisy_camera, p2d

import jax_msssim
from jax_msssim import fit_power_factors, gaussian_window, uniform_window


@pytest.fixture(params=["float32", "float64"])
def precision(request):
    # The golden values have ten decimals: half of the last one is 5e-11 / 0.36 = 1.4e-10 of the smallest. The
    # rounding of float32 pixels is 6e-8, that of max_val and of the sums some times as much.
    with enable_x64(request.param == "float64"):
        yield request.param, {"float32": 2e-6, "float64": 1e-9}[request.param]


def cast(pair, dtype):
    return tuple(x.astype(dtype) for x in pair)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({}, 0.9736344192),  # piq, kornia, scikit-image
        ({"padding": "same"}, 0.9742312577),  # fused-ssim
        ({"window": uniform_window(7)}, 0.9732130139),  # scikit-image
    ],
    ids=["gaussian", "same", "uniform"],
)
def test_ssim(options, value, precision, implementation):
    dtype, rtol = precision
    got = jax_msssim.ssim(*cast(p2d(), dtype), implementation=implementation, **options)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, value, rtol)


@pytest.mark.parametrize(
    ("downsample", "value"),
    [
        ("edge", 0.9166501795),  # MATLAB, TensorFlow
        ("floor", 0.9168578060),  # MONAI
    ],
)
def test_ms_ssim(downsample, value, precision, implementation):
    dtype, rtol = precision
    got = jax_msssim.ms_ssim(*cast(p2d(), dtype), downsample=downsample, implementation=implementation)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, value, rtol)


def test_terms_of_each_scale(precision, implementation):
    dtype, rtol = precision
    terms = jax_msssim.ms_ssim_terms(*cast(p2d(), dtype), implementation=implementation)
    np.testing.assert_allclose(terms.luminance[0, 0], 0.9989504736, rtol)
    np.testing.assert_allclose(terms.contrast_structure[0, 0], 0.9746573203, rtol)
    np.testing.assert_allclose(terms.similarity[0, 0], 0.9736344192, rtol)
    known = [0.97465732, 0.96866553, 0.89359742, 0.83544058]  # eight decimals: 5e-9 / 0.8
    np.testing.assert_allclose(terms.contrast_structure[:4, 0], known, max(rtol, 7e-9))
    np.testing.assert_allclose(terms.similarity[4, 0], 0.99595707, max(rtol, 7e-9))


def test_noisy_camera(precision, implementation):
    dtype, rtol = precision
    pair = cast(noisy_camera(), dtype)
    options = {"max_val": 255, "implementation": implementation}
    np.testing.assert_allclose(jax_msssim.ssim(*pair, **options), 0.3579642362, rtol)  # scikit-image, as Wang
    np.testing.assert_allclose(jax_msssim.ms_ssim(*pair, **options), 0.7933915443, rtol)


def test_constant_images(implementation, x64):
    # Flat images differ by luminance alone: l = (2ab + C1) / (a^2 + b^2 + C1), cs = 1, MS-SSIM = l^w5.
    a, b = np.array([(0, 1), (0, 0), (1, 1), (0.5, 0.4), (0.2, 0.9)]).T
    luminance = (2 * a * b + 1e-4) / (a**2 + b**2 + 1e-4)
    pair = [np.broadcast_to(x[:, None, None, None], (5, 33, 34, 1)) for x in (a, b)]
    options = {"filter_size": 3, "implementation": implementation}
    # 1 - l is summed over 31 rows and 32 columns, 1e-16 each: of the smallest l, 1e-4, that is 6e-11.
    np.testing.assert_allclose(jax_msssim.ssim(*pair, **options), luminance, 2e-10)
    np.testing.assert_allclose(jax_msssim.ms_ssim(*pair, **options), luminance**0.1333, 2e-10)


def test_gaussian_window():
    # MATLAB: w = fspecial('gaussian', [11 1], 1.5), to eight decimals.
    half = [0.00102838, 0.00759876, 0.03600077, 0.10936069, 0.21300554, 0.26601172]
    window = gaussian_window(11, 1.5)
    assert window.dtype == np.float64  # also where JAX computes in float32
    np.testing.assert_allclose(window, half + half[-2::-1], rtol=0, atol=1.1e-8)
    for size, sigma in [(11, 1.5), (33, 8.0), (1, 1.0), (3, 1e-200), (5, 1e200)]:
        window = gaussian_window(size, sigma)
        assert abs(window.sum() - 1) < 1e-15  # a few roundings of 1e-16
        np.testing.assert_array_equal(window, window[::-1])


def test_uniform_window():
    for size in (1, 7, 31):
        np.testing.assert_array_equal(uniform_window(size), [1 / size] * size)


@pytest.mark.parametrize(
    ("shape", "options", "scales"),
    [
        ((161, 161), {}, 5),
        ((160, 161), {}, 4),
        ((161, 160), {}, 4),
        ((176, 176), {"downsample": "floor"}, 5),
        ((175, 176), {"downsample": "floor"}, 4),
        ((11, 11), {}, 1),
        ((9, 30, 30), {"filter_size": 5}, 2),
        ((40,), {"filter_size": 5}, 4),
    ],
)
def test_fit_power_factors(shape, options, scales):
    weights = fit_power_factors(shape, **options)
    leading = np.array([0.0448, 0.2856, 0.3001, 0.2363, 0.1333])[:scales]
    if scales == 5:
        assert weights == tuple(leading)  # as published: they sum to 1.0001
    else:
        np.testing.assert_allclose(weights, leading / leading.sum(), 1e-15)


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
