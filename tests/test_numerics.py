"""float32 and narrower types: accurate, at most 1, and finite with a finite gradient, on the pairs that break SSIM."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from compat import enable_x64
from images import photograph, photographs, random_pair, smooth_pair

import jax_msssim
from jax_msssim import ms_ssim, ms_ssim_db, ms_ssim_loss, ssim
from jax_msssim._ms_ssim import _log_positive

SHAPE = (48, 52, 1)
POWERS = (0.2, 0.3, 0.5)


def stacked(pairs, dtype=np.float32):
    """The pairs as one batch, rounded: one program computes them all."""
    return tuple(np.stack(images).astype(dtype) for images in zip(*pairs.values(), strict=True))


def by_name(pairs, *values):
    return {name: tuple(float(x) for x in row) for name, *row in zip(pairs, *values, strict=True)}


# --- float32 against float64 --------------------------------------------------------------------------------


def accuracy_pairs():
    noise = np.random.default_rng(3).standard_normal(SHAPE)
    kinds = {"random": random_pair(SHAPE), "smooth": smooth_pair(SHAPE)}
    pairs = {
        f"{kind} + {offset}": (a + offset, b + offset)
        for kind, (a, b) in kinds.items()
        for offset in (0, 10, 1000, 10_000)
    }
    a = kinds["smooth"][0]
    return pairs | {
        "bright flat": (1 - 1e-4 * a, 1 - 1e-4 * a[::-1]),
        "low contrast at 0.9": (0.9 + 0.01 * a, 0.9 + 0.01 * a + 0.002 * noise),
        "identical black": (0 * a, 0 * a),
        "photograph": photographs("camera", *SHAPE[:2]),
    }


def test_float32_against_float64(implementation):
    pairs = accuracy_pairs()
    a, b = stacked(pairs)
    for function, reference, options in (
        (ssim, oracle.ssim, {}),
        (ms_ssim, oracle.ms_ssim, {"power_factors": POWERS}),
    ):
        values = by_name(pairs, function(a, b, implementation=implementation, **options), reference(a, b, **options))
        assert {name: value for name, value in values.items() if abs(value[0] - value[1]) > 5e-6} == {}
        assert {name: value for name, value in values.items() if value[0] > 1 + 1e-6} == {}


@pytest.mark.slow
@pytest.mark.parametrize("function", [ssim, ms_ssim])
def test_mean_over_eight_million_positions(function):
    # One float32 sum over so many positions would be off by 1e-4 or more.
    a, b = (x.astype(np.float32) for x in random_pair((2160, 3840, 1)))
    with enable_x64(True):
        exact = float(function(a.astype(np.float64), b.astype(np.float64)))
    for implementation in ("stencil", "conv"):
        assert abs(float(function(a, b, implementation=implementation)) - exact) <= 5e-6


@pytest.mark.parametrize("shape", [(4096, 64, 1), (64, 4096, 1), (192, 192, 1)])
def test_mean_of_a_constant_map(shape, implementation):
    # All roundings of a plain sum of equal numbers go one way: 1.4e-5 over 4096 rows. Here only the map's own count,
    # five operations of 6e-8.
    levels = np.float32([0.17, 0.43, 0.61, 0.94])
    a, b = (np.broadcast_to(x.reshape(-1, 1, 1, 1), (4, *shape)) for x in (levels, levels[::-1] ** 2))
    x, y = (image[:, 0, 0, 0].astype(np.float64) for image in (a, b))
    luminance = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    np.testing.assert_allclose(ssim(a, b, implementation=implementation), luminance, rtol=0, atol=3e-7)


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


def test_identical_images(implementation):
    pairs = accuracy_pairs()
    a, other = stacked(pairs)
    options = {"power_factors": POWERS, "implementation": implementation}
    np.testing.assert_array_equal(ssim(a, a, implementation=implementation), 1)
    np.testing.assert_array_equal(ms_ssim(a, a, **options), 1)
    np.testing.assert_array_equal(ms_ssim_db(a, a, **options), np.inf)
    gradient = jax.grad(lambda a, b: ms_ssim_loss(a, b, **options).sum())
    # Rounding leaves 1e-7 of what unlike images have.
    scale = np.abs(gradient(a, other)).max()
    assert np.abs(gradient(a, a)).max() <= 1e-6 * scale


def test_nearly_equal_images(implementation):
    # 60 to 100 dB: 1 - MS-SSIM is 1e-6 to 1e-10, of which subtraction from 1 in float32 would leave nothing. The
    # oracle subtracts in float64: 1e-15 / 1e-10 = 1e-5 relative.
    a, _ = photographs("camera", *SHAPE[:2])
    noise = np.random.default_rng(0).standard_normal(SHAPE)
    a, b = stacked({size: (a, a + size * noise) for size in (7.5e-7, 5e-6, 5e-5)})
    options = {"power_factors": POWERS}
    exact = 1 - oracle.ms_ssim(a, b, **options)
    decibels = -10 * np.log10(exact)
    np.testing.assert_allclose(decibels, [99.5, 83, 63], rtol=0, atol=1)
    np.testing.assert_allclose(ms_ssim_loss(a, b, implementation=implementation, **options), exact, 1e-4)
    # 1e-4 of the loss is 10 log10(1 + 1e-4) = 4e-4 dB.
    got = ms_ssim_db(a, b, implementation=implementation, **options)
    np.testing.assert_allclose(got, decibels, rtol=0, atol=4.4e-4)


# --- pairs on which SSIM breaks -----------------------------------------------------------------------------

HARD_SHAPE = (14, 15, 1)
HARD = {"filter_size": 5}
HARD_POWERS = (0.4, 0.6)
LOSSES = ("ssim_loss", "dssim_loss", "ms_ssim_loss", "log_ms_ssim_loss", "ssim_l1_loss")


def pair_with_term(scale, value):
    """``a`` and its mean plus ``t`` times the rest, ``t`` such that the mean of a scale's term has the value."""
    a, _ = random_pair(HARD_SHAPE, seed=7)

    def pair(t):
        return a, a.mean() + t * (a - a.mean())

    def term(t):
        _, contrast_structure, similarity = oracle.ms_ssim_terms(*pair(t), window=oracle.gaussian(5), scales=2)
        return (contrast_structure[0] if scale == 0 else similarity[1]).item()

    low, high = -1.0, 1.0  # bisection: the term grows with t
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if term(middle) < value else (low, middle)
    assert abs(term(low) - value) < 1e-12
    return pair(low)


