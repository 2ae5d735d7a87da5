"""Every public function and option against the definition in ``oracle.py``, and what holds whatever the images are.

Shapes and options are few, as each costs a compilation; images, ``max_val``, power factors and masks are drawn by
Hypothesis, eight pairs to a batch.
"""

import jax
import numpy as np
import oracle
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from strategies import batches, contents, holes, pair

import jax_msssim

BATCH = 8
FEW, MANY = 4, 20  # batches of a case, in the quick and in the slow part
WINDOW = (0.05, 0.3, 0.4, 0.15, 0.1)
PAIR = ("valid", "reflect")

# Name: function, shape of an image, options. The window has 5 taps where nothing is said; MS-SSIM has two scales,
# or as many as ``scales`` says. Power factors are drawn, and masks where an option is called ``where``.
CASES = {
    "ssim": ("ssim", (13, 16, 2), {}),
    "ssim-smallest": ("ssim", (5, 5, 1), {}),
    "ssim-11-taps": ("ssim", (11, 14, 1), {"filter_size": 11}),
    "ssim-narrow": ("ssim", (12, 9, 3), {"filter_size": 7, "filter_sigma": 0.6}),
    "ssim-window": ("ssim", (9, 12, 2), {"window": WINDOW}),
    "ssim-sample": ("ssim", (10, 9, 4), {"window": (1 / 7,) * 7, "covariance": "sample"}),
    "ssim-constants": ("ssim", (9, 10, 1), {"k1": 0.05, "k2": 0.1}),
    "ssim-signal": ("ssim", (21, 2), {}),
    "ssim-volume": ("ssim", (7, 5, 6, 1), {}),
    "ssim-same": ("ssim", (7, 4, 3), {"padding": "same"}),
    "ssim-pixel": ("ssim", (1, 1, 1), {"padding": "same"}),
    "ssim-reflect": ("ssim", (3, 9, 1), {"padding": "reflect"}),
    "ssim-symmetric": ("ssim", (2, 8, 2), {"padding": "symmetric"}),
    "ssim-where": ("ssim", (13, 11, 2), {"where": True}),
    "ssim-where-same": ("ssim", (9, 8, 1), {"where": True, "padding": "same", "min_coverage": 0.63}),
    "map": ("ssim_map", (9, 12, 2), {}),
    "map-reflect": ("ssim_map", (6, 3, 2), {"padding": "reflect"}),
    "map-where": ("ssim_map", (9, 12, 2), {"where": True, "min_coverage": 0.63}),
    "map-where-sample": ("ssim_map", (8, 7, 6, 1), {"where": True, "min_coverage": 0.9, "covariance": "sample"}),
    "terms": ("ms_ssim_terms", (13, 18, 2), {"scales": 2}),
    "terms-same": ("ms_ssim_terms", (9, 6, 1), {"scales": 3, "padding": "same"}),
    "terms-floor": ("ms_ssim_terms", (19, 15, 1), {"scales": 2, "downsample": "floor"}),
    "terms-zero": ("ms_ssim_terms", (11, 10, 1), {"scales": 2, "downsample": "zero", "padding": "symmetric"}),
    "terms-where": ("ms_ssim_terms", (17, 22, 1), {"scales": 2, "where": True, "min_coverage": 0.63}),
    "ms-edge": ("ms_ssim", (13, 18, 2), {}),
    "ms-floor": ("ms_ssim", (13, 11, 1), {"downsample": "floor"}),
    "ms-zero": ("ms_ssim", (13, 18, 1), {"downsample": "zero"}),
    "ms-edge-start": ("ms_ssim", (13, 18, 2), {"downsample": "edge_start"}),
    "ms-three-scales": ("ms_ssim", (19, 17, 1), {"scales": 3}),
    "ms-signal": ("ms_ssim", (23, 2), {"downsample": "zero", "padding": "symmetric"}),
    "ms-volume": ("ms_ssim", (9, 9, 10, 1), {"downsample": "edge_start"}),
    "ms-same": ("ms_ssim", (6, 9, 1), {"padding": "same", "downsample": "zero"}),
    "ms-pair": ("ms_ssim", (10, 11, 2), {"padding": PAIR, "downsample": "floor", "channel_mean": "before"}),
    "ms-symmetric": ("ms_ssim", (7, 10, 1), {"padding": "symmetric"}),
    "ms-all-soft": ("ms_ssim", (10, 9, 3), {"luminance": "all", "negative": "soft"}),
    "ms-shift": ("ms_ssim", (9, 9, 2), {"negative": "shift", "channel_mean": "before"}),
    "ms-sample": ("ms_ssim", (10, 9, 1), {"covariance": "sample", "k1": 0.02, "k2": 0.02}),
    "ms-where-edge": ("ms_ssim", (18, 19, 2), {"where": True, "min_coverage": 0.63}),
    "ms-where-floor": ("ms_ssim", (19, 22, 1), {"where": True, "downsample": "floor", "min_coverage": 0.3}),
    "db": ("ms_ssim_db", (10, 9, 2), {}),
    "db-soft": ("ms_ssim_db", (9, 10, 1), {"negative": "soft"}),
    "db-where": ("ms_ssim_db", (18, 17, 1), {"where": True, "min_coverage": 0.63, "negative": "shift"}),
    "ssim_loss": ("ssim_loss", (9, 8, 2), {}),
    "ssim_loss-where": ("ssim_loss", (9, 8, 2), {"where": True, "min_coverage": 0.63}),
    "dssim_loss": ("dssim_loss", (8, 9, 2), {"padding": "reflect"}),
    "dssim_loss-where": ("dssim_loss", (9, 11, 1), {"where": True, "min_coverage": 0.3}),
    "ms_ssim_loss": ("ms_ssim_loss", (10, 11, 2), {}),
    "ms_ssim_loss-where": ("ms_ssim_loss", (18, 17, 1), {"where": True, "min_coverage": 0.63, "negative": "relu"}),
    "log_ms_ssim_loss": ("log_ms_ssim_loss", (11, 10, 2), {}),
    "log_ms_ssim_loss-where": (
        "log_ms_ssim_loss",
        (17, 18, 1),
        {"where": True, "min_coverage": 0.63, "negative": "shift"},
    ),
    "ssim_l1_loss": ("ssim_l1_loss", (7, 8, 3), {}),
    "ssim_l1_loss-where": ("ssim_l1_loss", (9, 8, 1), {"where": True, "weight": 0.4, "min_coverage": 0.63}),
    "ms_ssim_l1_loss": ("ms_ssim_l1_loss", (10, 9, 2), {}),
    "ms_ssim_l1_loss-where": ("ms_ssim_l1_loss", (18, 17, 1), {"where": True, "alpha": 0.3, "min_coverage": 0.63}),
    "zhao-signal": ("ms_ssim_l1_loss", (19, 2), {"form": "single_resolution"}),
    "zhao-where": ("ms_ssim_l1_loss", (40, 1), {"form": "single_resolution", "where": True, "min_coverage": 0.63}),
}
QUICK = ("ssim", "map-where", "ms-pair")
FROM_LOSS = {  # MS-SSIM from what is computed from it
    "ms_ssim": lambda x: x,
    "ms_ssim_db": lambda x: 1 - 10 ** (-x / 10),
    "ms_ssim_loss": lambda x: 1 - x,
    "log_ms_ssim_loss": lambda x: np.exp(-x),
}


