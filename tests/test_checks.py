"""What is refused, and that the message says what is wrong and what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jax_msssim
from jax_msssim import fit_power_factors, gaussian_window, ms_ssim, ms_ssim_terms, ssim, ssim_l1_loss, uniform_window

IMAGE = np.zeros((16, 17, 3), np.float32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def raises(error, words):
    """An error whose message holds every one of the words."""
    return pytest.raises(error, match="(?s)" + "".join(f"(?=.*{word})" for word in words))


@pytest.mark.parametrize("function", ["ssim", "ssim_map", "ms_ssim", "ms_ssim_terms", "ms_ssim_db"])
def test_metrics_name_their_images(function):
    with raises(ValueError, [r"\ba and b must have the same shape", r"\[16, 17, 3\]", r"\[16, 18, 3\]"]):
        getattr(jax_msssim, function)(IMAGE, zeros(16, 18, 3))


@pytest.mark.parametrize("function", ["ssim_loss", "dssim_loss", "ms_ssim_loss", "log_ms_ssim_loss", "ssim_l1_loss"])
def test_losses_name_their_images(function):
    with raises(ValueError, ["predictions and targets must have the same shape", r"\[16, 17, 3\]", r"\[16, 17, 1\]"]):
        getattr(jax_msssim, function)(IMAGE, zeros(16, 17, 1))


def test_batches_are_not_broadcast():
    with raises(ValueError, ["never broadcast"]):
        ssim(zeros(2, 16, 16, 3), zeros(16, 16, 3))


@pytest.mark.parametrize(
    ("shape", "spatial_ndim", "axes"), [((16, 17), 2, "H, W, C"), ((16,), 1, "T, C"), ((9, 9, 9), 3, "D, H, W, C")]
)
def test_missing_channel_axis(shape, spatial_ndim, axes):
    with raises(ValueError, ["channels last", axes, r"a\[\.\.\., None\]"]):
        ssim(zeros(*shape), zeros(*shape), spatial_ndim=spatial_ndim)


def test_second_image_is_checked_too():
    with raises(ValueError, [r"b must have shape", r"b\[\.\.\., None\]"]):
        ssim(IMAGE, zeros(16, 17))


@pytest.mark.parametrize("dtype", ["complex64", "bool"])
def test_types_that_are_no_pixels(dtype):
    with raises(TypeError, ["a must hold real numbers", dtype]):
        ssim(IMAGE.astype(dtype), IMAGE.astype(dtype), max_val=1)
    with raises(TypeError, ["b must hold real numbers", dtype]):
        ssim(IMAGE, IMAGE.astype(dtype), max_val=1)


@pytest.mark.parametrize("image", [IMAGE.tolist(), 1.0, None, "image.png"])
def test_not_an_array(image):
    with raises(TypeError, ["a must be an array", "jnp.asarray"]):
        ssim(image, image)


@pytest.mark.parametrize(
    "types", [("int32", "int32"), ("int8", "int8"), ("uint8", "float32"), ("float32", "uint8"), ("uint8", "uint16")]
)
def test_max_val_that_cannot_be_known(types):
    a, b = (IMAGE.astype(dtype) for dtype in types)
    with raises(ValueError, ["max_val must be given", *types]):
        ssim(a, b)


@pytest.mark.parametrize("max_val", [0, -1.0, np.inf, np.nan, 1e-16, 1e16, [1.0, -1.0]])
def test_max_val_outside_its_domain(max_val):
    with raises(ValueError, ["max_val must be between 1e-15 and 1e15"]):
        ssim(zeros(2, 16, 16, 1), zeros(2, 16, 16, 1), max_val=max_val)


@pytest.mark.parametrize("value", ["255", 1j, True])
@pytest.mark.parametrize(
    ("name", "function"),
    [("max_val", ssim), ("power_factors", ms_ssim), ("weight", jax_msssim.ssim_l1_loss)],
)
def test_what_is_no_number(name, function, value):
    with raises(TypeError, [f"{name} must be a number"]):
        function(IMAGE, IMAGE, **{name: value})
    if not isinstance(value, str):
        with raises(TypeError, [f"{name} must be a number"]):
            jax.jit(lambda x: function(IMAGE, IMAGE, **{name: x}))(value)


@pytest.mark.parametrize("shape", [(3,), (2, 1), (1, 2)])
def test_max_val_that_does_not_fit_the_batch(shape):
    with raises(ValueError, ["max_val of shape", "does not broadcast over a batch", r"\[2\]"]):
        ssim(zeros(2, 16, 16, 1), zeros(2, 16, 16, 1), max_val=np.ones(shape))


@pytest.mark.parametrize(("downsample", "smallest"), [("edge", 161), ("floor", 176)])
def test_too_small_for_five_scales(downsample, smallest):
    fits, small = zeros(smallest, smallest, 1), zeros(smallest, smallest - 1, 1)
    jax.eval_shape(lambda a: ms_ssim(a, a, downsample=downsample), fits)
    words = [rf"{smallest}, {smallest - 1}\b", rf"at least {smallest}\b", "fit_power_factors", "4 halvings"]
    for function in (ms_ssim, ms_ssim_terms, jax_msssim.ms_ssim_db, jax_msssim.ms_ssim_loss):
        with raises(ValueError, words):
            function(small, small, downsample=downsample)


def test_the_remedy_in_the_message_works():
    with pytest.raises(ValueError, match="fit_power_factors") as error:
        ms_ssim(zeros(40, 50, 1), zeros(40, 50, 1))
    remedy = str(error.value).split("power_factors=")[1].rstrip(".")
    weights = eval(remedy, {"fit_power_factors": fit_power_factors})
    assert jax.eval_shape(lambda a: ms_ssim(a, a, power_factors=weights), zeros(40, 50, 1)).shape == ()


def test_too_small_for_the_window():
    with raises(ValueError, [r"\b10, 17\b", r"at least 11\b", "filter_size", 'padding="same"']):
        ssim(zeros(10, 17, 1), zeros(10, 17, 1))


def test_too_small_holds_without_chex():
    # chex.disable_asserts() silences chex; the smallest size is checked without it.
    chex = pytest.importorskip("chex")
    chex.disable_asserts()
    try:
        with raises(ValueError, ["too small"]):
            ssim(zeros(10, 17, 1), zeros(10, 17, 1))
    finally:
        chex.enable_asserts()


def test_channels_first_gets_a_hint():
    with raises(ValueError, ["channels-first", r"moveaxis\(x, -3, -1\)"]):
        ssim(zeros(3, 32, 32), zeros(3, 32, 32))


def test_no_pixels():
    with raises(ValueError, ["no pixels", r"\[16, 16, 0\]"]):
        ssim(zeros(16, 16, 0), zeros(16, 16, 0), padding="same")


@pytest.mark.parametrize("window", [[0.5, 0.6, 0.5], [0.2, 0.2, 0.2], [1.00001]])
def test_window_that_does_not_sum_to_one(window):
    with raises(ValueError, ["window must sum to 1", "Divide it by its sum"]):
        ssim(IMAGE, IMAGE, window=window)


def test_window_that_sums_to_one_in_float32():
    window = gaussian_window(5, 1.0).astype(np.float32)  # 1 within 1e-6, not within 1e-15
    assert jax.eval_shape(lambda a: ssim(a, a, window=window), IMAGE).shape == ()


@pytest.mark.parametrize(
    ("window", "words"),
    [
        ([0.5, 0.5], ["odd number of taps"]),
        ([[1.0]], ["one-dimensional", "every spatial axis"]),
        ([], ["odd number of taps"]),
        ([-0.5, 2.0, -0.5], ["negative"]),
        ([0.5, np.nan, 0.5], ["NaN"]),
    ],
)
def test_other_windows(window, words):
    with raises(ValueError, ["window must", *words]):
        ssim(IMAGE, IMAGE, window=window)


@pytest.mark.parametrize(
    ("name", "value", "error", "words"),
    [
        ("filter_size", 10, ValueError, ["odd", "10"]),
        ("filter_size", 0, ValueError, ["at least 1"]),
        ("filter_size", -3, ValueError, ["at least 1"]),
        ("filter_size", 5.0, TypeError, ["Python int"]),
        ("filter_size", True, TypeError, ["Python int"]),
        ("filter_sigma", 0, ValueError, ["above 0"]),
        ("filter_sigma", np.nan, ValueError, ["above 0"]),
        ("filter_sigma", "1.5 pixels", TypeError, ["plain Python or NumPy"]),
        ("k1", 0, ValueError, ["above 0"]),
        ("k2", -0.03, ValueError, ["above 0"]),
        ("k2", np.inf, ValueError, ["finite"]),
        ("k2", [0.01, 0.03], TypeError, ["one number"]),
    ],
)
def test_constants_outside_their_domain(name, value, error, words):
    with raises(error, [f"{name} must", *words]):
        ssim(IMAGE, IMAGE, **{name: value})


@pytest.mark.parametrize("name", ["k1", "k2", "filter_size", "filter_sigma", "window"])
def test_traced_constants(name):
    value = jnp.ones(1) if name == "window" else jnp.asarray(3)
    with raises(TypeError, [f"{name} must be", "known before compilation"]):
        jax.jit(lambda x: ssim(IMAGE, IMAGE, **{name: x}))(value)


@pytest.mark.parametrize(
    ("name", "value", "choices"),
    [
        ("padding", "reflection", ["valid", "same"]),
        ("implementation", "fft", ["None", "stencil", "conv"]),
        ("spatial_ndim", 4, ["1, 2, 3"]),
        ("spatial_ndim", True, ["1, 2, 3"]),
        ("spatial_ndim", 2.0, ["1, 2, 3"]),
        ("downsample", "nearest", ["edge", "floor"]),
        ("luminance", "first", ["last", "all"]),
        ("negative", "abs", ["relu", "shift", "soft"]),
        ("negative", ["relu"], ["relu", "shift", "soft"]),  # not hashable
        ("channel_mean", None, ["after", "before"]),
    ],
)
def test_unknown_options(name, value, choices):
    with raises(ValueError, [f"{name} must be one of", *choices]):
        ms_ssim(IMAGE, IMAGE, **{name: value})


def test_unknown_keyword():
    for function in (ssim, jax_msssim.ssim_map, ms_ssim, jax_msssim.ms_ssim_loss, ssim_l1_loss):
        with raises(TypeError, ["unexpected keyword argument", "filtersize"]):
            function(IMAGE, IMAGE, filtersize=11)


@pytest.mark.parametrize(
    ("power_factors", "words"),
    [
        ([], ["at least one"]),
        (0.5, ["one weight for each scale"]),
        ([0.5, -0.5], ["not negative"]),
        ([0.5, np.nan], ["finite"]),
        ([[0.5], [0.5]], ["does not broadcast over a batch"]),
        ([1] * 6, ["too small", "5 halvings"]),  # as many scales as weights
        (jnp.ones((3, 2)), ["power_factors of shape", "does not broadcast"]),
    ],
)
def test_power_factors(power_factors, words):
    with raises(ValueError, words):
        ms_ssim(IMAGE, IMAGE, power_factors=power_factors, filter_size=5)


@pytest.mark.parametrize(("scales", "error"), [(0, ValueError), (2.0, TypeError), (None, TypeError)])
def test_scales(scales, error):
    with raises(error, ["scales must be"]):
        ms_ssim_terms(IMAGE, IMAGE, scales=scales)


def test_log_of_relu():
    with raises(ValueError, ["relu", "infinite", "soft", "shift"]):
        jax_msssim.log_ms_ssim_loss(IMAGE, IMAGE, negative="relu")


@pytest.mark.parametrize("weight", [-0.1, 1.1, np.nan])
def test_weight_outside_its_domain(weight):
    with raises(ValueError, ["weight must be between 0 and 1"]):
        ssim_l1_loss(IMAGE, IMAGE, weight=weight)


def test_weight_is_one_number():
    for weight in ([0.1, 0.2], jnp.ones(2)):
        with raises(ValueError, ["weight must be a single number", r"\[2\]"]):
            ssim_l1_loss(IMAGE, IMAGE, weight=weight)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        (((10, 300),), {}, ValueError, ["not even one scale", r"\(10, 300\)", r"at least filter_size, 11"]),
        (((),), {}, ValueError, ["at least one side"]),
        (((64.0, 64),), {}, TypeError, ["spatial_shape must be"]),
        (((0, 64),), {}, ValueError, ["spatial_shape must be at least 1"]),
        (((64, 64),), {"filter_size": 4}, ValueError, ["filter_size must be odd"]),
        (((64, 64),), {"downsample": "ceil"}, ValueError, ["downsample must be one of"]),
        (((64, 64),), {"power_factors": ()}, ValueError, ["at least one number"]),
        (((64, 64),), {"power_factors": [[1.0]]}, ValueError, ["sequence"]),
    ],
)
def test_fit_power_factors(arguments, options, error, words):
    with raises(error, words):
        fit_power_factors(*arguments, **options)


def test_windows():
    for size, error, words in [(4, ValueError, ["odd"]), (0, ValueError, ["at least 1"]), (3.0, TypeError, ["int"])]:
        with raises(error, ["size must be", *words]):
            uniform_window(size)
        with raises(error, ["size must be", *words]):
            gaussian_window(size, 1.5)
    with raises(ValueError, ["sigma must be above 0"]):
        gaussian_window(3, 0)
    with raises(TypeError, ["sigma must be", "known before compilation"]):
        jax.jit(lambda sigma: gaussian_window(3, sigma))(1.0)


def test_values_of_traced_arguments_are_not_looked_at():
    # max_val and power_factors may be traced: nothing may ask for their values.
    weights = jnp.asarray([0.5, 0.5])
    shape = jax.eval_shape(
        lambda max_val, weights: ms_ssim(IMAGE, IMAGE, max_val=max_val, power_factors=weights, filter_size=5),
        jnp.asarray(-1.0),
        weights,
    )
    assert shape.shape == ()
