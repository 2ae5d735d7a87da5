"""Every function under JAX's transformations: the same value, true derivatives, one compilation, nothing moved."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from images import random_pair
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jax_msssim
from jax_msssim import ms_ssim, ms_ssim_loss, ssim, ssim_l1_loss, ssim_loss, ssim_map

POWERS = np.array([0.4, 0.6])
SINGLE_SCALE = ("ssim", "ssim_map", "ssim_loss", "dssim_loss", "ssim_l1_loss")
MULTI_SCALE = ("ms_ssim", "ms_ssim_terms", "ms_ssim_db", "ms_ssim_loss", "log_ms_ssim_loss")
EVERY = SINGLE_SCALE + MULTI_SCALE
# Two orders of the same float32 arithmetic, on values below 10 (decibels).
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}
# The same in float64.
FLOAT64 = {"rtol": 1e-10, "atol": 1e-14}


def function_of(name, implementation, **options):
    """The function with a small window and two scales."""
    options = {"filter_size": 5, "implementation": implementation} | options
    if name == "ms_ssim_terms":
        options["scales"] = 2
    elif name in MULTI_SCALE:
        options.setdefault("power_factors", POWERS)
    return functools.partial(getattr(jax_msssim, name), **options)


def float32_pair(shape):
    return tuple(jnp.asarray(x, jnp.float32) for x in random_pair(shape))


def assert_close(got, expected, **tolerance):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **tolerance), got, expected)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY)
def test_without_jit(name, implementation):
    a, b = float32_pair((3, 10, 12, 2))
    function = function_of(name, implementation)
    with jax.disable_jit():
        got = function(a, b)
    assert_close(got, function(a, b), **FLOAT32)


@pytest.mark.parametrize("name", EVERY)
def test_jit_and_vmap_over_images(name, implementation):
    a, b = float32_pair((3, 10, 12, 2))
    function = function_of(name, implementation)
    # The second image has its batch axis in the middle.
    got = jax.jit(jax.vmap(function, in_axes=(0, 2)))(a, jnp.moveaxis(b, 0, 2))
    assert_close(got, function(a, b), **FLOAT32)


def test_vmap_over_one_image(implementation):
    a, b = float32_pair((3, 10, 12, 2))
    got = jax.vmap(function_of("ms_ssim", implementation), in_axes=(0, None))(a, b[0])
    assert_close(got, function_of("ms_ssim", implementation)(a, jnp.stack([b[0]] * 3)), **FLOAT32)


def test_nested_vmap(implementation):
    a, b = float32_pair((2, 3, 10, 12, 2))
    function = function_of("ms_ssim", implementation)
    # The batch axes, and those of the second image last.
    got = jax.vmap(jax.vmap(function, in_axes=(0, -1)), in_axes=(0, -1))(a, jnp.moveaxis(b, (0, 1), (-1, -2)))
    assert_close(got, function(a, b), **FLOAT32)


def test_vmap_over_max_val_and_power_factors(implementation):
    a, b = float32_pair((10, 12, 2))
    max_val = np.float32([1, 2, 255])
    powers = np.float32([[0.4, 0.6], [0.9, 0.2], [0.0, 1.0]])

    def value(max_val, powers):
        return function_of("ms_ssim", implementation)(a, b, max_val=max_val, power_factors=powers)

    expected = function_of("ms_ssim", implementation)(
        jnp.stack([a] * 3), jnp.stack([b] * 3), max_val=max_val, power_factors=powers
    )
    assert_close(jax.vmap(value)(max_val, powers), expected, **FLOAT32)
    assert_close(jax.vmap(value, (0, None))(max_val, powers[0])[0], expected[0], **FLOAT32)
    assert_close(jax.vmap(value, (None, 0))(max_val[0], powers)[0], expected[0], **FLOAT32)


def test_scan(implementation):
    a, b = float32_pair((3, 10, 12, 2))
    function = function_of("ms_ssim_loss", implementation)

    def total(a, b):
        return jax.lax.scan(lambda carry, pair: (carry + function(*pair), None), jnp.float32(0), (a, b))[0]

    expected = jax.jit(jax.value_and_grad(lambda a, b: function(a, b).sum()))(a, b)
    assert_close(jax.jit(jax.value_and_grad(total))(a, b), expected, rtol=1e-5, atol=1e-7)


# --- first derivatives --------------------------------------------------------------------------------------

ASYMMETRIC = (0.05, 0.3, 0.4, 0.15, 0.1)


def central_differences(function, arguments, step=1e-5):
    """Derivatives of a function of a batch by each number in its arguments, which have no batch axis."""
    sizes = [np.size(x) for x in arguments]
    moves = np.split(np.eye(sum(sizes)) * step, np.cumsum(sizes)[:-1], axis=1)
    up, down = (
        function(*(x + sign * move.reshape(-1, *np.shape(x)) for x, move in zip(arguments, moves, strict=True)))
        for sign in (1, -1)
    )
    slopes = np.split(np.asarray(up - down) / (2 * step), np.cumsum(sizes)[:-1])
    return tuple(slope.reshape(np.shape(x)) for slope, x in zip(slopes, arguments, strict=True))


@pytest.mark.parametrize(
    ("name", "padding"), [*((name, "valid") for name in EVERY), ("ssim_map", "same"), ("ms_ssim_loss", "same")]
)
def test_gradients_by_every_argument(name, padding, implementation, x64):
    a, b = random_pair((9, 10, 2))
    a[..., 0] = 1 - a[..., 0]  # one channel is anticorrelated: its terms are negative
    arguments = (a, b, np.float64(1.3)) + ((POWERS,) if name in MULTI_SCALE and name != "ms_ssim_terms" else ())
    function = function_of(name, implementation, window=ASYMMETRIC, padding=padding)

    def value(a, b, max_val, *powers):
        options = {"max_val": max_val} | ({"power_factors": powers[0]} if powers else {})
        out = function(a, b, **options)
        if name in ("ssim_map", "ms_ssim_terms"):  # one number of each image, that every output moves
            flat = jnp.concatenate([x.reshape(*a.shape[:-3], -1) for x in jax.tree.leaves(out)], axis=-1)
            return flat @ np.cos(np.arange(flat.shape[-1]))
        return out

    got = jax.jit(jax.grad(value, range(len(arguments))))(*arguments)
    # Differences of step h = 1e-5 are off by h^2 f''' / 6 and by 1e-16 f / h = 1e-11 f, each f up to about 10.
    assert_close(got, central_differences(value, arguments), rtol=1e-6, atol=1e-9)


def test_gradient_by_the_share_of_ssim(implementation, x64):
    a, b = random_pair((9, 10, 1))
    function = function_of("ssim_l1_loss", implementation)
    got = jax.grad(lambda weight: function(a, b, weight=weight))(0.3)
    assert_close(got, function(a, b, weight=1) - function(a, b, weight=0), rtol=1e-12)


def test_relu_has_no_gradient_below_zero(implementation, x64):
    a, _ = random_pair((9, 10, 1))
    value, gradient = jax.value_and_grad(function_of("ms_ssim", implementation))(a, 1 - a)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
def test_forward_and_reverse_mode_agree(implementation, x64):
    a, b = random_pair((9, 10, 1))
    da, db = random_pair((9, 10, 1), seed=1)
    function = function_of("ms_ssim_loss", implementation)
    value, (by_a, by_b) = jax.jit(jax.value_and_grad(function, (0, 1)))(a, b)
    assert_close(value, function(a, b), **FLOAT64)
    jvp = jax.jit(lambda *x: jax.jvp(function, x[:2], x[2:]))
    assert_close(jvp(a, b, da, db), (value, (by_a * da + by_b * db).sum()), **FLOAT64)
    assert_close(jax.jit(jax.jacfwd(function))(a, b), by_a, **FLOAT64)
    assert_close(jax.jit(jax.grad(jax.checkpoint(function)))(a, b), by_a, **FLOAT64)
    per_image = jax.jit(jax.vmap(jax.grad(function)))(jnp.stack([a, b]), jnp.stack([b, a]))
    assert_close(per_image, jnp.stack([by_a, by_b]), **FLOAT64)  # MS-SSIM is symmetric


def test_gradient_without_an_outer_jit():
    a, b = float32_pair((9, 10, 1))
    function = function_of("ms_ssim_loss", "stencil")
    assert_close(jax.grad(function)(a, b), jax.jit(jax.grad(function))(a, b), rtol=1e-5, atol=1e-7)


# --- second derivatives -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "implementation"), [(ssim_map, "stencil"), (ssim_map, "conv"), (ms_ssim_loss, "stencil")]
)
@pytest.mark.slow
def test_hessian(function, implementation, x64):
    a, b = random_pair((5, 6, 1))
    options = {"filter_size": 3, "implementation": implementation}
    if function is ms_ssim_loss:
        options["power_factors"] = POWERS

    def value(a):
        return (function(a, b, **options) ** 2).sum()

    hessian = jax.jit(jax.hessian(value))(a)  # forward over reverse
    assert_close(jax.jit(jax.jacrev(jax.grad(value)))(a), hessian, **FLOAT64)
    gradients = jax.jit(jax.vmap(jax.grad(value)))
    step = 1e-5 * np.eye(a.size).reshape(a.size, *a.shape)
    slopes = (gradients(a[None] + step) - gradients(a[None] - step)) / 2e-5
    # As for gradients: h^2 and 1e-16 / h, on derivatives ten times as large.
    assert_close(hessian.reshape(slopes.shape), slopes, rtol=1e-6, atol=1e-8)


# --- compilations -------------------------------------------------------------------------------------------

COMPILED = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, *_, **__: COMPILED.append(event) if event == "/jax/core/compile/backend_compile_duration" else None
)


def compilations(call) -> int:
    before = len(COMPILED)
    call()
    return len(COMPILED) - before


@pytest.mark.parametrize("name", EVERY)
def test_one_compilation(name, implementation):
    # A shape that no other test uses.
    a, b = (x.astype(np.float32) for x in random_pair((11, 19, 1)))
    function = function_of(name, implementation)
    assert compilations(lambda: function(a, b)) == 1
    assert compilations(lambda: function(b, a)) == 0
    assert compilations(lambda: function(a, b, max_val=255)) == 0
    assert compilations(lambda: function(a, b, max_val=2.5)) == 0
    assert compilations(lambda: function(a, b, filter_sigma=2.0)) == 1  # the counter counts


def test_weights_do_not_recompile(implementation):
    a, b = (x.astype(np.float32) for x in random_pair((11, 23, 1)))
    function = function_of("ms_ssim", implementation)
    function(a, b)
    assert compilations(lambda: function(a, b, power_factors=[0.5, 0.5])) == 0
    function = function_of("ssim_l1_loss", implementation)
    function(a, b)
    assert compilations(lambda: function(a, b, weight=0.5)) == 0


def test_max_val_does_not_recompile_a_training_step(implementation):
    a, b = float32_pair((11, 25, 1))
    step = jax.jit(jax.grad(lambda a, b, max_val: ssim_loss(a, b, filter_size=5, max_val=max_val)))
    step(a, b, 1.0)
    assert compilations(lambda: step(b, a, 2.0)) == 0


# --- sharding -----------------------------------------------------------------------------------------------

COLLECTIVES = re.compile("all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter")


@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
@pytest.mark.parametrize(
    ("function", "batch"), [(ssim_map, (8,)), (ssim_l1_loss, (8,)), (ms_ssim, (8,)), (ms_ssim, (8, 2))]
)
def test_sharded_batch(function, axis_type, batch, implementation, small_blocks):
    options = {"filter_size": 5, "implementation": implementation}
    if function is ms_ssim:
        options["power_factors"] = POWERS

    def value_and_gradient(a, b):
        value, pullback = jax.vjp(lambda a: function(a, b, **options), a)
        return value, *pullback(jnp.ones_like(value))

    a, b = float32_pair((*batch, 14, 13, 2))
    expected = jax.jit(value_and_gradient)(a, b)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(axis_type,))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    with jax.set_mesh(mesh):
        images = jax.device_put((a, b), sharding)
        program = jax.jit(value_and_gradient).lower(*images).compile()
        assert COLLECTIVES.findall(program.as_text()) == []
        got = program(*images)
    for x in got:
        assert x.sharding.is_equivalent_to(sharding, x.ndim)
    assert_close(got, expected, rtol=1e-5, atol=1e-7)


def test_sharded_training_step(implementation):
    # The mean over the batch is the one sum across devices; it must not move the images.
    a, b = float32_pair((8, 14, 13, 2))
    function = function_of("ms_ssim_loss", implementation)
    step = jax.jit(jax.value_and_grad(lambda a, b: function(a, b).mean()))
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Auto,))
    images = jax.device_put((a, b), NamedSharding(mesh, PartitionSpec("batch")))
    program = step.lower(*images).compile()
    assert set(COLLECTIVES.findall(program.as_text())) <= {"all-reduce"}
    assert_close(program(*images), step(a, b), rtol=1e-5, atol=1e-7)


def test_sharded_max_val_outside_jit(implementation):
    a, b = float32_pair((8, 14, 13, 2))
    max_val = np.linspace(0.5, 2, 8, dtype=np.float32)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        images = jax.device_put((a, b, max_val), NamedSharding(mesh, PartitionSpec("batch")))
        got = ssim(*images[:2], max_val=images[2], filter_size=5, implementation=implementation)
    assert got.sharding.is_equivalent_to(images[2].sharding, 1)
    assert_close(got, ssim(a, b, max_val=max_val, filter_size=5, implementation=implementation), **FLOAT32)