def for_all(strategy, check, examples):
    """Runs ``check`` on that many batches, the same ones every time.

    But not the same for all time: Hypothesis takes some numbers from the code of the library.
    """
    run = settings(
        max_examples=examples,
        phases=[Phase.generate],  # a failure names its batch; making that smaller takes the oracle minutes
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )(given(strategy)(check))
    run()


def drawn(batch, shape, dtype):
    """The pairs of a batch as two arrays, and ``max_val``."""
    a, b = (np.stack(images).astype(dtype) for images in zip(*(pair(content, shape) for content in batch), strict=True))
    return a, b, np.array([content.max_val for content in batch], dtype)


def exact(*arrays):
    """The same numbers in a wider type. float64 ones too: halving images of 1e15 would round them."""
    return [x.astype(np.longdouble if x.dtype == np.float64 else np.float64) for x in arrays]


# --- against the definition -------------------------------------------------------------------------------------


def spread(a, b, max_val, black):
    """How far pixels are from the mean of their image, and means from each other, in units of ``max_val``.

    ``black``: zeros are put around the images.
    """
    axes = tuple(range(1, a.ndim - 1))
    means = [x.mean(axes, keepdims=True) for x in (a, b)]
    total = sum(np.abs(x - mean) for x, mean in zip((a, b), means, strict=True)) + np.abs(means[0] - means[1])
    if black:
        total = total + np.abs(means[0]) + np.abs(means[1])
    return total.reshape(len(a), -1).max(1) / max_val


