"""The kernel for GPUs, run by the CPU (``kernel/emulation.py``): its numbers, and where it is used."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import assert_same, function_of, pair, total
from images import random_pair
from jax import export
from kernel import emulation, ptx
from test_sharding import check, over_batch, value_and_gradients

from jax_msssim import conventions, ms_ssim, ms_ssim_terms, ssim, ssim_loss, ssim_map
from jax_msssim._cuda._launch import TARGET
from jax_msssim._stencil import _platforms

# A term is a quotient of sums over 11 products, along two axes: off by less than 20 roundings, of 6e-8. The mean over
# positions keeps a part of that. A gradient is made of three such terms, and blurred once more along each axis.
VALUE, GRADIENT = 1e-6, 2e-6

pytestmark = pytest.mark.skipif(emulation.COMPILER is None, reason="needs a C++ compiler")
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def gpu(tmp_path_factory):
    with emulation.emulated(emulation.build(tmp_path_factory.mktemp("kernel"))):
        yield


def launches(function, *arrays) -> int:
    """How many kernels a program has."""
    return jax.jit(function).lower(*arrays).as_text().count(TARGET)


TWO = {"power_factors": np.array([0.4, 0.6])}
SSIM, MS_SSIM = ssim_loss, functools.partial(ms_ssim, **TWO)
CASES = {
    "one window": (SSIM, (11, 11, 1), 0),
    "more blocks than one": (SSIM, (2, 3, 41, 97, 3), 0),
    "four channels": (SSIM, (97, 61, 4), 500),
    "two scales": (MS_SSIM, (3, 64, 70, 3), 5000),
    "odd sides": (functools.partial(MS_SSIM, downsample="floor", luminance="all"), (2, 45, 51, 2), 0),
    "a max_val for each": (functools.partial(SSIM, max_val=np.float32([1, 255])), (2, 20, 30, 1), -3),
    "as skimage": (functools.partial(ssim, **conventions.SKIMAGE_WANG.ssim), (30, 31, 3), 0),
}
LARGE = {
    "as torchmetrics": (functools.partial(ms_ssim, **conventions.TORCHMETRICS.ms_ssim | TWO), (1, 41, 42, 3), 0),
    "wide": (SSIM, (2, 11, 400, 3), 0),
    "high": (SSIM, (400, 11, 2), 0),
    "large": (SSIM, (1, 333, 400, 1), 5000),
    "five scales": (ms_ssim, (2, 176, 190, 3), 100),
    "zeros around": (functools.partial(MS_SSIM, padding="same", downsample="zero"), (2, 31, 35, 4), 0),
    "a wide window": (functools.partial(SSIM, filter_sigma=4), (2, 50, 50, 3), 0),
    "the sample's covariance": (functools.partial(SSIM, covariance="sample"), (40, 50, 3), 0),
}


@pytest.mark.parametrize("case", [*CASES, *(pytest.param(case, marks=slow) for case in LARGE)])
def test_against_float64(case, gpu, x64):
    """The value, and gradients by both images in one launch and by each, against the stencil's of the same pixels."""
    function, shape, offset = (CASES | LARGE)[case]
    a, b = (np.float32(offset + x) for x in random_pair(shape))

    def program(implementation):
        compute = functools.partial(function, implementation=implementation)

        @jax.jit
        def of(a, b):
            gradients = [jax.grad(total(compute), which)(a, b) for which in ((0, 1), 0, 1)]
            return compute(a, b), [*gradients[0], *gradients[1:]]

        return of

    assert launches(program("cuda"), a, b)
    value, gradients = jax.device_get(program("cuda")(a, b))
    exact, exact_gradients = jax.device_get(program("stencil")(np.float64(a), np.float64(b)))
    np.testing.assert_allclose(value, exact, rtol=0, atol=VALUE)
    for got, expected in zip(gradients, exact_gradients, strict=True):
        assert np.linalg.norm(got - expected) <= GRADIENT * np.linalg.norm(expected)


