"""float32 and narrower types where digits are lost: sums, nearly equal and flat images, extreme numbers, gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from compat import enable_x64
from functions import conv_is_slow, slow
from images import photograph, photographs, random_pair

import jax_msssim
from jax_msssim import fit_power_factors, ms_ssim, ms_ssim_db, ms_ssim_l1_loss, ms_ssim_loss, ssim, uniform_window

# --- float32 against float64 --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "implementations"), [(ssim, ("stencil", "conv", "matmul")), (ms_ssim, ("stencil",))]
)
def test_mean_over_eight_million_positions(function, implementations):
    # One float32 sum over so many positions would be off by 1e-4 or more.
    a, b = (x.astype(np.float32) for x in random_pair((2160, 3840, 1)))
    with enable_x64(True):
        exact = float(function(a.astype(np.float64), b.astype(np.float64)))
    for implementation in implementations:
        assert abs(float(function(a, b, implementation=implementation)) - exact) <= 5e-6


@pytest.mark.parametrize("shape", [(4096, 64, 1), (64, 4096, 1), (192, 192, 1)])
def test_mean_of_a_constant_map(shape, implementation):
    # All roundings of a plain sum of equal numbers go one way: 1.4e-5 over 4096 rows. Here only the map's own count,
    # five operations of 6e-8, and where blocks of 64 rows are added up half a unit in the last place for each.
    levels = np.float32([0.17, 0.43, 0.61, 0.94])
    a, b = (np.broadcast_to(x.reshape(-1, 1, 1, 1), (4, *shape)) for x in (levels, levels[::-1] ** 2))
    x, y = (image[:, 0, 0, 0].astype(np.float64) for image in (a, b))
    luminance = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    tolerance = 3e-7 + (3e-8 * shape[0] / 64 if implementation == "stencil" else 0)
    np.testing.assert_allclose(ssim(a, b, implementation=implementation), luminance, rtol=0, atol=tolerance)


@pytest.mark.parametrize("lines", [(-1,), (0, -1)], ids=["last", "first and last"])
def test_images_that_differ_in_few_lines(lines, implementation):
    # The mean is a few 512ths of those lines: measured from one of them it would be rounded as that is, 1e-5 of itself.
    # Here the values' own roundings are left, a dozen of 6e-8.
    rng = np.random.default_rng(0)
    a = rng.random((512, 24, 1), np.float32)
    b = a.copy()
    b[lines, :] = rng.random((len(lines), 24, 1), np.float32)
    exact = 1 - oracle.ssim(a, b)
    np.testing.assert_allclose(jax_msssim.ssim_loss(a, b, implementation=implementation), exact, 8e-7)
    l1 = jax_msssim.ssim_l1_loss(a, b, weight=0.0, implementation=implementation)
    np.testing.assert_allclose(l1, np.abs(a.astype(np.float64) - b).mean(), 8e-7)


def test_black_against_white(implementation):
    # l is 1e-4, of which 1 - (1 - l) keeps three digits: 1e-5 of this value. Its own keep all but three roundings.
    white = np.broadcast_to(np.float32([1, 0.9, 0.7]).reshape(3, 1, 1, 1), (3, 48, 48, 1))
    luminance = 1e-4 / (white[:, 0, 0, 0].astype(np.float64) ** 2 + 1e-4)
    got = ms_ssim(np.zeros_like(white), white, power_factors=(0.8667, 0.1333), implementation=implementation)
    np.testing.assert_allclose(got, luminance**0.1333, rtol=2e-7)


def test_nearly_equal_images(implementation):
    # 60 to 100 dB: 1 - MS-SSIM is 1e-6 to 1e-10, of which subtraction from 1 in float32 would leave nothing. The
    # oracle subtracts in float64: 1e-15 / 1e-10 = 1e-5 relative.
    a, _ = photographs("camera", 48, 52)
    noise = np.random.default_rng(0).standard_normal(a.shape)
    a, b = (
        np.stack([a + size * noise for size in sizes], dtype=np.float32) for sizes in ([0] * 4, [7.5e-7, 5e-6, 5e-5, 0])
    )
    options = {"power_factors": (0.2, 0.3, 0.5)}
    exact = 1 - oracle.ms_ssim(a, b, **options)
    decibels = oracle.ms_ssim_db(a, b, **options)
    np.testing.assert_allclose(decibels, [99.5, 83, 63, np.inf], rtol=0, atol=1)
    np.testing.assert_allclose(ms_ssim_loss(a, b, implementation=implementation, **options), exact, 1e-4)
    # 1e-4 of the loss is 10 log10(1 + 1e-4) = 4e-4 dB.
    got = ms_ssim_db(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, decibels, rtol=0, atol=4.4e-4)


@conv_is_slow
@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_gradients_of_photographs(function, implementation):
    # Of the largest, whatever max_val is: C1 and C2 are its squares, and the derivative divides by squares of those.
    # Linear blurs take small variances as differences of squares.
    pairs = [photographs(name, 96, 104) for name in ("camera", "coins")]
    pairs = [[image + offset for image in pair] for pair in pairs for offset in (0, 10, 1000)]
    max_val = np.float32([1, 1, 1e-15, 1e15, 1, 1])
    a, b = np.float32(pairs).swapaxes(0, 1) * max_val.reshape(-1, 1, 1, 1)
    options = {"power_factors": (0.3, 0.3, 0.4)} if function is ms_ssim else {}

    def gradients(a, b, max_val, **kind):
        options_of_pair = options | {"max_val": max_val} | kind
        found = jax.jit(jax.grad(lambda *x: function(*x, **options_of_pair).sum(), (0, 1)))(a, b)
        return np.asarray(found) * max_val.reshape(-1, 1, 1, 1)

    got = gradients(a, b, max_val, implementation=implementation)
    with enable_x64(True):
        exact = gradients(*(x.astype(np.float64) for x in (a, b, max_val)))
    error, largest = (np.abs(x).max((-3, -2, -1)) for x in (got - exact, exact))
    assert np.all(error <= (1e-5 if implementation == "stencil" else 1e-4) * largest), error / largest


# --- pairs on which SSIM breaks -----------------------------------------------------------------------------

HARD_SHAPE = (14, 15, 1)
HARD = {"filter_size": 5}
FAR = np.full((20, 24, 1), 255)  # from its middle pixel, from which samples are measured
FAR[10, 12] = 0
BYTES = {
    "noise": np.random.default_rng(0).integers(0, 256, (2, 20, 24, 1)),
    "far from the middle": (FAR, np.full_like(FAR, 254)),
    "two halves": (255 * (np.indices(FAR.shape)[1] > 11), np.full_like(FAR, 255)),
    "checkerboards": (255 * (np.indices(FAR.shape).sum(0) % 2), 255 - 255 * (np.indices(FAR.shape).sum(0) % 2)),
}
HARD_POWERS = (0.4, 0.6)
LOSSES = ("ssim_loss", "dssim_loss", "ms_ssim_loss", "log_ms_ssim_loss", "ssim_l1_loss")


@conv_is_slow
@pytest.mark.parametrize("function", ["ms_ssim", *LOSSES])
def test_pairs_near_the_poles_of_powers_and_logarithms(function, implementation):
    a, b = random_pair(HARD_SHAPE)
    black, white = 0 * a, 0 * a + 1
    pairs = [(a, 1 - a), (a, a), (black, black), (0.3 * white, 0.8 * white), (black, white), (0.5 * white, a), (a, b)]
    # Means from -0.03 to 0.05: where a power begins, and where the soft rule does.
    pairs += [(a, a.mean() + contrast * (a - a.mean())) for contrast in np.linspace(-0.02, 0.02, 65)]
    a, b = np.float32(pairs).swapaxes(0, 1)
    options = HARD | ({"power_factors": HARD_POWERS} if "ms_ssim" in function else {})

    def total(a, b):
        values = getattr(jax_msssim, function)(a, b, implementation=implementation, **options)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(a, b)
    assert np.isfinite(values).all()
    for gradient in gradients:
        assert np.isfinite(gradient).all()
        assert function not in LOSSES or gradient[0].any()  # anticorrelated
        assert function == "ssim_l1_loss" or not gradient[2].any()  # identical; sign(0) is an L1's own
    if function == "ms_ssim_loss":
        exact = oracle.ms_ssim_loss(a, b, window=oracle.gaussian(5), power_factors=HARD_POWERS)
        np.testing.assert_allclose(values, exact, rtol=0, atol=5e-6)


def test_the_pole_of_the_soft_rule(implementation):
    # eps^2 / (2 eps - x) is not taken at x = 2 eps, but its infinite derivative times 0 would be NaN. Of images of one
    # pixel, each brighter by one bit, some have just that similarity to white.
    grey = (np.float32(0.009952).view(np.int32) + np.arange(-4096, 4096, dtype=np.int32)).view(np.float32)
    a = grey.reshape(-1, 1, 1, 1)
    options = {"filter_size": 1, "power_factors": (1.0,), "implementation": implementation}
    white = np.ones_like(a)
    assert np.any(ms_ssim(a, white, **options) == np.float32(0.02))
    gradient = jax.grad(lambda a: ms_ssim_loss(a, white, **options).sum())(a)
    np.testing.assert_allclose(gradient, -2, rtol=1e-3)  # of 2 a / (1 + C1), but for a^2 and a C1


# --- types --------------------------------------------------------------------------------------------------


@conv_is_slow
@pytest.mark.parametrize(
    "types", ["uint8 uint8", "uint16 uint16", "int32 float32", "bfloat16 bfloat16", "float16 float32"]
)
def test_narrow_types_are_computed_in_float32(types, implementation):
    options = HARD | {"power_factors": HARD_POWERS, "implementation": implementation}
    grey = photograph("camera")[100:130, 200:231].astype(np.uint16) * (257 if "uint16" in types else 1)
    a, b = (jnp.asarray(x).astype(t) for x, t in zip((grey, np.roll(grey, 1, 0)), types.split(), strict=True))
    got = ms_ssim(a, b, max_val=None if types.startswith("uint") else 255, **options)
    assert got.dtype == np.float32
    # The same arithmetic; XLA may fuse it in another order.
    floats = (x.astype("float32") for x in (a, b))
    expected = ms_ssim(*floats, max_val=65535 if "uint16" in types else 255, **options)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "implementation"),
    [
        ({"padding": "same", "downsample": "zero"}, "stencil"),
        slow({"padding": "reflect", "downsample": "edge_start", "sizes": [30, 31]}, "stencil"),
        slow({"downsample": "floor", "where": np.arange(31).reshape(31, 1, 1) % 9 > 0}, "stencil"),
        slow({"downsample": "floor"}, "conv"),
    ],
    ids=lambda x: x["downsample"] if isinstance(x, dict) else x,
)
def test_bytes_beside_floats(options, implementation):
    options = options | {"filter_size": 5, "power_factors": (0.4, 0.6), "max_val": 255}
    options |= {"implementation": implementation}
    grey, floats = photograph("camera")[100:131, 200:233], 255 * random_pair((31, 33, 1))[0].astype(np.float32)
    by_floats = jax.value_and_grad(lambda a, b: ms_ssim(a, b, **options), 1)
    got, expected = (by_floats(a, floats) for a in (grey, grey.astype(np.float32)))
    # The same arithmetic; XLA may fuse it in another order.
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=1e-6), got, expected)


def test_one_float64_image_makes_float64(implementation, x64):
    a, b = random_pair(HARD_SHAPE)
    got = ssim(a.astype(np.float32), b, implementation=implementation)
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, oracle.ssim(a.astype(np.float32), b), 1e-12)


@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_large_cotangents_do_not_overflow(function, implementation):
    # As decibels of nearly equal images have, 10 / log(10) / (1 - MS-SSIM). float32 holds numbers 340 times as large; a
    # partial derivative by a variance is up to 555, of one of a hundred positions. Linear, but for roundings of 6e-8.
    a, b = (x.astype(np.float32) for x in random_pair((45, 47, 1)))
    options = {"filter_size": 5, "implementation": implementation}
    options |= {"power_factors": (0.4, 0.6)} if function is ms_ssim else {}
    pullback = jax.jit(lambda cotangent: jax.vjp(lambda *x: function(*x, **options), a, b)[1](cotangent))
    largest = np.float32(1e36)
    for gradient, expected in zip(pullback(largest), pullback(np.float32(1)), strict=True):
        np.testing.assert_allclose(gradient / largest, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_cifar_sized_images_train():
    # Two scales fit 32x32; descending the loss brings the images together.
    targets = photographs("astronaut", 64, 64)[0].reshape(2, 32, 2, 32, 3).swapaxes(1, 2).reshape(4, 32, 32, 3)
    targets = targets.astype(np.float32)
    power_factors = fit_power_factors((32, 32))
    assert len(power_factors) == 2
    step = jax.jit(jax.value_and_grad(lambda x: ms_ssim_l1_loss(x, targets, power_factors=power_factors).mean()))
    images = np.full_like(targets, 0.5)
    losses = []
    for _ in range(30):
        loss, gradient = step(images)
        images = images - 20 * gradient
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    "size", [7, 8, pytest.param(1, marks=pytest.mark.slow), pytest.param(9, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("content", BYTES)
def test_bytes_under_equal_taps(content, size):
    # Up to 8x8 taps sums are exact; what is rounded is a ratio at each position, and the mean.
    a, b = BYTES[content]
    window, options = uniform_window(size), {"covariance": "sample" if size > 1 else "population", "max_val": 255}
    expected = oracle.ssim(a, b, window=window, **options)
    np.testing.assert_allclose(
        ssim(a.astype(np.uint8), b.astype(np.uint8), window=window, **options), expected, 0, 3e-7
    )
    # Signed bytes are darker, and a difference of means near 0 keeps fewer digits: those that the library promises.
    lower = ssim((a - 128).astype(np.int8), (b - 128).astype(np.int8), window=window, **options)
    np.testing.assert_allclose(lower, oracle.ssim(a - 128, b - 128, window=window, **options), 0, 5e-6)
