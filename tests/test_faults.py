"""Arrays of every kind, and numbers that are no numbers: the right value, image by image."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compat import enable_x64
from functions import FUNCTIONS, function_of, pair, total
from images import random_pair

from jax_msssim import ms_ssim_loss, ssim

SHAPE = (2, 9, 10, 1)
SMALL = {"filter_size": 3}
TWO_SCALES = SMALL | {"power_factors": (0.4, 0.6)}
# Sums of float32 in another order.
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}


def numpy_pair(shape=SHAPE):
    return tuple(x.astype(np.float32) for x in random_pair(shape))


# --- one bad image of a batch ---------------------------------------------------------------------------------

# Every function with the stencil, but "single_resolution", which compiles for long with it.
every_function = pytest.mark.parametrize(
    ("implementation", "name"),
    [
        pytest.param(kind, name, marks=[pytest.mark.slow] * (name != "ssim" or kind == "matmul"))
        for kind, names in (
            ("stencil", FUNCTIONS),
            ("conv", ("ssim", "single_resolution")),
            ("matmul", ("ssim_map", "ms_ssim_loss")),
        )
        for name in names
        if (kind, name) != ("stencil", "single_resolution")
    ],
)


@every_function
def test_a_bad_pixel_stays_in_its_image(implementation, name):
    a, b = pair(3, *SHAPE[1:])
    function = function_of(name, implementation=implementation)

    @jax.jit
    def program(a, b):
        return function(a, b), jax.vmap(function)(a, b), jax.grad(total(function), (0, 1))(a, b)

    expected = jax.tree.leaves(program(a, b))
    for bad_a, bad_b in ((np.nan, 0), (np.inf, 0), (0, np.nan), (0, -np.inf)):
        got = jax.tree.leaves(program(a.at[1, 4, 5].add(bad_a), b.at[1, 4, 5].add(bad_b)))
        for before, after in zip(expected, got, strict=True):
            np.testing.assert_array_equal(after[::2], before[::2])
            assert np.isnan(after[1]).any()  # and is seen


def test_a_bad_max_val_stays_in_its_image(implementation):
    # A traced one is not looked at. Below its domain the value is a limit, above it anything; neighbours never know.
    a, b = pair(*SHAPE)

    @jax.jit
    def program(max_val):
        def loss(a, b):
            return ms_ssim_loss(a, b, max_val=max_val, implementation=implementation, **TWO_SCALES)

        return loss(a, b), *jax.grad(lambda *x: loss(*x).sum(), (0, 1))(a, b)

    expected = program(jnp.float32([1, 2]))
    for bad in (np.nan, np.inf, 0.0, 1e-40, -1.0):
        for before, after in zip(expected, program(jnp.float32([bad, 2])), strict=True):
            np.testing.assert_array_equal(after[1], before[1])
            assert np.isfinite(after[0]).all() or not np.isfinite(bad)
            assert np.isnan(after[0]).all() or not np.isnan(bad)


# --- nothing in an array ------------------------------------------------------------------------------------


@every_function
def test_an_empty_batch_has_no_values(implementation, name):
    function = function_of(name, implementation=implementation)
    like = jax.eval_shape(function, *[jax.ShapeDtypeStruct((5, *SHAPE[1:]), np.float32)] * 2)
    for batch in ((0,), (2, 0)):
        empty = jnp.zeros((*batch, *SHAPE[1:]))
        values = function(empty, empty)
        assert jax.tree.map(jnp.shape, values) == jax.tree.map(lambda x, batch=batch: (*batch, *x.shape[1:]), like)
        assert jax.jit(jax.grad(total(function)))(empty, empty).shape == empty.shape


# --- types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int16", "uint16", "int32", "uint32", "int64"])
def test_integers_do_not_overflow(dtype):
    # Squares would overflow, and differences, which wrap without a sign. JAX has int64 under x64 alone.
    largest = min(np.iinfo(dtype).max, 2**40)
    smallest = -largest if dtype.startswith("int") else 0
    a, b = (np.rint(smallest + (largest - smallest) * x).astype(dtype) for x in random_pair(SHAPE))
    a[0, 0, 0], b[0, 0, 0] = largest, smallest
    options = SMALL | {"max_val": float(largest)}
    with enable_x64(True):
        exact = ssim(a.astype(np.float64), b.astype(np.float64), **options)
    with enable_x64(dtype == "int64"):
        # Integers beyond 2^24 are rounded to float32, by 6e-8 of max_val.
        np.testing.assert_allclose(ssim(a, b, **options), exact, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float4_e2m1fn", "int4"])
def test_narrow_types_are_their_float32(dtype):
    a, b = (3 * x if "int" in dtype else x for x in numpy_pair())
    a, b = a.astype(getattr(ml_dtypes, dtype)), b.astype(getattr(ml_dtypes, dtype))
    expected = ssim(a.astype(np.float32), b.astype(np.float32), max_val=3, **SMALL)
    for convert in (np.asarray, jnp.asarray):
        np.testing.assert_allclose(ssim(convert(a), convert(b), max_val=3, **SMALL), expected, **FLOAT32)


def test_weak_types_neither_promote_nor_recompile():
    a, b = pair(*SHAPE)
    weak = jax.lax.full(SHAPE, 1.0)  # of a Python number
    assert weak.weak_type
    strong = jnp.ones(SHAPE, np.float32)
    for images, same in (((weak, b), (strong, b)), ((b, weak), (b, strong)), ((weak, weak), (strong, strong))):
        got = ssim(*images, **SMALL)
        assert got.dtype == np.float32
        assert not got.weak_type
        np.testing.assert_array_equal(got, ssim(*same, **SMALL))
    for max_val in (2, 2.0, jnp.asarray(2), jnp.asarray(2.0), np.float64(2), np.int64(2), jnp.float16(2)):
        got = ssim(a, b, max_val=max_val, **SMALL)
        assert got.dtype == np.float32
        assert not got.weak_type
        np.testing.assert_array_equal(got, ssim(a, b, max_val=2.0, **SMALL))
    step = jax.jit(lambda a, max_val: ssim(a, b, max_val=max_val, **SMALL))
    step(a, 1.0), step(a, 2.0), step(a, 3.0)
    assert step._cache_size() == 1


# --- NumPy arrays -------------------------------------------------------------------------------------------


LAYOUTS = {
    "read-only": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
    "negative strides": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1],
    "every other row": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "memory-mapped": lambda x: np.ndarray.view(x, np.memmap),
    "foreign bytes": lambda x: x.astype(x.dtype.newbyteorder()),  # as in TIFF, FITS and PFM files
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_layouts(layout, dtype):
    a, b = (x if dtype == "float32" else (1000 * x).astype(dtype) for x in numpy_pair())
    expected = ssim(*(LAYOUTS[layout](x).astype(dtype, order="C") for x in (a, b)), **SMALL)
    np.testing.assert_array_equal(ssim(LAYOUTS[layout](a), LAYOUTS[layout](b), **SMALL), expected)


def test_flax_variables_are_arrays():
    # Pixels that are trained.
    nnx = pytest.importorskip("flax.nnx")
    a, b = pair(*SHAPE)
    np.testing.assert_array_equal(ssim(nnx.Param(a), nnx.Param(b), **SMALL), ssim(a, b, **SMALL))
    gradient = nnx.grad(lambda image: ssim(image, b, **SMALL).sum())(nnx.Param(a))
    # One is compiled whole, the other stage by stage: another order of float32 sums.
    np.testing.assert_allclose(gradient[...], jax.grad(lambda a: ssim(a, b, **SMALL).sum())(a), rtol=1e-5, atol=1e-7)


def test_images_stay_on_their_device(eight_devices):
    device = jax.devices()[3]
    a, b = numpy_pair()
    options = SMALL | {"max_val": np.float32([1, 2])}
    values, gradient = jax.vjp(lambda x: ssim(x, b, **options), jax.device_put(a, device))  # b is on none yet
    assert values.devices() == gradient(values)[0].devices() == {device}
    np.testing.assert_allclose(values, ssim(a, b, **options), **FLOAT32)
