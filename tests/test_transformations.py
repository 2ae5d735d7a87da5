"""Every function under every transformation of JAX: the same value, true derivatives, one compilation."""

import functools
import itertools
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compat import enable_x64
from functions import (
    FUNCTIONS,
    KINDS,
    POWER_LAWS,
    POWERS,
    assert_same,
    conv_is_slow,
    function_of,
    pair,
    total,
)
from images import random_pair
from jax.extend.core import jaxpr_as_fun
from jax.flatten_util import ravel_pytree

SHAPE = (9, 10, 1)
BATCH = 3


# --- transformations: of a function and two batches of images, what it gives and what it should ---------------


def disable_jit(function, a, b):
    expected = function(a[0], b[0])
    with jax.disable_jit():
        return function(a[0], b[0]), expected


def vmap(function, a, b):
    # The second image has its batch axis in the middle.
    return jax.jit(jax.vmap(function, (0, 2)))(a, jnp.moveaxis(b, 0, 2)), function(a, b)


def nested_vmap(function, a, b):
    a, b = jnp.stack([a, b]), jnp.stack([b, a])
    got = jax.jit(jax.vmap(jax.vmap(function, (0, -1)), (0, -1)))(a, jnp.moveaxis(b, (0, 1), (-1, -2)))
    return got, function(a, b)


def vmap_one_image(function, a, b):
    return jax.vmap(function, (0, None))(a, b[0]), function(a, jnp.stack([b[0]] * BATCH))


def mapped_option(name, values, function, a, b, **others):
    """An option with one value for each image, mapped alone, against a call for each of its values."""
    got = jax.vmap(lambda value: function(a[0], b[0], **others, **{name: value}))(values)
    each = [function(a[0], b[0], **others, **{name: value}) for value in values]
    return got, jax.tree.map(lambda *rows: jnp.stack(rows), *each)


vmap_max_val = functools.partial(mapped_option, "max_val", np.float32([1, 2, 255]))
vmap_power_factors = functools.partial(mapped_option, "power_factors", np.float32([[0.4, 0.6], [0.9, 0.2], [0, 1]]))
vmap_weight = functools.partial(mapped_option, "weight", np.float32([0, 0.3, 1]))
vmap_alpha = functools.partial(mapped_option, "alpha", np.float32([0, 0.3, 1]))


def vmap_where(function, a, b):
    where = np.ones(a.shape, bool)
    where[0, :2], where[1, :, 6:], where[2, 4] = False, False, False
    return mapped_option("where", where, function, a, b, min_coverage=0.3)


def scan(function, a, b):
    return jax.lax.scan(lambda carry, images: (carry, function(*images)), 0, (a, b))[1], function(a, b)


def jaxpr(function, a, b):
    # While tracers are checked for leaks nothing is cached: the program is traced twice.
    with jax.checking_leaks():
        first, second = (jax.make_jaxpr(lambda a, b: function(a, b))(a, b) for _ in range(2))
    without_addresses = [re.sub(" at 0x[0-9a-f]+", "", str(program)) for program in (first, second)]
    assert without_addresses[0] == without_addresses[1]
    return jax.jit(jaxpr_as_fun(first))(a, b), jax.tree.leaves(function(a, b))


def eval_shape(function, a, b):
    shapes = jax.eval_shape(function, a, jax.ShapeDtypeStruct(b.shape, b.dtype))
    value = function(a, b)
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes), jax.tree.map(np.zeros_like, value)


def ahead_of_time(function, a, b):
    like = jax.ShapeDtypeStruct(a.shape, a.dtype)
    return jax.jit(function).lower(like, like).compile()(a, b), function(a, b)


def x64(function, a, b):
    with enable_x64(True):
        got = function(a.astype(np.float64), b.astype(np.float64))
        assert all(x.dtype == np.float64 for x in jax.tree.leaves(got))
    return jax.tree.map(lambda x: np.float32(x), got), function(a, b)


def grad(function, a, b):
    return jax.grad(total(function))(a, b), jax.jit(jax.grad(total(function)))(a, b)


def donate(function, a, b):
    expected = jax.jit(jax.value_and_grad(total(function)))(a, b)
    with warnings.catch_warnings():
        # There is one gradient to take the place of two images.
        warnings.filterwarnings("ignore", "Some donated buffers were not usable")
        a, b = a + 0, b + 0
        got = jax.jit(jax.value_and_grad(total(function)), donate_argnums=(0, 1))(a, b)
    assert a.is_deleted()
    return got, expected