def brightest(a, b, max_val):
    """The largest magnitude of a pixel in each pair, in units of ``max_val``."""
    return np.maximum(np.abs(a), np.abs(b)).reshape(len(a), -1).max(1) / max_val


def limit(a, b, max_val, options, *, implementation, dtype):
    """The largest error of each pair's means of ``l``, ``cs`` or ``l cs``: 5e-6 in float32 with the papers' constants.

    Local means and deviations are rounded in proportion to the pixels they are measured from, ``u R max_val``. ``l``
    changes by up to ``1 / (k1 max_val)`` of a local mean, where images are dark, and ``cs`` by up to
    ``1 / (k2 max_val)`` of a deviation, where they are flat: in all ``u R / k``. ``"stencil"`` measures from a pixel of
    the window: however bright that is, ``R`` is 1, unless it is masked and holds the mean of the image: then ``R`` is
    how far pixels are from that, which is rounded a few times. ``"conv"`` always measures from the mean of the image,
    and averages squares and subtracts them: ``4 u (R / k2)^2`` comes to it.

    A square below the smallest normal number may be taken for 0. Beside ``(k max_val)^2`` that counts where ``max_val``
    is near 1e-15.

    Pixels of a coarser scale are rounded in proportion to the contrast of those they are the means of. Where that is
    gone in the means, as that of a checkerboard is, ``error_of_halving`` counts.
    """
    k1, k2 = options.get("k1", 0.01), options.get("k2", 0.03)
    black = options.get("padding") == "same" or options.get("downsample") == "zero" or "form" in options
    unit = {np.float32: 5e-8, np.float64: 5e-8 * 2.0**-29}[dtype]
    terms = 5 if "form" in options else 1  # multiplied at each position
    underflow = terms * 2 * np.finfo(dtype).tiny / (min(k1, k2) * max_val) ** 2
    if implementation == "conv" or "where" in options:
        r = spread(a, b, max_val, black)
        if "where" in options:
            r = r + 4 * np.finfo(dtype).eps * brightest(a, b, max_val)
        r = np.maximum(r, 1)
        return underflow + unit * (r / min(k1, k2 / 3) + 4 * (r / k2) ** 2 * (implementation == "conv"))
    scales = np.shape(options["power_factors"])[-1] if "power_factors" in options else options.get("scales", 1)
    options = options | {"max_val": max_val, "scales": scales, "k1": k1, "k2": k2}
    return underflow + unit * np.maximum(1 / min(k1, k2 / 3), error_of_halving(a, b, **options))


@oracle.each_pair
def error_of_halving(
    a, b, *, scales, max_val, k1, k2, where, filter_size=None, padding="valid", downsample="edge", **other
):
    """The largest error of a mean at the coarser scales of one pair, in units of rounding.

    A mean is off by the contrast within pixels, in both images, and ``l`` by that over ``sqrt(mu_a^2 + mu_b^2 + C1)``;
    so is a deviation, and ``cs`` by thrice that over ``sqrt(sigma_a^2 + sigma_b^2 + C2)``.
    """
    del other  # of no consequence here
    lightest, darkest, largest = [a, b], [a, b], 0.0
    for _ in range(scales - 1):
        lightest = [np.max(oracle.corners(x, downsample), 0) for x in lightest]
        darkest = [np.min(oracle.corners(x, downsample), 0) for x in darkest]
        (a, _), (b, where) = (oracle.halve(x, where, downsample) for x in (a, b))
        contrast = sum(x - y for x, y in zip(lightest, darkest, strict=True)).max((*range(a.ndim - 1),))
        for each in padding if isinstance(padding, tuple) else (padding,):
            local = oracle.local_moments(a, b, window=oracle.gaussian(filter_size), padding=each)
            mean = np.sqrt(local.mean_a**2 + local.mean_b**2 + (k1 * max_val) ** 2)
            deviation = np.sqrt(local.variance_a + local.variance_b + (k2 * max_val) ** 2)
            error = (contrast / mean + 3 * contrast / deviation).mean((*range(a.ndim - 1),)).max()
            largest = max(largest, error)
    return largest


