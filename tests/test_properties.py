"""What holds whatever the images are: range, symmetry, powers of two, flips, finite gradients."""

import jax
import numpy as np
import pytest
from strategies import BATCH, drawn, few_and_many, for_all, limit

import jax_msssim

SHAPE = (12, 12, 2)  # halved to 6 without a border line, so nothing but rounding tells one side from another
SLOPE = {"ssim": 1, "ms_ssim": 6.4}  # of x^0.4 at 0.01, where it is steepest, as "soft" is flatter below
FUNCTIONS = {
    "ssim": {"filter_size": 5},
    "ms_ssim": {"filter_size": 5, "power_factors": (0.4, 0.6), "negative": "soft"},
}


def similarities(function, implementation):
    """SSIM or MS-SSIM of each pair of a batch, and its largest error, infinite where none is promised."""

    def value(a, b, max_val):
        similarity = getattr(jax_msssim, function)
        return np.asarray(similarity(a, b, max_val=max_val, implementation=implementation, **FUNCTIONS[function]))

    return value, lambda *pair: SLOPE[function] * limit(*pair, implementation)


@pytest.mark.parametrize(("function", "examples"), few_and_many(FUNCTIONS, FUNCTIONS))
def test_range_symmetry_and_order(function, examples, implementation):
    similarity, error = similarities(function, implementation)

    def check(batch):
        a, b, max_val = drawn(batch, SHAPE)
        values = similarity(a, b, max_val)
        assert np.all((values >= -1 - 1e-6) & (values <= 1 + 1e-6)), (values, batch)
        np.testing.assert_array_equal(similarity(a[::-1], b[::-1], max_val[::-1]), values[::-1])
        np.testing.assert_array_equal(similarity(a, a, max_val), 1)
        # Rounding depends on the order, and on the pixel that others are measured from.
        flips = [lambda x: x[:, ::-1], lambda x: x[:, :, ::-1], lambda x: x[..., ::-1], lambda x: x.swapaxes(1, 2)]
        for x, y in [(b, a), *((flip(a), flip(b)) for flip in flips)]:
            difference = np.abs(similarity(x, y, max_val) - values)
            assert np.all(difference <= 2 * error(a, b, max_val)), (difference, batch)

    for_all(check, examples, promised=False)


@pytest.mark.parametrize(("function", "examples"), few_and_many(["ms_ssim"], FUNCTIONS))
def test_a_power_of_two_changes_no_bit(function, examples, implementation):
    similarity, _ = similarities(function, implementation)

    def check(batch):
        # Within the normal numbers, whose squares are normal too.
        batch = [content._replace(contrast=max(content.contrast, 1e-4), max_val=1.0) for content in batch]
        a, b, max_val = drawn(batch, SHAPE)
        a, b = (np.clip(x, -1e6, 1e6) for x in (a, b))
        factor = np.float32(2) ** (np.arange(BATCH, dtype=np.float32) * 10 - 35)
        scaled = [x * factor.reshape(-1, 1, 1, 1) for x in (a, b)]
        np.testing.assert_array_equal(similarity(*scaled, max_val * factor), similarity(a, b, max_val))

    for_all(check, examples, promised=False)


TWO_SCALES = {"filter_size": 5, "power_factors": (0.4, 0.6)}
DIFFERENTIATED = {
    "ssim": {"filter_size": 5},
    "ssim_loss": {"filter_size": 5, "padding": "same"},
    "dssim_loss": {"filter_size": 5, "padding": "reflect"},
    "ssim_l1_loss": {"filter_size": 5},
    "ms_ssim": TWO_SCALES,
    "ms_ssim_db": TWO_SCALES,
    "ms_ssim_loss": TWO_SCALES,
    "log_ms_ssim_loss": TWO_SCALES,
    "ms_ssim_l1_loss": TWO_SCALES | {"downsample": "zero"},
}


@pytest.mark.parametrize(("function", "examples"), few_and_many(["ssim", "ms_ssim_loss"], DIFFERENTIATED))
def test_gradients_are_finite(function, examples, implementation):
    options = dict(DIFFERENTIATED[function])
    weights = np.broadcast_to(np.float32(options.pop("power_factors", ())), (BATCH, 2 * ("ms_ssim" in function)))

    @jax.jit
    def gradients(a, b, max_val, weights):
        def total(a, b, max_val, weights):
            powers = {"power_factors": weights} if weights.size else {}
            loss = getattr(jax_msssim, function)
            values = loss(a, b, max_val=max_val, implementation=implementation, **options, **powers)
            return values.sum(), values

        return jax.grad(total, (0, 1, 2, 3), has_aux=True)(a, b, max_val, weights)

    def check(batch):
        a, b, max_val = drawn(batch, SHAPE)
        for second in (b, a):
            found, values = gradients(a, second, max_val, weights)
            finite = np.all([np.isfinite(x).reshape(BATCH, -1).all(1) for x in found], 0)
            if function == "ms_ssim_db":  # its derivative grows with 1 / (1 - MS-SSIM) and 1 / max_val: beyond float32
                finite |= (values > 100) | (max_val < 1e-10)
            assert finite.all(), [content for content, good in zip(batch, finite, strict=True) if not good]
        if function not in ("ssim_l1_loss", "ms_ssim_l1_loss"):  # found is of identical images
            np.testing.assert_array_equal(found[0], 0)
            np.testing.assert_array_equal(found[1], 0)

    for_all(check, examples, promised=False)
