"""What is refused, and that the message says what is wrong and what to do."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import sparse
from test_api import HELPERS, KEYWORDS

import jax_msssim
from jax_msssim import _cuda, fit_power_factors, gaussian_window, ms_ssim, ssim

IMAGE = np.zeros((16, 17, 3), np.float32)
BATCH = np.zeros((2, 16, 16, 1), np.float32)


def zeros(*shape, dtype=np.float32):
    return np.zeros(shape, dtype)


def traced(function, value=1.0):
    return jax.jit(function)(value)


class LooksLikeAnArray:
    shape, dtype, ndim = IMAGE.shape, IMAGE.dtype, IMAGE.ndim


NAMES = vars(jax_msssim) | globals() | {"jnp": jnp, "sparse": sparse}


def check(call, error, start, *words, names=NAMES):
    """A call raises this error and no other; its message begins with the argument's name and has all the words."""
    with pytest.raises(error) as caught:
        eval(call, names)
    message = str(caught.value)
    assert caught.type is error
    assert message.startswith(start)
    assert [word for word in words if word not in message] == []


def calls(*table):
    return pytest.mark.parametrize("row", table, ids=[call for call, *_ in table])


def images_of(name):
    return "predictions and targets" if name.endswith("loss") else "a and b"


# --- images ---------------------------------------------------------------------------------------------------

SHAPES = [
    *(
        (f"{name}(IMAGE, zeros(16, 18, 3))", ValueError, f"{images_of(name)} must", "[16, 17, 3]", "[16, 18, 3]")
        for name in KEYWORDS
    ),
    ("ssim(zeros(1, 16, 16, 3), zeros(4, 16, 16, 3))", ValueError, "a and b must have the same", "never broadcast"),
    ("ssim(zeros(2, 16, 16, 3), zeros(16, 16, 3))", ValueError, "a and b must have the same", "never broadcast"),
    ("ssim(zeros(), zeros())", ValueError, "a must have shape", "a[..., None]"),
    ("ssim(zeros(16), zeros(16), spatial_ndim=1)", ValueError, "a must have shape", "T, C", "a[..., None]"),
    ("ssim(zeros(16, 17), zeros(16, 17))", ValueError, "a must have shape", "H, W, C], channels last", "a[..., None]"),
    ("ssim(zeros(9, 9, 9), zeros(9, 9, 9), spatial_ndim=3)", ValueError, "a must have shape", "D, H, W, C"),
    ("ssim(IMAGE, zeros(16, 17))", ValueError, "b must have shape", "b[..., None]"),
    ("ssim_loss(IMAGE, zeros(16, 17))", ValueError, "targets must have shape", "targets[..., None]"),
    *(
        (f"ssim(zeros{shape}, zeros{shape}, padding='same')", ValueError, "a and b have no pixels", str([*shape]))
        for shape in ((2, 0, 16, 1), (2, 16, 0, 1), (16, 16, 0), (0, 16, 16, 0))
    ),
    ("ssim(zeros(10, 17, 1), zeros(10, 17, 1))", ValueError, "a and b are too small", "10, 17", 'padding="same"'),
    (
        "ssim(zeros(10, 17, 1), zeros(10, 17, 1), window=[[1.0], [1 / 18] * 18])",
        ValueError,
        "a and b are too small",
        "at least [1, 18]",
    ),
    ("ssim_loss(zeros(10, 17, 1), zeros(10, 17, 1))", ValueError, "predictions and targets are too small", "11"),
    ("ssim(zeros(3, 32, 32), zeros(3, 32, 32))", ValueError, "a and b", "channels-first", "moveaxis(x, -3, -1)"),
    ("ms_ssim(*[zeros(161, 160, 1)] * 2)", ValueError, "a and b are too small", "at least 161", "4 halvings"),
    ("ms_ssim_terms(*[zeros(176, 175, 1)] * 2, downsample='floor')", ValueError, "a and b are too small", "least 176"),
    ("ms_ssim_loss(*[zeros(161, 160, 1)] * 2)", ValueError, "predictions and targets are too small", "at least 161"),
]
TYPES = [
    *(
        (f"ssim(zeros(16, 17, 3, dtype={dtype!r}), IMAGE, max_val=1)", TypeError, "a must hold real numbers")
        for dtype in ("complex64", "bool", "object", "S4", "M8[s]", [("red", "f4")])
    ),
    ("ssim(IMAGE, IMAGE.astype('complex64'))", TypeError, "b must hold real numbers", "complex64"),
    ("ssim(IMAGE, jnp.zeros((16, 17, 3), bool))", TypeError, "b must hold real numbers", "bool"),
    *[("ssim(IMAGE, IMAGE.astype(np.longdouble))", TypeError, "b must hold real numbers", "at most 64 bits")]
    * (np.longdouble(0).itemsize > 8),
    *(
        (f"ssim({value}, IMAGE)", TypeError, f"a must be an array, got {kind}", "jnp.asarray")
        for value, kind in {
            "1.0": "float",
            "None": "NoneType",
            "'image.png'": "str",
            "IMAGE.tolist()": "list",
            "sparse.BCOO.fromdense(IMAGE)": "BCOO",
            "jax.ShapeDtypeStruct(IMAGE.shape, IMAGE.dtype)": "ShapeDtypeStruct",
            "LooksLikeAnArray()": "LooksLikeAnArray",
            "pytest.importorskip('PIL.Image').new('RGB', (16, 17))": "Image",
            "pytest.importorskip('torch').zeros(16, 17, 3)": "Tensor",
            "pytest.importorskip('pandas').DataFrame()": "DataFrame",
        }.items()
    ),
    ("ssim_l1_loss(IMAGE, tuple(IMAGE))", TypeError, "targets must be an array, got tuple"),
    ("ms_ssim(IMAGE, IMAGE, where=[True])", TypeError, "where must be an array, got list"),
    # JAX would take the data of a masked array and drop the mask.
    ("ssim(np.ma.array(IMAGE), IMAGE)", TypeError, "a is a masked array", "where=~np.ma.getmaskarray(a)"),
    ("ssim(IMAGE, np.ma.array(IMAGE))", TypeError, "b is a masked array", "where=~np.ma.getmaskarray(b)"),
    ("ssim(IMAGE, IMAGE, where=np.ma.array(IMAGE > 0))", TypeError, "where is a masked array"),
]