def expected(function, a, b, *, filter_size=None, filter_sigma=1.5, **options):
    if filter_size is not None:
        options["window"] = oracle.gaussian(filter_size, filter_sigma)
    return getattr(oracle, function)(a, b, **options)


def between(a, b, error, *, filter_size, negative="relu", channel_mean="after", **options):
    """MS-SSIM, and what it may be where every mean is off by ``error``.

    A power below 1 has an infinite slope at 0: a mean of 1e-7 instead of 0 makes its 0.0448th power 0.49 instead of 0.
    As MS-SSIM grows with every mean, it must lie between that of the lower and of the higher means.
    """
    powers = {"negative": negative, "channel_mean": channel_mean}
    means = oracle.each_pair(oracle.scale_means)(a, b, window=oracle.gaussian(filter_size), **options)
    weights = options["power_factors"]
    rows = [
        [oracle.product(np.clip(x + sign * e, -1, 1), power_factors=w, **powers) for sign in (-1, 0, 1)]
        for x, w, e in zip(means, weights, error, strict=True)
    ]
    low, value, high = np.array(rows).T
    return low, value, high, means.reshape(len(means), -1).min(1)


def check_case(case, batch, implementation, dtype):
    function, shape, options = CASES[case]
    a, b, max_val = drawn(batch, shape, dtype)
    x, y, level = exact(a, b, max_val)
    options = options | {"spatial_ndim": len(shape) - 1, "max_val": max_val}
    if "where" in options:
        options["where"] = np.stack([holes(content, shape) for content in batch])
    if "ms_ssim" in function and function != "ms_ssim_terms" and "form" not in options:
        rng = np.random.default_rng(batch[0].seed)
        options["power_factors"] = rng.uniform(0.04, 1, (BATCH, options.pop("scales", 2))).astype(dtype)
    if "window" not in options and "form" not in options:
        options = {"filter_size": 5} | options
    got = getattr(jax_msssim, function)(a, b, implementation=implementation, **options)
    got = np.stack(got, 1) if function == "ms_ssim_terms" else np.asarray(got)
    assert got.dtype == dtype
    got = got.astype(np.float64)

    options["max_val"] = level
    error = limit(x, y, level, options, implementation=implementation, dtype=dtype)
    if "where" in options:  # a mean of three of four pixels is rounded in the oracle, too
        error = error + 100 * np.finfo(x.dtype).eps * brightest(x, y, level)
    if "form" in options:  # taps beyond 8 sigmas, of exp(-9^2 / 2) at most, are left out
        error = error + 3e-18 * (spread(x, y, level, black=True) / 0.03) ** 2
    if function in FROM_LOSS:
        if function != "ms_ssim" and "loss" in function:
            options = {"negative": "soft"} | options
        low, value, high, smallest = between(x, y, error, **options)
        value_of = FROM_LOSS[function](got)
        outside = np.maximum(low - value_of, value_of - high)
        undefined = np.isnan(value)
        np.testing.assert_array_equal(np.isnan(value_of), undefined)
        assert np.all((outside <= error) | undefined), (outside / error, batch)
        # The promise, where no mean is near 0 and brightness does not jump.
        far = (smallest > 0.05) & (implementation == "stencil")
        assert np.all((np.abs(value_of - value) <= error) | ~far), (np.abs(value_of - value) / error, batch)
        return
    want = expected(function, x, y, **options)
    tolerance = error.reshape(-1, *(1,) * (got.ndim - 1)) + 20 * np.finfo(dtype).eps * np.abs(want)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
    wrong = np.abs(got - want) > tolerance
    assert not wrong.any(), (np.nanmax(np.abs(got - want) / tolerance), batch)


def cases(quick, many):
    """Some cases with few batches, and all cases with many in the slow part."""
    return [pytest.param(case, FEW, id=f"{case}-few") for case in quick] + [
        pytest.param(case, MANY, id=case, marks=pytest.mark.slow) for case in many
    ]