def test_equal_images_are_exactly_alike(gpu):
    a = pair(2, 30, 31, 3)[0]
    value, gradients = jax.jit(jax.value_and_grad(total(ssim_loss), (0, 1)))(a, a)
    assert launches(ssim_loss, a, a)
    assert not np.any(value)
    assert not np.any(gradients)


# --- where it is used -----------------------------------------------------------------------------------------

IMAGE = jax.ShapeDtypeStruct((2, 24, 26, 3), jnp.float32)
TRUE = np.ones(IMAGE.shape, bool)
REFUSED = {
    "spatial_ndim=2, got 1": (functools.partial(ssim, spatial_ndim=1), IMAGE),
    "windows of 11 taps": (functools.partial(ssim, filter_size=5), IMAGE),
    "middle five are at least 0.02": (functools.partial(ssim, filter_sigma=0.5), IMAGE),
    "no mask": (functools.partial(ssim, where=TRUE), IMAGE),
    "1 to 4 channels, got 5": (ssim, jax.ShapeDtypeStruct((24, 26, 5), jnp.float32)),
    "not empty": (ssim, jax.ShapeDtypeStruct((0, 24, 26, 3), jnp.float32)),
    "less than 2^31 samples": (ssim, jax.ShapeDtypeStruct((1, 2**16, 2**15, 1), jnp.float32)),
    "no luminance by itself": (functools.partial(ms_ssim_terms, scales=1), IMAGE),
    "no maps": (ssim_map, IMAGE),
}


@pytest.mark.parametrize("message", REFUSED)
def test_what_it_cannot_do_is_refused_by_name_alone(message, gpu):
    function, image = REFUSED[message]
    with pytest.raises(ValueError, match=f'implementation="cuda".*{message.replace("^", ".")}'):
        jax.eval_shape(functools.partial(function, implementation="cuda"), image, image)
    assert launches(ssim, IMAGE, IMAGE) == 1
    assert launches(function, image, image) == 0


def test_float64_is_refused(gpu, x64):
    image = jax.ShapeDtypeStruct(IMAGE.shape, jnp.float64)
    with pytest.raises(ValueError, match="in float32, got float64"):
        jax.eval_shape(functools.partial(ssim, implementation="cuda"), image, image)
    assert launches(ssim, image, image) == 0


def test_a_program_for_another_platform(gpu, monkeypatch):
    # There is a GPU, but the images are on the CPU.
    monkeypatch.setitem(_platforms.PLATFORMS, "cpu", "cpu")
    images = jax.device_put(pair(2, 21, 22, 3), jax.devices("cpu")[0])
    with pytest.raises(ValueError, match='implementation="cuda" is for programs on cuda, this one is for cpu'):
        ssim(*images, implementation="cuda")
    np.testing.assert_array_equal(ssim(*images), ssim(*images, implementation="stencil"))


@pytest.mark.parametrize("implementation", ["cuda", None])
@pytest.mark.parametrize("sizes", ["2, 24, 26, 3", pytest.param("batch, 24, 26, 3", marks=slow)])
def test_a_saved_program_has_the_stencil(sizes, implementation, gpu):
    if implementation and "batch" in sizes:
        pytest.skip("takes images of known shape")
    pytest.importorskip("flatbuffers")
    image = jax.ShapeDtypeStruct(export.symbolic_shape(sizes), jnp.float32)
    function = function_of("ms_ssim", filter_size=11, implementation=implementation)
    program = export.export(jax.jit(function), platforms=("cpu", "cuda", "tpu"))(image, image)
    assert TARGET not in program.mlir_module()
    images = pair(*IMAGE.shape)
    assert_same(export.deserialize(program.serialize()).call(*images), function(*images), VALUE)


@slow
def test_a_saved_program_of_a_sharded_batch(gpu, mesh):
    pytest.importorskip("flatbuffers")
    images = over_batch(mesh, *pair(8, 24, 26, 3))
    function = value_and_gradients(function_of("ms_ssim", filter_size=11))
    program = export.deserialize(export.export(jax.jit(function))(*images).serialize())
    assert_same(jax.device_get(jax.jit(program.call)(*images)), jax.device_get(jax.jit(function)(*images)), 1e-5)