@calls(*SHAPES, *TYPES)
def test_images(row):
    check(*row)


@calls(*SHAPES)
def test_shapes_without_the_asserts_of_chex(row):
    chex = pytest.importorskip("chex")
    chex.disable_asserts()
    try:
        check(*row)
    finally:
        chex.enable_asserts()


@pytest.mark.parametrize(("side", "downsample"), [(161, "edge"), (176, "floor")])
def test_the_smallest_images_of_five_scales(side, downsample):
    a = jax.ShapeDtypeStruct((side, side, 1), np.float32)
    assert jax.eval_shape(lambda a: ms_ssim(a, a, downsample=downsample), a).shape == ()


def test_the_remedy_in_the_message_works():
    with pytest.raises(ValueError, match="fit_power_factors") as error:
        ms_ssim(zeros(40, 50, 1), zeros(40, 50, 1))
    remedy = str(error.value).split("power_factors=")[1].rstrip(".")
    weights = eval(remedy, {"fit_power_factors": fit_power_factors})
    assert jax.eval_shape(lambda a: ms_ssim(a, a, power_factors=weights), zeros(40, 50, 1)).shape == ()


# --- options --------------------------------------------------------------------------------------------------


def options_of(function, *table, images="IMAGE, IMAGE"):
    """For each error and the message behind the option's name: the options that are refused with it."""
    return [
        (f"{function}({images}, {option})", error, f"{option.partition('=')[0]} {message}")
        for error, message, *options in table
        for option in options
    ]