@pytest.mark.parametrize(("case", "examples"), cases(QUICK, CASES))
def test_float32_is_the_definition(case, examples, implementation, record_property):
    record_property("pairs", examples * BATCH)
    strategy = batches(BATCH, contents())
    for_all(strategy, lambda batch: check_case(case, batch, implementation, np.float32), examples)


@pytest.mark.skipif(np.finfo(np.longdouble).nmant <= 52, reason="no type wider than float64 to compare with")
@pytest.mark.parametrize(("case", "examples"), cases((), CASES))
def test_float64_is_the_definition(case, examples, implementation, x64, record_property):
    record_property("pairs", examples * BATCH)
    strategy = batches(BATCH, contents())
    for_all(strategy, lambda batch: check_case(case, batch, implementation, np.float64), examples)


# --- whatever the images are ------------------------------------------------------------------------------------

SQUARE = (12, 12, 2)
FUNCTIONS = {
    "ssim": {"filter_size": 5},
    "ms_ssim": {"filter_size": 5, "power_factors": (0.4, 0.6), "negative": "soft"},
}
SLOPE = {"ssim": 1, "ms_ssim": 6.4}  # of x^0.4 at 0.01, where it is steepest, as "soft" is flatter below
DIFFERENTIATED = {
    "ssim": {"filter_size": 5},
    "ssim_loss": {"filter_size": 5, "padding": "same"},
    "dssim_loss": {"filter_size": 5, "padding": "reflect"},
    "ssim_l1_loss": {"filter_size": 5},
    "ms_ssim": {"filter_size": 5, "power_factors": (0.0448, 0.1333)},
    "ms_ssim_db": {"filter_size": 5, "power_factors": (0.4, 0.6)},
    "ms_ssim_loss": {"filter_size": 5, "power_factors": (0.4, 0.6)},
    "log_ms_ssim_loss": {"filter_size": 5, "power_factors": (0.4, 0.6)},
    "ms_ssim_l1_loss": {"filter_size": 5, "power_factors": (0.4, 0.6), "downsample": "zero"},
}


# A partial derivative by a variance of up to 1 / (2 C2), times a deviation, must be a float32 number.
LARGEST_SPREAD = 3e38 * 2 * 0.03**2 / 10  # in units of max_val^2


def examples_of(*names, quick):
    return [pytest.param(name, FEW, id=f"{name}-few") for name in quick] + [
        pytest.param(name, MANY, id=name, marks=pytest.mark.slow) for name in names
    ]


def value(function, implementation):
    """SSIM or MS-SSIM of each pair."""

    def of_batch(a, b, max_val):
        similarity = getattr(jax_msssim, function)
        return np.asarray(similarity(a, b, max_val=max_val, implementation=implementation, **FUNCTIONS[function]))

    return of_batch


def limit_of_value(function, implementation, *batch):
    """The largest error of SSIM or MS-SSIM of each pair, in float32."""
    options = FUNCTIONS[function]
    return SLOPE[function] * limit(*exact(*batch), options, implementation=implementation, dtype=np.float32)


@pytest.mark.parametrize(("function", "examples"), examples_of(*FUNCTIONS, quick=FUNCTIONS))
def test_range_symmetry_and_order(function, examples, implementation, record_property):
    record_property("pairs", examples * BATCH)
    similarity = value(function, implementation)

    def check(batch):
        a, b, max_val = drawn(batch, SQUARE, np.float32)
        values = similarity(a, b, max_val)
        assert np.all((values >= -1 - 1e-6) & (values <= 1 + 1e-6)), (values, batch)
        # A compiler may fuse one of two products with a sum: the last bits of the means depend on the order.
        swapped = np.abs(similarity(b, a, max_val) - values)
        error = limit_of_value(function, implementation, a, b, max_val)
        assert np.all(swapped <= error / 5), (swapped / error, batch)
        np.testing.assert_array_equal(similarity(a[::-1], b[::-1], max_val[::-1]), values[::-1])
        np.testing.assert_array_equal(similarity(a, a, max_val), 1)
        # Sums over positions are taken in the same order for every channel, and two channels have one mean.
        np.testing.assert_array_equal(similarity(a[..., ::-1], b[..., ::-1], max_val), values)

    for_all(batches(BATCH, contents()), check, examples)


