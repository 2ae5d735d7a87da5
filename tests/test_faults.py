"""Arrays of every kind, and numbers that are no numbers: the right value, or an error that says what to do."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from compat import enable_x64
from functions import FUNCTIONS, function_of, pair, total
from images import random_pair
from jax.experimental import sparse

from jax_msssim import ms_ssim, ms_ssim_loss, ssim, ssim_l1_loss

SHAPE = (2, 9, 10, 1)
SMALL = {"filter_size": 3}
TWO_SCALES = SMALL | {"power_factors": (0.4, 0.6)}
# Sums of float32 in another order.
FLOAT32 = {"rtol": 2e-6, "atol": 2e-7}


def numpy_pair(shape=SHAPE):
    return tuple(x.astype(np.float32) for x in random_pair(shape))


# --- one bad image of a batch ---------------------------------------------------------------------------------

NOT_ALL_SLOW = [name if name == "ssim" else pytest.param(name, marks=pytest.mark.slow) for name in FUNCTIONS]


@pytest.mark.parametrize("name", NOT_ALL_SLOW)
def test_a_bad_pixel_stays_in_its_image(name, implementation):
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


@pytest.mark.parametrize("name", NOT_ALL_SLOW)
def test_an_empty_batch_has_no_values(name, implementation):
    function = function_of(name, implementation=implementation)
    like = jax.eval_shape(function, *[jax.ShapeDtypeStruct((5, *SHAPE[1:]), np.float32)] * 2)
    for batch in ((0,), (2, 0)):
        empty = jnp.zeros((*batch, *SHAPE[1:]))
        values = function(empty, empty)
        assert jax.tree.map(jnp.shape, values) == jax.tree.map(lambda x, batch=batch: (*batch, *x.shape[1:]), like)
        assert jax.jit(jax.grad(total(function)))(empty, empty).shape == empty.shape


@pytest.mark.parametrize("shape", [(2, 0, 10, 1), (2, 9, 0, 1), (2, 9, 10, 0), (0, 9, 10, 0)])
def test_an_image_without_pixels(shape):
    with pytest.raises(ValueError, match="a and b have no pixels"):
        ssim(np.zeros(shape), np.zeros(shape), **SMALL)


@pytest.mark.parametrize("shape", [(), (10,), (9, 10)])
def test_too_few_axes(shape):
    with pytest.raises(ValueError, match=r"a must have shape \[..., H, W, C\].*a\[..., None\]"):
        ssim(np.zeros(shape), np.zeros(shape), **SMALL)


# --- types --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "largest"),
    [
        ("uint8", 255),  # squares overflow, and differences wrap
        ("int8", 127),
        ("int16", 32767),  # a difference overflows
        ("uint16", 65535),
        ("int32", 2**31 - 1),
        ("uint32", 2**32 - 1),
        ("int64", 2**40),  # JAX has it under x64 alone
    ],
)
def test_integers_do_not_overflow(dtype, largest):
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


@pytest.mark.skipif(np.longdouble(0).itemsize == 8, reason="long double is float64 here")
def test_longdouble_is_refused():
    a, b = numpy_pair()
    with pytest.raises(TypeError, match=r"b must hold real numbers.* at most 64 bits, got float"):
        ssim(a, b.astype(np.longdouble), **SMALL)


@pytest.mark.parametrize("dtype", [object, "S4", "M8[s]", [("red", "f4")]])
def test_no_numbers(dtype):
    with pytest.raises(TypeError, match="a must hold real numbers"):
        ssim(np.zeros(SHAPE, dtype), np.zeros(SHAPE, dtype), **SMALL)


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


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = {
    "read-only": read_only,
    "negative strides": lambda x: np.ascontiguousarray(x[:, ::-1, ::-1])[:, ::-1, ::-1],
    "every other row": lambda x: np.repeat(x, 2, 1)[:, ::2],
    "Fortran order": np.asfortranarray,
    "transposed": lambda x: np.ascontiguousarray(x.transpose(3, 2, 1, 0)).transpose(3, 2, 1, 0),
    "broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "memory-mapped": lambda x: np.ndarray.view(x, np.memmap),
    "unaligned": lambda x: np.frombuffer(b"." + x.tobytes(), x.dtype, offset=1).reshape(x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    a, b = numpy_pair()
    a, b = LAYOUTS[layout](a), LAYOUTS[layout](b)
    expected = ssim(*(jnp.asarray(np.ascontiguousarray(x)) for x in (a, b)), **SMALL)
    np.testing.assert_array_equal(ssim(a, b, **SMALL), expected)


@pytest.mark.parametrize("dtype", ["u2", "i4", "f2", "f4", "f8"])
def test_foreign_byte_order(dtype):
    # As in TIFF, FITS and PFM files.
    a, b = ((x if dtype[0] == "f" else 1000 * x).astype(dtype) for x in numpy_pair())
    swapped_a, swapped_b = (x.astype(x.dtype.newbyteorder()) for x in (a, b))
    options = SMALL | ({} if dtype[0] in "fu" else {"max_val": 1000})
    expected = ssim(a, b, **options)
    np.testing.assert_array_equal(ssim(swapped_a, swapped_b, **options), expected)
    np.testing.assert_array_equal(ssim(a, swapped_b, **options), expected)


def test_masked_arrays_are_refused():
    # JAX would take their data and drop the mask.
    a, b = numpy_pair()
    masked = np.ma.masked_where(a > 0.9, a)
    for images in ((masked, b), (b, masked)):
        with pytest.raises(TypeError, match=r"masked array.* where=~np.ma.getmaskarray\((a|b)\)"):
            ssim(*images, **SMALL)
    with pytest.raises(TypeError, match="where is a masked array"):
        ssim(a, b, where=np.ma.masked_array(a > 0), **SMALL)


# --- what is no array ---------------------------------------------------------------------------------------


class LooksLikeAnArray:
    shape, dtype, ndim = SHAPE, np.dtype(np.float32), len(SHAPE)


def pillow():
    return pytest.importorskip("PIL.Image").fromarray(np.zeros((9, 10, 3), np.uint8))


def tensor():
    return pytest.importorskip("torch").zeros(SHAPE)


def data_frame():
    return pytest.importorskip("pandas").DataFrame(np.zeros((9, 10)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: np.zeros(SHAPE).tolist(),
        lambda: tuple(np.zeros(SHAPE)),
        lambda: sparse.BCOO.fromdense(jnp.zeros(SHAPE)),
        lambda: jax.ShapeDtypeStruct(SHAPE, np.float32),
        LooksLikeAnArray,
        pillow,
        tensor,
        data_frame,
    ],
    ids=["list", "tuple", "sparse", "shape", "look-alike", "pillow", "torch", "pandas"],
)
def test_not_an_array(make):
    image, other = make(), np.zeros(SHAPE, np.float32)
    name = type(image).__name__
    with pytest.raises(TypeError, match=f"a must be an array, got {name}"):
        ssim(image, other, **SMALL)
    with pytest.raises(TypeError, match=f"targets must be an array, got {name}"):
        ssim_l1_loss(other, image, **SMALL)
    with pytest.raises(TypeError, match=f"where must be an array, got {name}"):
        ms_ssim(other, other, where=image, **TWO_SCALES)


def test_flax_variables_are_arrays():
    # Pixels that are trained.
    nnx = pytest.importorskip("flax.nnx")
    a, b = pair(*SHAPE)
    np.testing.assert_array_equal(ssim(nnx.Param(a), nnx.Param(b), **SMALL), ssim(a, b, **SMALL))
    gradient = nnx.grad(lambda image: ssim(image, b, **SMALL).sum())(nnx.Param(a))
    # One is compiled whole, the other stage by stage: another order of float32 sums.
    np.testing.assert_allclose(gradient[...], jax.grad(lambda a: ssim(a, b, **SMALL).sum())(a), rtol=1e-5, atol=1e-7)


# --- devices ------------------------------------------------------------------------------------------------


def test_images_stay_on_their_device():
    device = jax.devices()[3]
    a, b = numpy_pair()
    options = SMALL | {"max_val": np.float32([1, 2])}
    values, gradient = jax.vjp(lambda x: ssim(x, b, **options), jax.device_put(a, device))  # b is on none yet
    assert values.devices() == gradient(values)[0].devices() == {device}
    np.testing.assert_allclose(values, ssim(a, b, **options), **FLOAT32)


def test_images_on_two_devices():
    a, b = (jax.device_put(x, device) for x, device in zip(numpy_pair(), jax.devices()[3:5], strict=True))
    with pytest.raises(ValueError, match="incompatible devices"):
        ssim(a, b, **SMALL)