NUMBER, STATIC = "must be a number", "must be plain Python or NumPy numbers, known before compilation"
OPTIONS = [
    *(
        (f"ssim(IMAGE.astype('{a}'), IMAGE.astype('{b}'))", ValueError, "max_val must be given", a, b)
        for a, b in [("int32", "int32"), ("uint8", "float32"), ("float32", "uint8"), ("uint8", "uint16")]
    ),
    *(
        (f"traced(lambda x: {function}(IMAGE, IMAGE, {name}=x), True)", TypeError, f"{name} must be a number")
        for function, name in [("ssim", "max_val"), ("ms_ssim", "power_factors"), ("ssim_l1_loss", "weight")]
    ),
    *(
        (f"traced(lambda x: ssim(IMAGE, IMAGE, {name}=x))", TypeError, f"{name} must be", "known before compilation")
        for name in ("k1", "k2", "filter_size", "filter_sigma", "window", "min_coverage")
    ),
    *options_of(
        "ssim",
        (TypeError, NUMBER, "max_val='255'", "max_val=1j", "max_val=True"),
        (ValueError, "must be between 1e-15 and 1e15", *(f"max_val={x}" for x in ("0", "-1.0", "1e-16", "1e16"))),
        (ValueError, "must be between 1e-15 and 1e15", "max_val=np.inf", "max_val=np.nan", "max_val=[1.0, -1.0]"),
        (ValueError, "of shape [3] does not broadcast over a batch of shape [2]", "max_val=np.ones(3)"),
        (ValueError, "of shape [2, 1] does not broadcast", "max_val=np.ones((2, 1))"),
        (ValueError, "of shape [1, 2] does not broadcast", "max_val=np.ones((1, 2))"),
        images="BATCH, BATCH",
    ),
    *options_of(
        "ssim",
        (ValueError, "must be at least 1", "filter_size=0", "filter_size=-3"),
        (TypeError, "must be a Python int, known before compilation", "filter_size=5.0", "filter_size=True"),
        (ValueError, "must be above 0 and finite", "filter_sigma=0", "filter_sigma=np.nan", "filter_sigma=np.inf"),
        (ValueError, "must be above 0 and finite", "k1=0", "k2=-0.03", "k2=np.inf"),
        (TypeError, STATIC, "filter_sigma='1.5 pixels'"),
        (TypeError, "must be one number", "k2=[0.01, 0.03]"),
        (ValueError, "must sum to 1 within 1e-6", "window=[0.5, 0.6, 0.5]", "window=[0.2] * 3", "window=[1.00001]"),
        (ValueError, "must be one-dimensional with at least one tap", "window=[]", "window=[[1.0], []]", "window=1.0"),
        (ValueError, "must be the taps for every spatial axis, or a sequence of those of", "window=[[1.0]]"),
        (ValueError, "must sum to 1 within 1e-6", "window=[[1.0], [0.5]]"),
        (ValueError, "must have no negative or NaN tap", "window=[-0.5, 2.0, -0.5]", "window=[0.5, np.nan, 0.5]"),
        (ValueError, "must be one of 'population', 'sample'", "covariance='unbiased'"),
        (ValueError, "must be one of 'valid', 'same'", "padding='reflection'", "padding=('valid', 'same')"),
    ),
    ("ssim(IMAGE, IMAGE, covariance='sample', filter_size=1)", ValueError, "covariance", "more than one tap"),
    *options_of(
        "ssim",
        (TypeError, "must be integers", "sizes=[12.0, 12.0]", "sizes=[True, True]"),
        (ValueError, "must have shape [2]", "sizes=12", "sizes=[12, 12, 3]", "sizes=[[12], [12]]"),
        (ValueError, "of shape [3, 2] does not broadcast", "sizes=np.full((3, 2), 12)"),
        (
            ValueError,
            "must be at least [11, 11] and at most",
            "sizes=[10, 12]",
            "sizes=[12, 9999]",
            "sizes=jnp.array([-1, 12])",
        ),
    ),
    *options_of(
        "ms_ssim",
        (ValueError, "must be one of 'valid', 'same'", "padding=('valid', 'none')"),
        (ValueError, "must be one of None, 'stencil', 'conv', 'matmul', 'cuda'", "implementation='fft'"),
        (ValueError, "must be one of 1, 2, 3", "spatial_ndim=4", "spatial_ndim=True", "spatial_ndim=2.0"),
        (ValueError, "must be one of 'edge', 'floor'", "downsample='nearest'"),
        (ValueError, "must be one of 'last', 'all'", "luminance='first'"),
        (ValueError, "must be one of 'after', 'before'", "channel_mean=None"),
        (ValueError, "must be one of 'relu', 'shift', 'soft'", "negative='abs'", "negative=['relu']"),  # not hashable
        (TypeError, NUMBER, "power_factors='255'", "power_factors=1j", "power_factors=True"),
        (ValueError, "must hold one weight for each scale", "power_factors=[]", "power_factors=0.5"),
        (ValueError, "must be finite and not negative", "power_factors=[0.5, -0.5]", "power_factors=[0.5, np.nan]"),
        (ValueError, "of shape [2, 1] does not broadcast", "power_factors=[[0.5], [0.5]]"),
        (ValueError, "of shape [3, 2] does not broadcast", "power_factors=jnp.ones((3, 2)), filter_size=5"),
    ),
    ("ms_ssim(IMAGE, IMAGE, filter_size=5, power_factors=[1] * 6)", ValueError, "a and b are too small", "5 halvings"),
    ("log_ms_ssim_loss(IMAGE, IMAGE, negative='relu')", ValueError, "negative", "infinite", "soft", "shift"),
    *options_of("ms_ssim_terms", (ValueError, "must be at least 1", "scales=0"), (TypeError, "must be", "scales=2.0")),
    *options_of(
        "ssim_l1_loss",
        (TypeError, NUMBER, "weight='255'", "weight=1j", "weight=True"),
        (ValueError, "must be between 0 and 1", "weight=-0.1", "weight=1.1", "weight=np.nan"),
        (ValueError, "must be a single number, got shape [2]", "weight=[0.1, 0.2]", "weight=jnp.ones(2)"),
    ),
    ("fit_power_factors((10, 300))", ValueError, "", "not even one scale", "(10, 300)", "at least filter_size, 11"),
    ("fit_power_factors(())", ValueError, "spatial_shape must", "at least one side"),
    ("fit_power_factors((64.0, 64))", TypeError, "spatial_shape must be"),
    ("fit_power_factors((0, 64))", ValueError, "spatial_shape must be at least 1"),
    *options_of(
        "fit_power_factors",
        (ValueError, "must be one of", "downsample='ceil'"),
        (ValueError, "must be a sequence of at least one number", "power_factors=()", "power_factors=[[1.0]]"),
        images="(64, 64)",
    ),
    ("uniform_window(0)", ValueError, "size must be at least 1"),
    ("gaussian_window(3.0, 1.5)", TypeError, "size must be a Python int"),
    ("gaussian_window(3, 0)", ValueError, "sigma must be above 0"),
    ("traced(lambda sigma: gaussian_window(3, sigma))", TypeError, "sigma must be", "known before compilation"),
]