def debug_nans(function, a, b):
    black, white = jnp.zeros_like(a), jnp.ones_like(a)
    a, b = jnp.concatenate([a, a, black, black, white]), jnp.concatenate([a, 1 - a, black, white, b])
    # Identical images have infinite decibels, hence tanh.
    program = jax.jit(jax.value_and_grad(total(lambda a, b: jax.tree.map(jnp.tanh, function(a, b))), (0, 1)))
    with jax.debug_nans(True):
        return program(a, b), jax.tree.map(jnp.nan_to_num, program(a, b))


# --- transformations of a function of one pair with one number for a value, in float64 -------------------------


@functools.cache
def scalar(name):
    return total(function_of(name))


gradient_program = functools.cache(lambda function: jax.jit(jax.grad(function, (0, 1))))


def gradients(function, a, b):
    return gradient_program(function)(a, b)


def value_and_grad(function, a, b):
    return jax.jit(jax.value_and_grad(function, (0, 1)))(a, b), (function(a, b), gradients(function, a, b))


def jvp(function, a, b):
    by_a, by_b = gradients(function, a, b)
    da, db = jnp.cos(a * 99), jnp.sin(b * 99)
    got = jax.jit(lambda *x: jax.jvp(function, x[:2], x[2:]))(a, b, da, db)
    return got, (function(a, b), (by_a * da + by_b * db).sum())


def jacfwd(function, a, b):
    return jax.jit(jax.jacfwd(function))(a, b), gradients(function, a, b)[0]


def jacrev(function, a, b):
    return jax.jit(jax.jacrev(function, 1))(a, b), gradients(function, a, b)[1]


def linearize(function, a, b):
    by_a, by_b = gradients(function, a, b)
    value, slope = jax.linearize(function, a, b)
    return (value, slope(b, a)), (function(a, b), (by_a * b + by_b * a).sum())


def checkpoint(function, a, b):
    return jax.jit(jax.grad(jax.checkpoint(function), (0, 1)))(a, b), gradients(function, a, b)


def grad_of_scan(function, a, b):
    def of(a, b):
        return jax.lax.scan(lambda carry, _: (carry + function(a, b), None), jnp.zeros(()), length=2)[0]

    return jax.jit(jax.grad(of, (0, 1)))(a, b), jax.tree.map(lambda x: 2 * x, gradients(function, a, b))


def per_example_grad(function, a, b):
    got = jax.jit(jax.vmap(jax.grad(function, (0, 1)), (None, 0)))(a, b[None])
    return got, jax.tree.map(lambda x: x[None], gradients(function, a, b))


def hessian_vector_product(function, a, b):
    direction = jnp.cos(a * 99), jnp.sin(b * 99)

    def slope(*images):
        return sum((g * d).sum() for g, d in zip(jax.grad(function, (0, 1))(*images), direction, strict=True))

    forward = jax.jit(lambda *images: jax.jvp(jax.grad(function, (0, 1)), images, direction)[1])(a, b)
    reverse = jax.jit(jax.grad(slope, (0, 1)))(a, b)
    up, down = (gradients(function, a + h * direction[0], b + h * direction[1]) for h in (1e-5, -1e-5))
    return (forward, reverse), (jax.tree.map(lambda up, down: (up - down) / 2e-5, up, down),) * 2


OF_VALUES = """disable_jit vmap nested_vmap vmap_one_image vmap_max_val vmap_power_factors vmap_weight vmap_alpha
    vmap_where scan jaxpr eval_shape ahead_of_time x64 grad donate debug_nans"""
OF_DERIVATIVES = """value_and_grad jvp jacfwd jacrev linearize checkpoint grad_of_scan per_example_grad
    hessian_vector_product"""
APPLY_TO = {
    "vmap_power_factors": POWER_LAWS,
    "vmap_weight": ("ssim_l1_loss",),
    "vmap_alpha": ("ms_ssim_l1_loss", "single_resolution"),
    "debug_nans": FUNCTIONS,  # which a logarithm or a power may have of its own
}
QUICK = dict.fromkeys((*OF_VALUES.split(), "jacfwd"), "ms_ssim_loss")
QUICK |= {"disable_jit": "ssim_loss", "donate": "ssim_loss"}


def cases(transformations):
    """The table of transformations and functions; what is not quick is slow."""
    # Every transformation goes through a map, terms and a loss, and two of the others, which take turns: each of these
    # meets some transformations of values and some of derivatives.
    always = ("ssim_map", "ms_ssim_terms", "ms_ssim_loss")
    turns = itertools.cycle(name for name in FUNCTIONS if name not in always)
    return [
        pytest.param(
            globals()[label], name, id=f"{label}-{name}", marks=[pytest.mark.slow] * (name != QUICK.get(label))
        )
        for label in transformations.split()
        for name in APPLY_TO.get(label) or (*always, next(turns), next(turns))
    ]