@pytest.mark.parametrize(("function", "examples"), examples_of(*FUNCTIONS, quick=["ms_ssim"]))
def test_a_power_of_two_changes_no_bit(function, examples, implementation, record_property):
    record_property("pairs", examples * BATCH)
    similarity = value(function, implementation)

    def check(batch):
        # Within the normal numbers, whose squares are normal too.
        batch = [content._replace(contrast=max(content.contrast, 1e-4), max_val=1.0) for content in batch]
        a, b, max_val = drawn(batch, SQUARE, np.float32)
        a, b = (np.clip(x, -1e6, 1e6) for x in (a, b))
        factor = np.float32(2) ** (np.arange(BATCH, dtype=np.float32) * 10 - 35)
        scaled = [x * factor.reshape(-1, 1, 1, 1) for x in (a, b)]
        np.testing.assert_array_equal(similarity(*scaled, max_val * factor), similarity(a, b, max_val))

    for_all(batches(BATCH, contents()), check, examples)


@pytest.mark.parametrize(("function", "examples"), examples_of(*FUNCTIONS, quick=["ssim"]))
def test_flips_and_transposition(function, examples, implementation, record_property):
    # 12 pixels are halved to 6 without a border line, so nothing but rounding tells one side from another.
    record_property("pairs", examples * BATCH)
    similarity = value(function, implementation)

    def check(batch):
        a, b, max_val = drawn(batch, SQUARE, np.float32)
        error = limit_of_value(function, implementation, a, b, max_val)
        values = similarity(a, b, max_val)
        for turned in (lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x.swapaxes(1, 2)):
            difference = np.abs(similarity(turned(a), turned(b), max_val) - values)
            assert np.all(difference <= 2 * error), (difference / error, batch)

    for_all(batches(BATCH, contents()), check, examples)


@pytest.mark.parametrize(("function", "examples"), examples_of(*DIFFERENTIATED, quick=["ssim", "ms_ssim_loss"]))
def test_gradients_are_finite(function, examples, implementation, record_property):
    record_property("pairs", examples * BATCH)
    options = {name: x for name, x in DIFFERENTIATED[function].items() if name != "power_factors"}
    weights = np.float32(DIFFERENTIATED[function].get("power_factors", ()))

    @jax.jit
    def gradients(a, b, max_val, weights):
        def total(a, b, max_val, weights):
            powers = {"power_factors": weights} if weights.size else {}
            loss = getattr(jax_msssim, function)
            values = loss(a, b, max_val=max_val, implementation=implementation, **options, **powers)
            return values.sum(), values

        return jax.grad(total, (0, 1, 2, 3), has_aux=True)(a, b, max_val, weights)

    def check(batch):
        a, b, max_val = drawn(batch, SQUARE, np.float32)
        for second in (b, a):
            found, values = gradients(a, second, max_val, np.broadcast_to(weights, (BATCH, weights.size)))
            finite = np.all([np.isfinite(x).reshape(BATCH, -1).all(1) for x in found], 0)
            largest = LARGEST_SPREAD * max_val.astype(float)
            values = np.where(np.isfinite(values), values, 0).astype(float)
            if function == "ms_ssim_db":  # the derivative of decibels grows with 1 / (1 - MS-SSIM): 1e29 at 290 dB
                largest /= 10 / np.log(10) * 10 ** (values / 10)
                values = 1 - 10 ** (-values / 10)
            if function in ("ms_ssim", "ms_ssim_db"):  # that of x^w with x^(w - 1): 4e28 where MS-SSIM is 3e-5
                largest *= np.where(values > 0, values, 1) ** (1 / weights[-1] - 1)
            finite |= spread(*exact(a, second, max_val), black=True) > largest
            assert finite.all(), [content for content, good in zip(batch, finite, strict=True) if not good]
        if function not in ("ssim_l1_loss", "ms_ssim_l1_loss"):  # found is of identical images
            np.testing.assert_array_equal(found[0], 0)
            np.testing.assert_array_equal(found[1], 0)

    for_all(batches(BATCH, contents()), check, examples)