@calls(*OPTIONS)
def test_options(row):
    check(*row)


def test_window_that_sums_to_one_in_float32():
    window = gaussian_window(5, 1.0).astype(np.float32)  # 1 within 1e-6, not within 1e-15
    assert jax.eval_shape(lambda a: ssim(a, a, window=window), IMAGE).shape == ()


# --- keywords that no function has ----------------------------------------------------------------------------

# Those of other libraries, or nearly ours: the option that is meant.
MEANT = {
    **dict.fromkeys(("data_range", "val_range", "dynamic_range"), "max_val"),
    **dict.fromkeys(("win_size", "window_size", "kernel_size", "filtersize"), "filter_size"),
    **dict.fromkeys(("win_sigma", "sigma"), "filter_sigma"),
    **dict.fromkeys(("weights", "betas"), "power_factors"),
    "mask": "where",
}
INSTEAD = {
    "K": ("k1", "k2"),
    **dict.fromkeys(("size_average", "reduction"), ("reduced", "mean")),
    **dict.fromkeys(("return_map", "full", "return_full_image"), ("ssim_map",)),
    "channel_axis": ("last",),
}


def unexpected(name, keyword, *words, images="IMAGE, IMAGE"):
    start = f"{name}() got an unexpected keyword argument '{keyword}'"
    return f"{name}({images}, {keyword}=3)", TypeError, start, *words


