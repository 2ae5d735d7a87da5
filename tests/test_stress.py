"""The columns of this library in docs/stress.md: on hard pairs it is accurate, in [-1, 1], and finite."""

import functools
from collections.abc import Mapping

import jax
import numpy as np
import oracle
import pytest
from hard_pairs import HardPair, hard_pairs

import jax_msssim
from jax_msssim import conventions

SIDE = 192  # of the images on the page
POWERS = {48: (0.4, 0.6), SIDE: oracle.WANG2003}
SIDES = [48, pytest.param(SIDE, marks=pytest.mark.slow)]
DTYPES = ["float32", *(pytest.param(dtype, marks=pytest.mark.slow) for dtype in ("float16", "bfloat16"))]


@functools.cache
def pairs_of_type(side, dtype) -> Mapping[str, HardPair]:
    return {name: pair for name, pair in hard_pairs(side).items() if pair.a.dtype == dtype}


def options_of(function, side):
    return {"power_factors": POWERS[side]} if function == "ms_ssim" else {}


@functools.cache
def exact(function, side, dtype):
    options = options_of(function, side)
    return {
        name: getattr(oracle, function)(pair.a, pair.b, max_val=pair.max_val, **options)
        for name, pair in pairs_of_type(side, dtype).items()
    }


@pytest.mark.slow
def test_hard_pairs_two_scales_at_once(all_large):
    # As the values of large images are computed, where the second scale is made block by block.
    assert "_every_second" in str(jax.make_jaxpr(jax_msssim.ms_ssim)(*np.zeros((2, SIDE, SIDE, 1), "float32")))
    inaccurate = {}
    for name, pair in pairs_of_type(SIDE, "float32").items():
        value, expected = jax_msssim.ms_ssim(pair.a, pair.b, max_val=pair.max_val), exact("ms_ssim", SIDE, "float32")
        if not abs(float(value) - expected[name]) <= 5e-6:
            inaccurate[name] = float(value), expected[name]
    assert inaccurate == {}


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ["ssim", "ms_ssim"])
def test_hard_pairs(function, dtype, side, implementation):
    options = options_of(function, side) | {"implementation": implementation}

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(a, b, max_val):
        return getattr(jax_msssim, function)(a, b, max_val=max_val, **options)

    expected = exact(function, side, dtype)
    inaccurate, out_of_range, not_finite = {}, {}, {}
    for name, pair in pairs_of_type(side, dtype).items():
        value, gradient = value_and_grad(pair.a, pair.b, pair.max_val)
        value, largest = float(value), float(np.abs(np.asarray(gradient, np.float64)).max())
        exempt = pair.jumps and implementation == "conv"
        if not abs(value - expected[name]) <= 5e-6 and not exempt:
            inaccurate[name] = value, expected[name]
        if not abs(value) <= 1 + 1e-6:
            out_of_range[name] = value
        if not np.isfinite(largest):
            not_finite[name] = largest
    assert (inaccurate, out_of_range, not_finite) == ({}, {}, {})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("convention", "function"),
    [(name, "ssim") for name in ("MATLAB", "TORCHMETRICS")]
    + [(name, "ms_ssim") for name in ("MATLAB", "PYTORCH_MSSSIM", "TORCHMETRICS", "PIQ", "MONAI")],
)
def test_float64_of_the_page(convention, function, x64):
    # The page shows distances to it, of 1e-9 at least. Relative rounding, 1e-16, times the 1e4 that black against white
    # loses in 1 - l.
    options = getattr(conventions.ALL[convention], function)
    wrong = {}
    for name, (a, b, max_val, _) in hard_pairs(SIDE).items():
        a, b = a.astype(np.float64), b.astype(np.float64)
        got = float(getattr(jax_msssim, function)(a, b, max_val=max_val, **options))
        expected = getattr(oracle, function)(a, b, max_val=max_val, **options)
        if not abs(got - expected) <= 1e-11:
            wrong[name] = got, expected
    assert wrong == {}
