"""Every function and option against the definition in ``oracle.py``: values in float64 and float32, and derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from functions import ARITHMETIC, assert_same, implementations, total
from images import random_pair
from strategies import FEW, MANY, drawn, for_all, holes, limit

import jax_msssim

# --- the cases ------------------------------------------------------------------------------------------------

WINDOW = (0.05, 0.3, 0.4, 0.15, 0.1)
EACH_AXIS = (WINDOW, (0.1, 0.4, 0.3, 0.2))  # of even length along columns
PAIR = ("valid", "reflect")
LOOSE = {"where": True, "min_coverage": 0.63}
AROUND = {"window": EACH_AXIS, "padding": "same"}
ZHAO = {"form": "single_resolution"}

# Name: function, shape of an image, options. The window has 5 taps where nothing is said; MS-SSIM has two scales, or as
# many as ``scales`` says. ``max_val`` and power factors are those of each image, masks come where an option is called
# ``where``. Images of more than 64 rows of windows are worked through in blocks; "matmul" has tiles of 128 pixels along
# axes of more than 256.
CASES = {
    "ssim": ("ssim", (13, 16, 2), {}),
    "ssim-smallest": ("ssim", (5, 5, 1), {}),
    "ssim-one-tap": ("ssim", (6, 7, 1), {"filter_size": 1}),
    "ssim-11-taps": ("ssim", (11, 14, 1), {"filter_size": 11}),
    "ssim-narrow": ("ssim", (12, 9, 3), {"filter_size": 7, "filter_sigma": 0.6}),
    "ssim-window": ("ssim", (9, 12, 2), {"window": WINDOW, "padding": "same"}),
    "ssim-sample": ("ssim", (10, 9, 4), {"window": (1 / 7,) * 7, "covariance": "sample"}),
    "ssim-constants": ("ssim", (9, 10, 1), {"k1": 0.05, "k2": 0.1}),
    "ssim-pixel": ("ssim", (1, 1, 1), {"padding": "same"}),
    "ssim-reflect": ("ssim", (3, 9, 1), {"window": WINDOW, "padding": "reflect", "covariance": "sample"}),
    "ssim-symmetric": ("ssim", (2, 8, 2), {"padding": "symmetric"}),
    "ssim-edge": ("ssim", (3, 9, 2), {"filter_size": 7, "padding": "edge"}),
    "ssim-even": ("ssim", (9, 12, 2), {"filter_size": 6}),
    "ssim-each-axis": ("ssim", (12, 15, 2), {"window": EACH_AXIS, "covariance": "sample"}),
    "ssim-even-edge": ("ssim", (7, 9, 1), {"filter_size": 4, "padding": "edge"}),
    # Not a coverage that sums of these taps can be.
    "ssim-even-where": ("ssim", (13, 11, 2), {"where": True, "min_coverage": 0.632} | AROUND),
    "ssim-even-blocks": ("ssim", (150, 12, 2), {"window": EACH_AXIS, "padding": "reflect"}),
    "ssim-even-tiles": ("ssim", (290, 12, 1), {"window": EACH_AXIS}),
    "ssim-where": ("ssim", (13, 11, 2), {"where": True}),
    "ssim-where-same": ("ssim", (9, 8, 1), LOOSE | {"padding": "same"}),
    "ssim-blocks": ("ssim", (150, 12, 2), {"window": WINDOW}),
    "ssim-blocks-signal": ("ssim", (330_001, 1), {}),
    "ssim-blocks-volume": ("ssim", (75, 6, 5, 2), LOOSE),
    "ssim-tiles": ("ssim", (270, 290, 1), {}),
    "ssim-blocks-wide": ("ssim", (140, 41, 1), LOOSE | {"filter_size": 41, "padding": "same", "filter_sigma": 6.0}),
    "map": ("ssim_map", (9, 12, 2), {}),
    "map-reflect": ("ssim_map", (6, 3, 2), {"padding": "reflect"}),
    "map-where": ("ssim_map", (9, 12, 2), LOOSE),
    "map-where-sample": ("ssim_map", (8, 7, 6, 1), {"where": True, "min_coverage": 0.9, "covariance": "sample"}),
    "map-even": ("ssim_map", (9, 12, 2), {"filter_size": 4, "padding": "symmetric"}),
    "terms": ("ms_ssim_terms", (13, 18, 2), {"scales": 2}),
    "terms-signal": ("ms_ssim_terms", (11, 2), {"scales": 2, "padding": "same"}),
    "terms-volume": ("ms_ssim_terms", (11, 10, 13, 2), {"scales": 2}),
    "terms-same": ("ms_ssim_terms", (9, 6, 1), {"scales": 3, "padding": "same"}),
    "terms-floor": ("ms_ssim_terms", (19, 15, 1), {"scales": 2, "downsample": "floor"}),
    "terms-zero": ("ms_ssim_terms", (11, 10, 1), {"scales": 2, "downsample": "zero", "padding": "symmetric"}),
    "terms-where": ("ms_ssim_terms", (17, 22, 1), LOOSE | {"scales": 2}),
    "ms-edge": ("ms_ssim", (13, 18, 2), {"window": WINDOW}),
    "ms-floor": ("ms_ssim", (13, 11, 1), {"downsample": "floor", "padding": "same"}),
    "ms-zero": ("ms_ssim", (13, 18, 1), {"downsample": "zero", "padding": ("symmetric", "same")}),
    "ms-edge-start": ("ms_ssim", (13, 18, 2), {"downsample": "edge_start"}),
    "ms-start": ("ms_ssim", (13, 18, 2), {"downsample": "start", "scales": 3, "padding": "edge"}),
    "ms-start-volume": ("ms_ssim", (9, 10, 11, 1), {"downsample": "start", "window": (*EACH_AXIS, (1.0,))}),
    "ms-even": ("ms_ssim", (12, 9, 1), {"filter_size": 4, "padding": ("valid", "reflect")}),
    "ms-three-scales": ("ms_ssim", (19, 17, 1), {"scales": 3}),
    "ms-one-scale": ("ms_ssim", (9, 8, 1), {"scales": 1}),
    "ms-signal": ("ms_ssim", (23, 2), {"downsample": "zero", "padding": "symmetric"}),
    "ms-volume": ("ms_ssim", (9, 9, 10, 1), {"downsample": "edge_start"}),
    "ms-same": ("ms_ssim", (6, 9, 1), {"padding": "same", "downsample": "zero"}),
    "ms-pair": ("ms_ssim", (10, 11, 2), {"padding": PAIR, "downsample": "floor", "channel_mean": "before"}),
    "ms-all-soft": ("ms_ssim", (10, 9, 3), {"luminance": "all", "negative": "soft"}),
    "ms-shift": ("ms_ssim", (9, 9, 2), {"negative": "shift", "channel_mean": "before"}),
    "ms-sample": ("ms_ssim", (10, 9, 1), {"covariance": "sample", "k1": 0.05, "k2": 0.1}),
    "ms-where-edge": ("ms_ssim", (18, 19, 2), LOOSE),
    "ms-where-floor": ("ms_ssim", (19, 22, 1), {"where": True, "downsample": "floor", "min_coverage": 0.3}),
    "ms-blocks": ("ms_ssim", (150, 12, 2), {"luminance": "all", "negative": "soft"}),
    "ms-tiles-where": ("ms_ssim", (290, 19, 2), LOOSE),
    "ms-blocks-where": ("ms_ssim", (150, 11, 1), LOOSE | {"downsample": "floor"}),
    "db": ("ms_ssim_db", (10, 9, 2), {"negative": "soft"}),
    "db-where": ("ms_ssim_db", (18, 17, 1), LOOSE | {"negative": "shift"}),
    "ssim_loss": ("ssim_loss", (9, 8, 2), LOOSE),
    "dssim_loss": ("dssim_loss", (8, 9, 2), {"padding": "reflect"}),
    "ms_ssim_loss": ("ms_ssim_loss", (10, 11, 2), {}),
    "ms_ssim_loss-where": ("ms_ssim_loss", (18, 17, 1), LOOSE | {"negative": "relu"}),
    "log_ms_ssim_loss": ("log_ms_ssim_loss", (11, 10, 2), {}),
    "log_ms_ssim_loss-where": ("log_ms_ssim_loss", (17, 18, 1), LOOSE | {"negative": "shift"}),
    "ssim_l1_loss": ("ssim_l1_loss", (7, 8, 3), {}),
    "ssim_l1_loss-where": ("ssim_l1_loss", (9, 8, 1), LOOSE | {"weight": 0.4, "padding": "valid"}),
    "ms_ssim_l1_loss": ("ms_ssim_l1_loss", (10, 9, 2), {}),
    "ms_ssim_l1_loss-where": ("ms_ssim_l1_loss", (18, 17, 1), LOOSE | {"alpha": 0.3}),
    "zhao": ("ms_ssim_l1_loss", (12, 15, 2), ZHAO | {"alpha": 0.4}),
    "zhao-signal": ("ms_ssim_l1_loss", (19, 2), ZHAO),
    "zhao-where": ("ms_ssim_l1_loss", (40, 1), ZHAO | LOOSE),
    "ssim-many-blocks": ("ssim", (33_001, 5, 1), {}),  # several add up to a line
}
SLOW = {"zhao", "ssim-blocks-wide"}  # to compile
LARGE = {
    "zhao",
    "ssim-blocks-signal",
    "ssim-many-blocks",
    "ssim-blocks-volume",
    "ssim-blocks-wide",
    "ssim-tiles",
}  # for the oracle, a hundred times


def options_of(case, pairs):
    """The options of a batch but for ``max_val`` and masks, and power factors of each pair."""
    function, shape, options = CASES[case]
    options = options | {"spatial_ndim": len(shape) - 1}
    if "ms_ssim" in function and function != "ms_ssim_terms" and "form" not in options:
        scales = options.pop("scales", 2)
        options["power_factors"] = np.random.default_rng(0).uniform(0.04, 1, (pairs, scales))
        if case == "ms-three-scales":
            options["power_factors"][0, 1] = 0.0
    if "window" not in options and "form" not in options:
        options = {"filter_size": 5} | options
    return options


def ours(case, a, b, **options):
    got = getattr(jax_msssim, CASES[case][0])(a, b, **options)
    return jnp.stack(got, 1) if CASES[case][0] == "ms_ssim_terms" else got


def by_definition(case, a, b, *, filter_size=None, filter_sigma=1.5, **options):
    if filter_size is not None:
        options["window"] = oracle.gaussian(filter_size, filter_sigma)
    return getattr(oracle, CASES[case][0])(a, b, **options)


def unlike_pairs(case):
    """Two pairs in float64 and their options; the second pair is anticorrelated: its terms are negative."""
    _, shape, _ = CASES[case]
    (a, b), (_, unlike) = (random_pair((2, *shape), likeness=likeness) for likeness in (0.7, -0.7))
    options = options_of(case, 2) | {"max_val": np.array([1.0, 2.5])}
    if "where" in options:
        options["where"] = np.random.default_rng(1).random(a.shape) > [0.1, 0.02, 0.005][len(shape) - 2]
    return a, np.stack([b[0], unlike[1]]), options


# --- float64 --------------------------------------------------------------------------------------------------

# Both sides compute in float64; sums of a few hundred numbers round by 1e-14, and a power of 0.04 of a mean near 0.01
# magnifies that a hundredfold. The form of Zhao et al. leaves out taps beyond 8 sigmas, below 1e-14.
RTOL = 1e-12


def quick(i, case, kind):
    """All with the stencil, every fifth and a volume with another, but what has tiles with matrices alone."""
    both = i % 5 == 0 or case == "terms-volume"
    return (kind == "matmul" if "tiles" in case else kind == "stencil" or both) and case not in SLOW


@pytest.mark.parametrize(
    ("case", "implementation"),
    [
        pytest.param(case, kind, marks=[pytest.mark.slow] * (not quick(i, case, kind)))
        for i, case in enumerate(CASES)
        for kind in implementations(i, case)
    ],
)
def test_float64_is_the_definition(case, implementation, x64):
    a, b, options = unlike_pairs(case)
    got, expected = ours(case, a, b, implementation=implementation, **options), by_definition(case, a, b, **options)
    assert np.isfinite(expected).any()
    np.testing.assert_allclose(got, expected, 10 * RTOL if "form" in options else RTOL, atol=1e-13)
    assert got.dtype == np.float64


@pytest.mark.parametrize("batch", [(), (0,), (2, 3)])
def test_any_batch(batch, implementation, x64):
    a, b = random_pair((*batch, 10, 9, 1))
    max_val = np.broadcast_to(np.array([1.0, 2.0, 255.0]), batch) if batch == (2, 3) else 1.0
    powers = np.array([[[0.4, 0.6]], [[0.9, 0.2]]]) if batch == (2, 3) else (0.4, 0.6)  # broadcast over the second axis
    options = {"max_val": max_val, "power_factors": powers}
    got = jax_msssim.ms_ssim(a, b, filter_size=5, implementation=implementation, **options)
    assert got.shape == batch
    if got.size:
        np.testing.assert_allclose(got, oracle.ms_ssim(a, b, window=oracle.gaussian(5), **options), RTOL)


def test_fit_power_factors():
    for downsample in ("edge", "floor", "zero", "edge_start", "start"):
        for height in range(5, 90):
            options = {"filter_size": 4 + height % 2, "downsample": downsample}
            got = jax_msssim.fit_power_factors((height, 40), **options)
            np.testing.assert_allclose(got, oracle.fit_power_factors((height, 40), **options), 1e-15)


# --- derivatives ----------------------------------------------------------------------------------------------

DERIVED = ("ssim-blocks", "map-where", "ms-blocks-where")
# The others differ in numbers alone, are a line of arithmetic more, or are about tiles, which are of "matmul".
NOT_DERIVED = {
    "ssim-smallest",
    "ssim-one-tap",
    "ssim-11-taps",
    "ssim-narrow",
    "ssim-window",
    "ssim-constants",
    "ssim-pixel",
    "ssim-even",
    "ssim-where",
    "ssim-many-blocks",
    "ssim-blocks-signal",
    "map",
    "map-where-sample",
    "map-even",
    "terms-signal",
    "terms-same",
    "ms-one-scale",
    "ms-even",
    "ms-same",
    "ms-sample",
    "ms-shift",
    "ms-start-volume",
    "ms-three-scales",
    "ms-where-floor",
    "zhao-signal",
}
NOT_DERIVED |= {case for case in CASES if "tiles" in case or (CASES[case][0] in ARITHMETIC and case.endswith("-where"))}


@pytest.mark.parametrize(
    "case",
    [
        case if case in DERIVED else pytest.param(case, marks=pytest.mark.slow)
        for case in CASES
        if case not in NOT_DERIVED
    ],
)
def test_derivatives(case, x64):
    # JAX alone differentiates "conv": that is checked by differences, and the other implementation by that.
    a, b, options = unlike_pairs(case)
    numbers = [name for name in ("max_val", "power_factors", "alpha", "weight") if name in options]
    primals = (a, b, *(np.asarray(options.pop(name)) for name in numbers))

    def function(implementation):
        def of(a, b, *others):
            others = dict(zip(numbers, others, strict=True))
            return jnp.nan_to_num(ours(case, a, b, implementation=implementation, **options, **others))

        return total(of)

    def gradients(implementation, argnums):
        return jax.jit(jax.grad(function(implementation), argnums))(*primals)

    everything = (*range(len(primals)),)
    expected = gradients("conv", everything)
    # Of variances as differences of squares, some 1e4 times as large.
    assert_same(gradients("stencil", everything), expected, 1e-11)
    for argnums in ((0,), (1,), (2,)) if case in ("ssim-blocks", "terms-where") else ():
        assert_same(gradients("stencil", argnums), tuple(expected[i] for i in argnums), 1e-11)
    rng = np.random.default_rng(1)
    direction = tuple(rng.standard_normal(x.shape) for x in primals)
    slope = sum((x * y).sum() for x, y in zip(expected, direction, strict=True))
    tangent = jax.jit(lambda *x: jax.jvp(function("stencil"), primals, x)[1])(*direction)
    np.testing.assert_allclose(tangent, slope, 1e-9)
    conv = jax.jit(function("conv"))
    low, high = (conv(*(x + h * y for x, y in zip(primals, direction, strict=True))) for h in (-1e-6, 1e-6))
    # A central difference of step h = 1e-6 is off by 1e-16 / h of a value of order 1, and by h^2.
    np.testing.assert_allclose((high - low) / 2e-6, slope, rtol=1e-6, atol=1e-8)


# --- float32 --------------------------------------------------------------------------------------------------

FROM_LOSS = {  # MS-SSIM from what is computed from it
    "ms_ssim": lambda x: x,
    "ms_ssim_db": lambda x: 1 - 10 ** (-x / 10),
    "ms_ssim_loss": lambda x: 1 - x,
    "log_ms_ssim_loss": lambda x: np.exp(-x),
}


def between(a, b, error, *, filter_size=None, window=None, negative, channel_mean="after", **options):
    """MS-SSIM, what it may be where every mean is off by ``error``, and the smallest mean, of each pair.

    A power below 1 has an infinite slope at 0: a mean of 1e-7 instead of 0 makes its 0.0448th power 0.49 instead of 0.
    As MS-SSIM grows with every mean, it must lie between that of the lower and of the higher means.
    """
    powers = {"negative": negative, "channel_mean": channel_mean}
    means = oracle.each_pair(oracle.scale_means)(a, b, window=window or oracle.gaussian(filter_size), **options)
    rows = [
        [oracle.product(np.clip(x + sign * e, -1, 1), power_factors=w, **powers) for sign in (-1, 0, 1)]
        for x, w, e in zip(means, options["power_factors"], error, strict=True)
    ]
    return *np.array(rows).T, means.reshape(len(means), -1).min(1)


def check_case(case, batch, implementation):
    function, shape, _ = CASES[case]
    a, b, max_val = drawn(batch, shape)
    options = options_of(case, len(batch)) | {"max_val": max_val}
    if "where" in options:
        options["where"] = np.stack([holes(content, shape) for content in batch])
    got = np.asarray(ours(case, a, b, implementation=implementation, **options))
    assert got.dtype == np.float32
    got = got.astype(np.float64)

    padding = options.get("padding", "same" if function == "ssim_l1_loss" else "valid")
    black = options.get("downsample") == "zero" or "same" in padding or "form" in options
    error = limit(a, b, max_val, implementation, black, masked="where" in options)
    a, b, options["max_val"] = (x.astype(np.float64) for x in (a, b, max_val))
    promised = np.isfinite(error)
    if function in FROM_LOSS:
        options = {"negative": "soft" if function.endswith("loss") else "relu"} | options
        low, value, high, smallest = between(a, b, np.where(promised, error, 2), **options)
        value_of = FROM_LOSS[function](got)
        np.testing.assert_array_equal(np.isnan(value_of), np.isnan(value))
        outside = np.maximum(low - value_of, value_of - high)
        assert not np.any(promised & (outside > error)), (outside / error, batch)
        far = promised & (smallest > 0.05) & (implementation == "stencil")  # no mean is near 0
        assert not np.any(far & (np.abs(value_of - value) > 2 * error)), (np.abs(value_of - value) / error, batch)
        return
    want = by_definition(case, a, b, **options)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    # L1, which may be large, is rounded in proportion.
    tolerance = error.reshape(-1, *(1,) * (got.ndim - 1)) + 20 * np.finfo(np.float32).eps * np.abs(want)
    assert not np.any(np.abs(got - want) > tolerance), (np.nanmax(np.abs(got - want) / tolerance), batch)


@pytest.mark.parametrize(
    ("case", "implementation", "examples"),
    [(case, kind, FEW) for case in ("ssim", "map-where", "ms-pair") for kind in ("stencil", "conv")]
    + [
        pytest.param(case, kind, MANY, marks=pytest.mark.slow)
        for i, case in enumerate(CASES)
        if case not in LARGE
        # Arithmetic that follows rounds alike, whatever the implementation.
        for kind in (implementations(i, case) if i % 3 == 0 and CASES[case][0] not in ARITHMETIC else ("stencil",))
    ],
)
def test_float32_is_the_definition(case, implementation, examples):
    for_all(lambda batch: check_case(case, batch, implementation), examples)


# --- options that have no definition --------------------------------------------------------------------------

MASK = np.ones((2, 20, 20, 1), bool)
ALPHA = {"alpha": np.array([0.5, 0.5])}


@pytest.mark.parametrize(
    ("function", "error", "message", "options"),
    [
        ("ssim", TypeError, "boolean", {"where": MASK.astype(float)}),
        ("ssim", TypeError, "Wrap it", {"where": [True]}),
        ("ssim", ValueError, r"where\[..., None\]", {"where": MASK[..., 0]}),
        ("ssim", ValueError, "rank", {"where": MASK[:, :, 1:]}),
        ("ssim", ValueError, 'use padding="valid" or "same"', {"where": MASK, "padding": "reflect"}),
        ("ssim", ValueError, 'use padding="valid" or "same"', {"where": MASK, "padding": "edge"}),
        ("ms_ssim", ValueError, 'use downsample="edge" or "floor"', {"where": MASK, "downsample": "start"}),
        ("ms_ssim", ValueError, 'use downsample="edge" or "floor"', {"where": MASK, "downsample": "zero"}),
        ("ssim", ValueError, "min_coverage", {"min_coverage": 0}),
        ("ssim", ValueError, "min_coverage", {"min_coverage": 1.5}),
        ("ssim", ValueError, "padding must be one of", {"padding": PAIR}),
        ("ms_ssim", ValueError, "padding must be one of", {"padding": ("valid", "wrap")}),
        ("ssim", ValueError, 'covariance="sample" needs', {"filter_size": 1, "covariance": "sample"}),
        # A window of 41 is mirrored 20 pixels beyond the border.
        ("ssim", ValueError, "at least 21", {"filter_size": 41, "padding": "reflect"}),
        ("ms_ssim_l1_loss", ValueError, "alpha must be between 0 and 1", ZHAO | {"alpha": 1.2}),
        ("ms_ssim_l1_loss", ValueError, "alpha must be a single number", ZHAO | ALPHA),
        ("ms_ssim_l1_loss", ValueError, "form must be one of", {"form": "paper"}),
        ("ms_ssim_l1_loss", ValueError, "downsample, power_factors cannot be given", ZHAO | {"downsample": "floor"}),
        ("ms_ssim_l1_loss", ValueError, "negative cannot be given", ZHAO | {"negative": "relu"}),
    ],
)
def test_errors(function, error, message, options):
    if "ms_ssim" in function and "negative" not in options:
        options = {"power_factors": (0.5, 0.5)} | options
    if "form" not in options:
        options = {"filter_size": 5} | options
    a = np.zeros((2, 20, 20, 1), np.float32)
    with pytest.raises(error, match=message):
        getattr(jax_msssim, function)(a, a, **options)