@calls(
    *(unexpected(name, keyword) for name in KEYWORDS for keyword in ("foo", "names", "padding_pair")),
    *(unexpected(name, "scales") for name in KEYWORDS if "scales" not in KEYWORDS[name]),
    *(unexpected(name, "downsample") for name in KEYWORDS if "downsample" not in KEYWORDS[name]),
    *(unexpected(name, key, meant) for name in KEYWORDS for key, meant in MEANT.items() if meant in KEYWORDS[name]),
    *(unexpected("ssim", keyword, *words) for keyword, words in INSTEAD.items()),
    *(unexpected(name, "foo", images="3") for name in HELPERS if name not in ("evaluate", "gaussian_window")),
    ("ssim(IMAGE, IMAGE, 255)", TypeError, "ssim", "max_val"),
    ("ms_ssim_loss(IMAGE, IMAGE, 255)", TypeError, "ms_ssim_loss", "max_val"),
)
def test_unknown_keywords(row):
    check(*row)


def test_the_kernel_needs_a_gpu_and_a_release_that_was_tried(monkeypatch):
    call, start = "ssim(IMAGE, IMAGE, implementation='cuda')", 'implementation="cuda" '
    if jax.default_backend() == "cpu":
        check(call, ValueError, start, "needs an NVIDIA GPU", "only cpu", "leave implementation out")
    monkeypatch.setattr(_cuda, "has_device", lambda: True)
    monkeypatch.setattr(_cuda, "RELEASES", ("0.1", "0.2"))
    check(call, ValueError, start, "0.1 and 0.2", jax.__version__, "leave implementation out")


# --- warnings -------------------------------------------------------------------------------------------------

BYTES = np.full((16, 17, 3), 200, np.float32)
SCREENSHOT = np.indices((16, 17)).sum(0, dtype=np.uint8)[..., None].repeat(4, -1)
SCREENSHOT[..., 3] = 255


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (BYTES, {}, "a has pixels up to 200 but max_val"),
        (np.zeros((64, 32, 32), np.float32), {}, r"a of shape \[64, 32, 32\] is taken for an image of 32 channels"),
        (np.zeros((2, 3, 32, 40), np.float32), {"padding": "same"}, "is taken for an image of 40 channels"),
        (BYTES.astype(jnp.bfloat16), {}, "a has pixels up to 200 but max_val"),
        (BYTES, {"where": BYTES[..., :1] > 0}, "a has pixels up to 200 but max_val"),
        (SCREENSHOT, {}, r"a of shape \[16, 17, 4\] has an opaque alpha channel.*a\[\.\.\., :-1\]"),
        (SCREENSHOT.astype(np.uint16) * 257, {}, "opaque alpha"),
        (SCREENSHOT / np.float32(255), {}, "opaque alpha"),
        (SCREENSHOT.astype(np.float32)[..., 2:], {"max_val": 255}, "opaque alpha"),
    ],
)
def test_warnings(image, options, message):
    with pytest.warns(jax_msssim.ImageWarning, match=message) as told:
        ssim(image, jnp.asarray(image), **options)
    assert [warning.filename for warning in told] == [__file__]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", jax_msssim.ImageWarning)
        ssim(image, image, **options)


@pytest.mark.parametrize(
    ("image", "options"),
    [
        (BYTES, {"max_val": 255}),
        (BYTES.astype(np.uint8), {}),
        (BYTES / 100, {}),
        (SCREENSHOT[..., 1:], {}),  # its last of three channels is blank
        (SCREENSHOT[..., [3, 0, 1, 2]], {}),
        (np.full((16, 17, 4), 255, np.uint8), {}),
        (BYTES * np.inf, {}),
        (jnp.asarray(BYTES), {}),
        (np.zeros((2, 32, 32, 20), np.float32), {}),
        (np.zeros((40, 40, 31), np.float32), {}),  # many bands
        (BYTES, {"where": BYTES[..., :1] < 0}),  # what a masked pixel holds has no meaning
        (BYTES, {"where": jnp.asarray(BYTES[..., :1] < 0)}),
    ],
)
def test_no_warning(image, options):
    ssim(image, image, **options)
    jax.jit(lambda x: ssim(x, BYTES))(BYTES)  # nor of a constant while a program is traced