@functools.cache
def hard_pairs():
    a, b = random_pair(HARD_SHAPE)
    one_pixel = a.copy()
    one_pixel[7, 7] += 0.5
    return {
        "random": (a, b),
        "anticorrelated": (a, 1 - a),
        "identical": (a, a),
        "one pixel different": (a, one_pixel),
        "identical black": (0 * a, 0 * a),
        "constant": (0 * a + 0.3, 0 * a + 0.8),
        "black against white": (0 * a, 0 * a + 1),
        "constant against random": (0 * a + 0.5, a),
    } | {
        f"term of scale {scale} at {value}": pair_with_term(scale, value)
        for scale in (0, 1)
        for value in (0, 0.01, 0.02)
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("function", ["ms_ssim", *LOSSES])
def test_hard_pairs(function, dtype, implementation):
    pairs = hard_pairs()
    a, b = (jnp.asarray(x).astype(dtype) for x in stacked(pairs))
    options = HARD | ({"power_factors": HARD_POWERS} if "ms_ssim" in function else {})

    def total(a, b):
        values = getattr(jax_msssim, function)(a, b, implementation=implementation, **options)
        return values.sum(), values

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(a, b)
    assert values.dtype == np.float32
    assert {name: value for name, (value,) in by_name(pairs, values).items() if not np.isfinite(value)} == {}
    for gradient in gradients:
        assert gradient.dtype == dtype
        largest = np.abs(np.asarray(gradient, np.float64)).max((-3, -2, -1))  # NaN and inf are larger still
        assert {name: size for name, (size,) in by_name(pairs, largest).items() if not np.isfinite(size)} == {}
        if function in LOSSES:
            assert by_name(pairs, largest)["anticorrelated"][0] > 0
        if function != "ssim_l1_loss":  # whose sign(0) is an L1's own
            assert by_name(pairs, largest)["identical black"][0] == 0


def test_hard_pairs_have_the_value_of_the_definition(implementation):
    pairs = hard_pairs()
    a, b = stacked(pairs)
    options = {"power_factors": HARD_POWERS, "negative": "soft"}
    got = ms_ssim(a, b, implementation=implementation, **HARD, **options)
    np.testing.assert_allclose(got, oracle.ms_ssim(a, b, window=oracle.gaussian(5), **options), rtol=0, atol=5e-6)


def test_logarithm_where_the_soft_rule_has_its_pole():
    # eps^2 / (2 eps - x) is not taken at x = 2 eps, but its infinite derivative times 0 would be NaN. No images hit
    # that number for sure.
    x = np.float32([0.02, 0.005, -1])
    value, gradient = jax.vmap(jax.value_and_grad(lambda x: _log_positive(1 - x, x, "soft")))(x)
    np.testing.assert_allclose(value, np.log([0.02, 1e-4 / 0.015, 1e-4 / 1.02]), rtol=1e-6)
    np.testing.assert_allclose(gradient, [50, 1 / 0.015, 1 / 1.02], rtol=1e-6)


@pytest.mark.parametrize("max_val", [1e-15, 1e-6, 1e6, 1e15])
def test_extreme_max_val(max_val, implementation):
    # C1 and C2 are squares of it and the derivative divides by squares of those: nothing may leave float32.
    a, b = (np.float32(x) for x in random_pair(HARD_SHAPE))
    options = HARD | {"power_factors": HARD_POWERS, "implementation": implementation}
    scale = np.float32(max_val)

    def loss(a, b, max_val):
        return ms_ssim_loss(a, b, max_val=max_val, **options)

    value, gradient = jax.value_and_grad(loss)(scale * a, scale * b, scale)
    expected, expected_gradient = jax.value_and_grad(loss)(a, b, np.float32(1))
    # Scaling rounds the pixels, by 6e-8, and each value may be off by 5e-6; a gradient divides by small variances.
    np.testing.assert_allclose(value, expected, 5e-6)
    np.testing.assert_allclose(gradient * scale, expected_gradient, rtol=1e-4, atol=1e-8)


# --- types --------------------------------------------------------------------------------------------------


def test_integers_are_their_floats(implementation):
    options = HARD | {"implementation": implementation}
    grey = photograph("camera")[100:130, 200:231]
    for dtype, scale in (("uint8", 1), ("uint16", 257)):
        a = grey.astype(dtype) * np.asarray(scale, dtype)
        b = np.roll(a, 1, 0)
        floats = ssim(a.astype(np.float32), b.astype(np.float32), max_val=255 * scale, **options)
        # The same arithmetic; XLA may fuse it in another order.
        np.testing.assert_allclose(ssim(a, b, **options), floats, 1e-6)
    a, b = grey.astype(np.int32), np.roll(grey, 1, 0).astype(np.float32)
    floats = ssim(a.astype(np.float32), b, max_val=255, **options)
    np.testing.assert_allclose(ssim(a, b, max_val=255, **options), floats, 1e-6)


@pytest.mark.parametrize("types", [("bfloat16", "bfloat16"), ("float16", "float32")])
def test_narrow_floats_are_computed_in_float32(types, implementation):
    options = HARD | {"power_factors": HARD_POWERS, "implementation": implementation}
    a, b = (jnp.asarray(x.astype(np.float32)).astype(t) for x, t in zip(random_pair(HARD_SHAPE), types, strict=True))
    got = ms_ssim(a, b, **options)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, ms_ssim(a.astype("float32"), b.astype("float32"), **options), rtol=0, atol=1e-6)


