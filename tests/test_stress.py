"""The columns of this library in docs/stress.md: on hard pairs it is accurate, in [-1, 1], and finite."""

import functools

import jax
import numpy as np
import oracle
import pytest
from hard_pairs import hard_pairs

import jax_msssim
from jax_msssim import conventions

SIDE = 192  # of the images on the page
POWERS = {48: (0.4, 0.6), SIDE: oracle.WANG2003}


@functools.cache
def pairs_and_values(function, dtype, side):
    """The pairs of a type with their exact values, and the options."""
    options = {"power_factors": POWERS[side]} if function == "ms_ssim" else {}
    pairs = {name: pair for name, pair in hard_pairs(side).items() if pair.a.dtype == dtype}
    exact = (getattr(oracle, function)(x.a, x.b, max_val=x.max_val, **options) for x in pairs.values())
    return [*zip(pairs.items(), exact, strict=True)], options


@pytest.mark.parametrize(
    ("dtype", "side"),
    [("float32", 48), *(pytest.param(x, SIDE, marks=pytest.mark.slow) for x in ("float32", "float16", "bfloat16"))],
)
@pytest.mark.parametrize("function", ["ssim", "ms_ssim"])
def test_hard_pairs(function, dtype, side, implementation):
    pairs, options = pairs_and_values(function, dtype, side)

    @jax.jit
    @jax.value_and_grad
    def value_and_grad(a, b, max_val):
        return getattr(jax_msssim, function)(a, b, max_val=max_val, implementation=implementation, **options)

    failures = {}
    for (name, pair), exact in pairs:
        value, gradient = value_and_grad(pair.a, pair.b, pair.max_val)
        value, largest = float(value), float(np.abs(np.asarray(gradient, np.float64)).max())
        accurate = abs(value - exact) <= 5e-6 or pair.exempt(implementation)
        if not (accurate and abs(value) <= 1 + 1e-6 and np.isfinite(largest)):
            failures[name] = value, exact, largest
    assert failures == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("convention", "function"),
    [(name, "ssim") for name in ("MATLAB", "TORCHMETRICS")]
    + [(name, "ms_ssim") for name in ("MATLAB", "PYTORCH_MSSSIM", "TORCHMETRICS", "PIQ", "MONAI")],
)
def test_float64_of_the_page(convention, function, x64):
    # The page shows distances to it, of 1e-9 at least. Relative rounding, 1e-16, times the 1e4 that black against white
    # loses in 1 - l; and jumps of 1e6 and more, of which 1e-10 is rounded off.
    options = getattr(conventions.ALL[convention], function)
    wrong = {}
    for name, pair in hard_pairs(SIDE).items():
        a, b = pair.a.astype(np.float64), pair.b.astype(np.float64)
        got = float(getattr(jax_msssim, function)(a, b, max_val=pair.max_val, **options))
        expected = getattr(oracle, function)(a, b, max_val=pair.max_val, **options)
        if not abs(got - expected) <= 1e-11:
            wrong[name] = got, expected
    assert wrong == {}