# --- transformations ------------------------------------------------------------------------------------------


def over_the_second(function):
    """A batch on the second axis of one image, and none of the other."""
    return lambda a, b: jax.vmap(function, (1, None))(jnp.moveaxis(a, 0, 1), b[0])


def second_derivatives(function):
    return lambda a, b: jax.jvp(jax.grad(total(function), (0, 1)), (a, b), (b, a))


TRANSFORMED = {
    "vmap": lambda f: jax.vmap(value_and_gradients(f)),
    "vmap of batches": lambda f: lambda a, b: jax.vmap(f)(a[:, None], b[:, None]),
    "vmap of one": over_the_second,
    "loop": lambda f: lambda a, b: jax.lax.map(lambda images: f(*images), (a, b)),
    "forward mode": lambda f: lambda a, b: jax.jvp(f, (a, b), (b, a)),
    "by max_val": lambda f: lambda a, b: jax.grad(lambda m: f(a, b, max_val=m).sum())(jnp.float32(2)),
    "second derivatives": second_derivatives,
    "rematerialised": lambda f: value_and_gradients(jax.checkpoint(f)),
}
SLOW = ("second derivatives", "rematerialised")


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow) if name in SLOW else name for name in TRANSFORMED])
def test_transformations(name, gpu):
    # Against the stencil, in float32 both.
    images = pair(2, 24, 26, 1)
    got, expected = (
        jax.jit(TRANSFORMED[name](function_of("ms_ssim", filter_size=11, implementation=implementation)))(*images)
        for implementation in ("cuda", "stencil")
    )
    assert_same(got, expected, 1e-5)


ON_EIGHT = {
    "plain": value_and_gradients,
    "vmap": lambda f: jax.vmap(value_and_gradients(f)),
    "second derivatives": second_derivatives,
}


@pytest.mark.parametrize("name", ["plain", *(pytest.param(name, marks=slow) for name in [*ON_EIGHT][1:])])
def test_a_sharded_batch_stays_put(name, gpu, eight_devices):
    check(ON_EIGHT[name](function_of("ms_ssim", filter_size=11, implementation="cuda")), *pair(8, 24, 26, 1))


@slow
def test_a_model_axis(gpu, eight_devices):
    function = function_of("ms_ssim", filter_size=11, implementation="cuda")
    check(value_and_gradients(function), *pair(8, 24, 26, 1), batch=4, model=2)


# --- the source -----------------------------------------------------------------------------------------------


@slow
def test_threads_read_what_was_written(tmp_path):
    """Nothing beyond an array, and nothing that depends on which thread comes first."""
    preload = emulation.sanitizers()
    if preload is None:
        pytest.skip("the compiler has no sanitizers")
    got = emulation.results(tmp_path, "-fsanitize=address,undefined", "-fno-sanitize-recover=all", preload=preload)
    for x, y, z in zip(got, emulation.results(tmp_path, "-DBACKWARDS"), emulation.results(tmp_path), strict=True):
        np.testing.assert_allclose(x, z, rtol=1e-5)
        np.testing.assert_array_equal(y, z)


@slow
@pytest.mark.skipif(ptx.NVRTC is None, reason="needs nvidia-cuda-nvrtc-cu12 == 12.1.105")
@pytest.mark.parametrize("variant", ptx.VARIANTS)
def test_the_ptx_is_what_the_source_gives(variant):
    assert ptx.compiled(variant) == ptx.packaged(variant)


@slow
@pytest.mark.skipif(ptx.PTXAS is None, reason="needs nvidia-cuda-nvcc")
@pytest.mark.parametrize("architecture", ptx.ARCHITECTURES)
def test_registers_suffice(architecture):
    for variant in ptx.VARIANTS:
        assert ptx.resources(ptx.packaged(variant), architecture)["spilled"] == 0, variant