def test_one_float64_image_makes_float64(implementation, x64):
    options = HARD | {"power_factors": HARD_POWERS}
    a, b = random_pair(HARD_SHAPE)
    got = ms_ssim(a.astype(np.float32), b, implementation=implementation, **options)
    assert got.dtype == np.float64
    exact = oracle.ms_ssim(a.astype(np.float32), b, window=oracle.gaussian(5), power_factors=HARD_POWERS)
    np.testing.assert_allclose(got, exact, 1e-12)


# --- large images, which the CPU works through in blocks ----------------------------------------------------


@pytest.mark.parametrize("spatial_ndim", [2, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_blocks_of_rows(spatial_ndim, small_blocks, x64):
    # 19 rows of windows in blocks of 4: the last one overlaps its neighbour.
    a, b = random_pair((2, *(23, 9, 10)[:spatial_ndim], 2))
    options = {"filter_size": 5, "spatial_ndim": spatial_ndim}

    def value(a, b, max_val, implementation="stencil"):
        return ssim(a, b, max_val=max_val, implementation=implementation, **options)

    assert "scan[" in str(jax.make_jaxpr(value)(a, b, 1.0))  # there are blocks at all
    exact = oracle.ssim(a, b, window=oracle.gaussian(5), spatial_ndim=spatial_ndim)
    np.testing.assert_allclose(value(a, b, 1.0), exact, 1e-12)
    # The other implementation knows no blocks and leaves its derivative to JAX.
    expected = jax.jit(jax.grad(lambda *x: value(*x, "conv").sum(), (0, 1, 2)))(a, b, 1.3)
    # Two ways in float64. "conv" takes variances as differences of squares, some 1e4 times as large: 1e-12.
    for argnums in ((0,), (1,), (2,), (0, 1, 2)):
        gradients = jax.jit(jax.grad(lambda *x: value(*x).sum(), argnums))(a, b, 1.3)
        for i, gradient in zip(argnums, gradients, strict=True):
            np.testing.assert_allclose(gradient, expected[i], 1e-9, atol=1e-14)


@pytest.mark.slow
def test_blocks_at_every_scale(small_blocks, x64):
    a, b = random_pair((2, 37, 11, 2))
    options = {"filter_size": 5, "power_factors": np.array(HARD_POWERS)}

    def value(a, b, max_val, implementation="stencil"):
        return ms_ssim(a, b, max_val=max_val, implementation=implementation, **options)

    exact = oracle.ms_ssim(a, b, window=oracle.gaussian(5), power_factors=HARD_POWERS)
    np.testing.assert_allclose(value(a, b, 1.0), exact, 1e-12)
    gradients, expected = (
        jax.jit(jax.grad(lambda *x, kind=kind: value(*x, kind).sum(), (0, 1, 2)))(a, b, 1.3)
        for kind in ("stencil", "conv")
    )
    for got, want in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(got, want, 1e-9, atol=1e-14)  # as above


# Sides of which a quarter is whole, three scales: what needs no derivative makes the second scale block by block.
THREE_POWERS = np.array([0.2, 0.3, 0.5])


@pytest.mark.parametrize("shape", [(2, 44, 36, 2), pytest.param((20, 24, 36, 1), marks=pytest.mark.slow)])
@pytest.mark.parametrize("luminance", ["last", pytest.param("all", marks=pytest.mark.slow)])
def test_two_scales_at_once(luminance, shape, small_blocks, x64):
    a, b = random_pair(shape)
    options = {"power_factors": THREE_POWERS, "luminance": luminance, "spatial_ndim": 2 if shape[-1] == 2 else 3}

    def value(a, b, max_val, implementation="stencil"):
        return ms_ssim(a, b, max_val=max_val, filter_size=5, implementation=implementation, **options)

    assert "_every_second" in str(jax.make_jaxpr(value)(a, b, 1.0))  # it is done at all
    exact = oracle.ms_ssim(a, b, window=oracle.gaussian(5), **options)
    np.testing.assert_allclose(value(a, b, 1.0), exact, 1e-12)
    np.testing.assert_allclose(jax.vmap(value, (0, 0, None))(a[None], b[None], 1.0)[0], exact, 1e-12)
    # Derivatives take one scale after another.
    arguments, tangents = (a, b, 1.3), (b, a, 0.7)
    got, expected = (
        jax.jvp(lambda *x, kind=kind: value(*x, kind), arguments, tangents) for kind in ("stencil", "conv")
    )
    for x, y in zip(got, expected, strict=True):
        np.testing.assert_allclose(x, y, 1e-9, atol=1e-14)  # as above
    for argnums in ((1,), (0, 1, 2)):
        gradients, expected = (
            jax.jit(jax.grad(lambda *x, kind=kind: value(*x, kind).sum(), argnums))(*arguments)
            for kind in ("stencil", "conv")
        )
        for x, y in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(x, y, 1e-9, atol=1e-14)


@pytest.mark.parametrize(
    "options",
    [{"padding": "same"}, {"power_factors": THREE_POWERS[:2]}, {"where": random_pair((44, 36, 2))[0] > 0.01}],
)
def test_what_needs_whole_scales_gets_them(options, small_blocks, x64):
    a, b = random_pair((44, 36, 2))
    options = {"power_factors": THREE_POWERS} | options
    function = functools.partial(ms_ssim, filter_size=5, **options)
    assert "_every_second" not in str(jax.make_jaxpr(function)(a, b))
    exact = oracle.ms_ssim(a, b, window=oracle.gaussian(5), **options)
    np.testing.assert_allclose(function(a, b), exact, 1e-12)


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