# Two orders of the same float32 arithmetic: of a value, and of a gradient, which sums some hundred such terms.
VALUE, GRADIENT = 2e-6, 1e-5


@pytest.mark.parametrize(("transformation", "name"), cases(OF_VALUES))
def test_values(transformation, name):
    tolerance = GRADIENT if transformation in (grad, donate, debug_nans) else VALUE
    assert_same(*transformation(function_of(name), *pair(BATCH, *SHAPE)), tolerance)


@pytest.mark.parametrize(("transformation", "name"), cases(OF_DERIVATIVES))
def test_derivatives(transformation, name, x64):
    # Two orders of the same float64 arithmetic; a central difference is off by the square of its step, 1e-10, times a
    # third derivative of up to a thousand times the second.
    tolerance = 1e-6 if transformation is hessian_vector_product else 1e-11
    assert_same(*transformation(scalar(name), *pair(*SHAPE, dtype=np.float64)), tolerance)


# --- derivatives against differences ---------------------------------------------------------------------------

ASYMMETRIC = (0.05, 0.3, 0.4, 0.15, 0.1)


def central_differences(function, arguments, step=1e-5):
    """Derivatives by each number in the arguments."""
    flat, unravel = ravel_pytree(arguments)
    values = jax.jit(jax.vmap(lambda x: function(*unravel(x))))
    moves = step * np.eye(flat.size)
    return unravel((values(flat[None] + moves) - values(flat[None] - moves)) / (2 * step))


# Of those that are the mean of another, its logarithm or a sum, the rule of the other is theirs: they are slow, and
# left out with "conv", which JAX differentiates by itself.
RULES = {"ssim-valid", "ssim_map-same", "ms_ssim_terms-valid", "ms_ssim_loss-same", "ssim_l1_loss-valid"}


@pytest.mark.parametrize(
    ("implementation", "name", "padding"),
    [
        pytest.param(
            kind, name, padding, marks=[pytest.mark.slow] * (kind == "conv" or f"{name}-{padding}" not in RULES)
        )
        for kind in ("stencil", "conv")
        for name in FUNCTIONS
        for padding in ("valid", "same")
        if name != "single_resolution" and (padding == "valid" or name in ("ssim_map", "ms_ssim_loss"))
        if kind == "stencil" or f"{name}-{padding}" in RULES
    ],
)
def test_gradients_by_every_argument(implementation, name, padding, x64):
    a, b = random_pair((9, 10, 2))
    a[..., 0] = 1 - a[..., 0]  # one channel is anticorrelated: its terms are negative
    more = {"power_factors": POWERS} if name in POWER_LAWS else {}
    more |= {"ssim_l1_loss": {"weight": np.float64(0.3)}, "ms_ssim_l1_loss": {"alpha": np.float64(0.7)}}.get(name, {})
    arguments = (a, b, np.float64(1.3), *more.values())
    function = function_of(name, implementation=implementation, window=ASYMMETRIC, padding=padding)

    def value(a, b, max_val, *values):
        return total(function)(a, b, max_val=max_val, **dict(zip(more, values, strict=True)))

    got = jax.jit(jax.grad(value, range(len(arguments))))(*arguments)
    # Differences of step h = 1e-5 are off by h^2 f''' / 6 and by 1e-16 f / h = 1e-11 f, each f up to about 10.
    for slope, expected in zip(got, central_differences(value, arguments), strict=True):
        np.testing.assert_allclose(slope, expected, rtol=1e-6, atol=1e-9)


@conv_is_slow
def test_relu_has_no_gradient_below_zero(implementation, x64):
    a, _ = random_pair((9, 10, 1))
    value, gradient = jax.value_and_grad(function_of("ms_ssim", implementation=implementation))(a, 1 - a)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


# --- compilations -------------------------------------------------------------------------------------------

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
)


def compilations(call) -> int:
    before = len(COMPILED)
    call()
    return len(COMPILED) - before


@pytest.mark.parametrize(
    ("implementation", "name"),
    [("stencil", name) for name in FUNCTIONS] + [pytest.param("conv", name, marks=pytest.mark.slow) for name in KINDS],
)
def test_one_compilation(implementation, name):
    # A shape that no other test uses.
    a, b = (x.astype(np.float32) for x in random_pair((11, 19, 1)))
    function = function_of(name, implementation=implementation)
    numbers = [{}, {"max_val": 255}, {"max_val": 2.5}]
    numbers += [{"power_factors": [0.5, 0.5]}] * (name in POWER_LAWS) + [{"weight": 0.5}] * (name == "ssim_l1_loss")
    assert compilations(lambda: function(a, b)) == 1
    assert compilations(lambda: [function(b, a, **options) for options in numbers]) == 0
