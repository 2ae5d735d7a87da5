"""DISTS: its golden values, other programs' numbers, the network it is made of, and what holds of every loss here."""

import functools
import inspect
import subprocess
import sys

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from compat import enable_x64
from flax import nnx
from images import photographs, random_pair
from jax import export
from jax.test_util import check_grads
from test_api import parameters
from test_buffers import assert_free_after
from test_checks import calls, check
from test_sharding import meshes, over_batch, run, stays_over_batch

import jax_msssim
from jax_msssim.deep import DISTS_WEIGHTS, VGG16, dists_from_features, dists_loss, feature_terms
from jax_msssim.nnx import DISTS, SSIM

slow = pytest.mark.slow
FLOATS = [jnp.float32, jnp.bfloat16, pytest.param(jnp.float16, marks=slow)]


@functools.cache
def vgg16(dtype=None):
    return VGG16.from_torch(formulas.torch_arrays(), dtype=dtype)


KERNEL = formulas.noise(3 * 3 * 3 * 4, 7).reshape(3, 3, 3, 4).astype(np.float32)


def two_maps(images, where=None):
    """A small network: the images, and a convolution with ``KERNEL`` of every second pixel, without what is masked."""
    batch, layout = images.shape[:-3], ("NHWC", "HWIO", "NHWC")
    flat = images.reshape(-1, *images.shape[-3:])
    kernel = jnp.asarray(KERNEL, images.dtype)
    features = jax.lax.conv_general_dilated(flat, kernel, (2, 2), ((1, 1), (1, 1)), dimension_numbers=layout)
    maps = [images, jax.nn.relu(features).reshape(*batch, *features.shape[1:])]
    return maps if where is None else (maps, [where, where[..., ::2, ::2, :]])


ONES = ([np.ones(3), np.ones(4)],) * 2
SMALL = {"network": two_maps, "weights": ONES}
small = functools.partial(dists_loss, **SMALL)


def pair(*shape, dtype=np.float32):
    return tuple(x.astype(dtype) for x in random_pair(shape))


def value_and_gradient(function):
    """Of the sum of its values, by the first image."""

    def of(a, *others):
        values, pullback = jax.vjp(lambda a: function(a, *others), a)
        return values, pullback(jnp.ones_like(values))[0]

    return of


def relative(got, expected):
    return np.abs(np.asarray(got, np.float64) - expected).max() / np.abs(expected).max()


# --- golden values --------------------------------------------------------------------------------------------

TEXTURE = [0.0015946912720451456, 0.011377789100100566, 0.010074975870843716]
STRUCTURE = [0.13206067150958678, 0.09848910581065806, 0.09367299756252656]
# DISTS, DISTS with equal weights, and the norm of the gradient.
GOLDEN = {
    (32, 32): (0.00997041049075848, 0.010155852928277483, 0.016798164776409164),
    (33, 47): (0.009485833807755, 0.009165780235708219, 0.011490675169453013),
}


@pytest.mark.parametrize(("bits", "tolerance"), [(64, 1e-12), (32, 1e-7)])
def test_terms(bits, tolerance):
    with enable_x64(bits == 64):
        terms = feature_terms(*(x.astype(f"float{bits}") for x in formulas.map_pair(5, 7, 3)))
    assert {x.dtype.name for x in terms} == {f"float{bits}"}
    np.testing.assert_allclose(terms, (TEXTURE, STRUCTURE), rtol=0, atol=tolerance)


def of_golden_pair(size, bits):
    images = [x.astype(f"float{bits}") for x in formulas.image_pair(*size)]
    return images, VGG16(*([x.astype(f"float{bits}") for x in xs] for xs in formulas.kernels_and_biases()))


PRECISIONS = [(32, 1e-5, 1e-4), (64, 1e-10, 1e-6)]
QUICK = ((32, 32), *PRECISIONS[0])


@pytest.mark.parametrize(
    ("size", "bits", "tolerance"),
    [pytest.param(size, *row[:2], marks=[slow] * ((size, *row) != QUICK)) for size in GOLDEN for row in PRECISIONS],
)
def test_vgg16_by_formula(size, bits, tolerance):
    with enable_x64(bits == 64):
        images, network = of_golden_pair(size, bits)
        maps = [network(x) for x in images]
        got = [dists_from_features(*maps, weights=x) for x in (formulas.alpha_and_beta(), formulas.ones())]
    assert {x.dtype.name for x in got} == {f"float{bits}"}
    np.testing.assert_allclose(got, GOLDEN[size][:2], rtol=tolerance)


@slow
@pytest.mark.parametrize(
    ("size", "bits", "of_value", "of_gradient"), [((33, 47), *PRECISIONS[0]), ((32, 32), *PRECISIONS[1])]
)
def test_gradient_of_vgg16_by_formula(size, bits, of_value, of_gradient):
    with enable_x64(bits == 64):
        images, network = of_golden_pair(size, bits)
        loss = functools.partial(dists_loss, network=network, weights=formulas.alpha_and_beta())
        value, gradient = jax.jit(value_and_gradient(loss))(*images)
    np.testing.assert_allclose(value, GOLDEN[size][0], rtol=of_value)
    np.testing.assert_allclose(np.linalg.norm(np.asarray(gradient, np.float64)), GOLDEN[size][2], rtol=of_gradient)


# --- the arithmetic -------------------------------------------------------------------------------------------


def terms_by_definition(a, b, where=None):
    """In float64, position by position."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    where = np.ones(a.shape, bool) if where is None else np.broadcast_to(where, a.shape)
    terms = []
    for channel in range(a.shape[-1]):
        x, y = (z[..., channel][where[..., channel]] for z in (a, b))
        texture = (x.mean() - y.mean()) ** 2 / (x.mean() ** 2 + y.mean() ** 2 + 1e-6)
        terms.append((texture, (x - y).var() / (x.var() + y.var() + 1e-6)))
    return np.transpose(terms)


def spot(size=64, value=100.0):
    """Zeros but for a position in the middle and in the last line."""
    x = np.zeros((size, size, 1), np.float32)
    x[size // 2, size // 2] = x[-1, -1] = value
    return x


HARD = {
    "maps": formulas.map_pair(5, 7, 3),
    "flat": (np.full((64, 64, 1), 0.3), np.full((64, 64, 1), 0.5)),
    "flat and zero": (np.full((64, 64, 1), 300.1), np.zeros((64, 64, 1))),
    "far from 0": tuple(1000 + x for x in random_pair((64, 65, 2))),
    "spots": (spot(), np.roll(spot(), 1, 0) + 0.01),
    "spots on an offset": (1 + spot(value=0.5), 1 + spot()),
    "anticorrelated": (random_pair((33, 34, 1))[0], 1 - random_pair((33, 34, 1))[0]),
    "one position": (np.full((1, 1, 2), 0.3), np.full((1, 1, 2), 0.2)),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", HARD)
def test_hard_maps(name, masked):
    a, b = (x.astype(np.float32) for x in HARD[name])
    where = np.random.default_rng(0).random((*a.shape[:2], 1)) < 0.8 if masked else None
    got = feature_terms(a, b, where=where)
    # Where one number stands out, each of the 2 x 64 additions of others may round by half a unit, 6e-8 of the sum, to
    # one side: 8e-6, in both parts of a quotient.
    np.testing.assert_allclose(got, terms_by_definition(a, b, where), rtol=0, atol=1.6e-5 if "spots" in name else 5e-6)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=lambda x: x.__name__)
def test_statistics_of_half_precision_are_float32(dtype):
    a, b = (jnp.asarray(20 + 20 * x, dtype) for x in formulas.map_pair(40, 41, 3))
    terms = feature_terms(a, b)
    assert {x.dtype.name for x in terms} == {"float32"}
    np.testing.assert_allclose(terms, terms_by_definition(a, b), rtol=0, atol=1e-6)


@pytest.mark.parametrize("network", [two_maps, pytest.param("vgg16", marks=slow)], ids=["small", "vgg16"])
@pytest.mark.parametrize("dtype", FLOATS, ids=lambda x: x.__name__)
def test_equal_and_flat_images(dtype, network):
    # Of images and of the arithmetic of the network. In one program, and the small network in several as well.
    options = SMALL if network is two_maps else {"network": vgg16(dtype)}
    loss = value_and_gradient(functools.partial(dists_loss, **options))
    compiled = jax.jit(loss)
    images = [jnp.asarray(x, dtype) for x in (random_pair((24, 21, 3))[0], np.full((24, 21, 3), 0.3))]
    for image in images:
        for function in [compiled] + [loss] * (network is two_maps):
            value, gradient = function(image, image)
            assert value == 0
            assert gradient.dtype == dtype
            assert not gradient.any()
    value, gradient = compiled(images[1], jnp.full_like(images[1], 0.5))  # flat, and not equal
    assert 0 < value < 2
    assert np.isfinite(gradient.astype(np.float32)).all()


@pytest.mark.parametrize("order", [1, pytest.param(2, marks=slow)])
def test_derivatives(order, x64):
    maps = [[x + 0.1] for x in formulas.map_pair(4, 5, 2)]
    weights = tuple([np.abs(formulas.noise(2, seed))] for seed in range(2))

    def distance(a, b, weights):
        return dists_from_features(a, b, weights=weights)

    arguments = jax.tree.map(jnp.asarray, (*maps, weights))
    check_grads(distance, arguments, order=order, modes=("fwd", "rev"), rtol=1e-5)


def test_max_val_is_a_scale():
    a, b = pair(12, 13, 3)
    expected = small(a, b)
    for scale in (255.0, np.array(1e-3, np.float32)):
        np.testing.assert_allclose(small(a * scale, b * scale, max_val=scale), expected, rtol=1e-5)
    a, b = (np.round(255 * x).astype(np.uint8) for x in (a, b))
    np.testing.assert_allclose(small(a, b), small(a / np.float32(255), b / np.float32(255)), rtol=1e-5)


# --- other programs -------------------------------------------------------------------------------------------

IMAGES = {
    "noise 48x48": (32, lambda: random_pair((2, 48, 48, 3))),
    "noise 33x47": (32, lambda: random_pair((2, 33, 47, 3))),
    # Where a photograph is black, pooling takes roots of hardly more than its 1e-12, and another rounding is another
    # slope: gradients in float32 are off by up to 1e-2 at single pixels, the peers' own by 1e-3.
    "photograph 65x64": (64, lambda: tuple(x[None] for x in photographs("astronaut", 65, 64))),
}


@slow
@pytest.mark.parametrize("images", IMAGES)
def test_peers(images):
    """Theirs in float64; ours in float32, but for the gradient of a photograph."""
    bits, make = IMAGES[images]
    a, b = (x.astype(np.float32) for x in make())
    loss = functools.partial(dists_loss, network=vgg16())
    value = loss(a, b)
    with enable_x64(bits == 64):
        _, gradient = jax.jit(value_and_gradient(loss))(*(x.astype(f"float{bits}") for x in (a, b)))
    missing = []
    for name in peers.DISTS_PEERS:
        try:
            expected, expected_gradient = peers.dists_of(name, formulas.torch_arrays(), a, b)
        except ImportError as error:
            missing.append(str(error))
            continue
        np.testing.assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=name)
        assert relative(gradient, expected_gradient) <= 1e-4, name
    if len(missing) == len(peers.DISTS_PEERS):
        pytest.skip(missing[0])


def test_published_weights():
    for of_maps in DISTS_WEIGHTS:
        assert [x.shape for x in of_maps] == [(channels,) for channels in formulas.OF_MAPS]
    every = np.concatenate([*DISTS_WEIGHTS.alpha, *DISTS_WEIGHTS.beta])
    assert every.min() >= 0
    assert every.sum(dtype=np.float64) == pytest.approx(1, abs=1e-6)
    try:
        theirs = peers.published_alpha_and_beta()
    except ImportError as missing:
        pytest.skip(str(missing))
    for name, ours in DISTS_WEIGHTS._asdict().items():
        np.testing.assert_array_equal(np.concatenate(ours), theirs[name].detach().numpy().ravel())


# --- shapes, masks, sizes -------------------------------------------------------------------------------------


def test_batches_and_transformations():
    a, b = pair(2, 3, 11, 14, 3)
    expected = small(a, b)
    assert (expected.shape, jax.eval_shape(small, a[0, :1], b[0, :1]).shape) == ((2, 3), (1,))
    function = value_and_gradient(small)
    values, gradient = jax.jit(function)(a, b)
    by_vmap = jax.jit(jax.vmap(jax.vmap(function)))(a, b)
    one = jax.jit(function)(a[1, 2], b[1, 2])
    assert one[0].shape == ()
    np.testing.assert_allclose([values, by_vmap[0]], [expected, expected], rtol=1e-6)
    np.testing.assert_allclose(one[0], expected[1, 2], rtol=1e-6)
    assert relative(by_vmap[1], gradient) < 1e-6
    assert relative(one[1], gradient[1, 2]) < 1e-6


def by_both(options):
    """A loss, by VGG16 without its gradient: that takes long to compile."""
    if options is None:
        return functools.partial(dists_loss, network=vgg16()), lambda loss: lambda *x: (loss(*x), np.zeros_like(x[0]))
    return small, lambda loss: jax.jit(value_and_gradient(loss))


@pytest.mark.parametrize("options", [SMALL, pytest.param(None, marks=slow)], ids=["small", "vgg16"])
def test_padded_batch(options):
    """Each image has the value and the gradient that it has alone, whatever lies beyond it."""
    loss, of = by_both(options)
    images = [pair(*size, 3) for size in ((33, 20), (20, 31))]
    (a, sizes), (b, _) = (jax_msssim.pad_images(x, multiple=16) for x in zip(*images, strict=True))
    for i, (height, width) in enumerate(sizes):
        a[i, height:], a[i, :, width:], b[i, height:], b[i, :, width:] = np.nan, np.inf, -1, np.nan
    values, gradient = of(lambda a, b, sizes: loss(a, b, sizes=sizes))(a, b, sizes)
    for i, (height, width) in enumerate(sizes):
        value, expected = of(loss)(*images[i])
        np.testing.assert_allclose(values[i], value, rtol=1e-5)
        np.testing.assert_allclose(gradient[i, :height, :width], expected, rtol=0, atol=1e-4 * abs(expected).max())
        assert np.count_nonzero(gradient[i]) == np.count_nonzero(gradient[i, :height, :width])


@slow
@pytest.mark.parametrize("options", [SMALL, None], ids=["small", "vgg16"])
def test_masked_rectangle(options):
    loss, of = by_both(options)
    a, b = pair(2, 48, 40, 3)
    where = np.zeros(a.shape, bool)
    where[0, 16:43, 16:37] = True  # and nothing of the second
    where[0, 20, 20, 1] = False  # a channel, hence the pixel
    inside = where.all(-1, keepdims=True)
    function = of(lambda a, b, where: loss(a, b, where=where))
    values, gradient = function(np.where(where, a, np.nan), b, where)
    a, b, kept = (x[0, 16:43, 16:37] for x in (a, b, inside))
    value, expected = function(a, b, kept)
    np.testing.assert_allclose(values, [value, np.nan], rtol=1e-5)
    np.testing.assert_allclose(gradient[0, 16:43, 16:37], expected, rtol=0, atol=1e-4 * abs(expected).max())
    assert not gradient[~np.broadcast_to(inside, gradient.shape)].any()


def test_images_stay_upright_in_a_test_set():
    # A network tells rows from columns.
    pairs = [pair(*size, 3) for size in ((20, 31), (31, 20))]
    expected = [small(*images) for images in pairs]
    assert abs(expected[1] - small(*(x.swapaxes(0, 1) for x in pairs[1]))) > 1e-4
    for got in (jax_msssim.evaluate(dists_loss, pairs, **SMALL), jax_msssim.evaluate(small, pairs)):
        np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_arrays_are_free_after_the_call():
    a, b = pair(2, 12, 13, 3)
    options = {"where": a < 0.9, "sizes": np.array([[12, 9], [8, 13]]), "max_val": np.array([1.0, 0.9])}
    assert_free_after(small, a, b, **options)
    assert_free_after(lambda x, y, where: feature_terms(x, y, where=where), a, b, where=a < 0.9)


def test_sharded_batch(mesh):
    images = pair(8, 16, 18, 3)
    got, collectives = run(value_and_gradient(small), *over_batch(mesh, *images))
    assert collectives == set()
    assert stays_over_batch(mesh, got)
    # Of the mean that is the loss, and of nothing else.
    step = jax.value_and_grad(lambda a, b: small(a, b).mean())
    (mean, gradient), collectives = run(step, *over_batch(mesh, *images))
    assert collectives == {"all-reduce"}
    values, of_each = jax.device_get(jax.jit(value_and_gradient(small))(*images))
    np.testing.assert_allclose([got[0], [mean] * 8], [values, [values.mean()] * 8], rtol=1e-6)
    assert relative(got[1], of_each) < 1e-5
    assert relative(8 * np.asarray(gradient), of_each) < 1e-5


@slow
def test_sharded_vgg16(eight_devices):
    for mesh in meshes(batch=8):
        with jax.set_mesh(mesh):
            images, network = over_batch(mesh, *pair(8, 16, 18, 3)), vgg16()
            got, collectives = run(value_and_gradient(functools.partial(dists_loss, network=network)), *images)
        assert collectives == set()
        assert stays_over_batch(mesh, got)


@pytest.mark.parametrize("options", [SMALL, pytest.param(None, marks=slow)], ids=["small", "vgg16"])
def test_export(options):
    pytest.importorskip("flatbuffers")
    loss = jax.jit(functools.partial(dists_loss, **options or {"network": vgg16()}))
    image = jax.ShapeDtypeStruct(export.symbolic_shape("batch, 16, 18, 3"), jnp.float32)
    program = export.deserialize(export.export(loss, platforms=("cpu", "cuda", "tpu"))(image, image).serialize())
    images = pair(2, 16, 18, 3)
    np.testing.assert_allclose(program.call(*images), loss(*images), rtol=1e-5)


# --- the network ----------------------------------------------------------------------------------------------


def renamed(pattern):
    return {pattern.format(*name.split(".", 1)[1].rsplit(".", 1)): x for name, x in formulas.torch_arrays().items()}


def assert_converted(network):
    kernels, biases = formulas.kernels_and_biases()
    for got, expected in zip([*network.kernels, *network.biases], [*kernels, *biases], strict=True):
        np.testing.assert_array_equal(got[...], expected.astype(np.float32))


@pytest.mark.parametrize("pattern", ["features.{}.{}", "module.vgg.features.{}.{}", "{}.{}", "stage1.{}.{}"])
def test_names(pattern):
    others = {"classifier.0.weight": np.ones((2, 2)), "head.fc.bias": np.ones(2), "stage2.L2pooling.filter": np.ones(1)}
    assert_converted(VGG16.from_torch(renamed(pattern) | others))


@pytest.mark.parametrize("kind", ["npz", "safetensors", "torch"])
def test_files(kind, tmp_path):
    arrays, path = formulas.torch_arrays(), tmp_path / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
        with np.load(path) as file:
            assert_converted(VGG16.from_torch(file))
    elif kind == "safetensors":
        safetensors = pytest.importorskip("safetensors.numpy")
        safetensors.save_file({name: np.ascontiguousarray(x) for name, x in arrays.items()}, path)
        assert_converted(VGG16.from_torch(safetensors.load_file(path)))
    else:
        torch = pytest.importorskip("torch")
        assert_converted(VGG16.from_torch({name: torch.tensor(x) for name, x in arrays.items()}))


def with_arrays(but=(), **others):
    """Arrays of the right shapes, but for some."""
    shapes = {}
    for place, inputs, outputs in zip(formulas.PLACES, formulas.CHANNELS, formulas.CHANNELS[1:], strict=False):
        shapes |= {f"features.{place}.weight": (outputs, inputs, 3, 3), f"features.{place}.bias": (outputs,)}
    arrays = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items() if name not in but}
    return arrays | {name.replace("_", "."): x for name, x in others.items()}


A = np.zeros((16, 17, 3), np.float32)
NAMES = globals() | {"jnp": jnp, "np": np}


@calls(
    ("VGG16.from_torch({})", ValueError, "weights must hold features.0.weight, of shape [64, 3, 3, 3]", "vgg16_bn"),
    ("VGG16.from_torch(with_arrays(['features.28.bias']))", ValueError, "weights must hold features.28.bias"),
    (
        "VGG16.from_torch(with_arrays(features_7_bias=np.ones(64)))",
        ValueError,
        "weights['features.7.bias'] must",
        "28]",
    ),
    (
        "VGG16.from_torch(with_arrays(x_features_7_bias=np.ones(128)))",
        ValueError,
        "weights holds features.7.bias twice",
    ),
    (
        "VGG16.from_torch({'block1_conv1/kernel:0': 0})",
        ValueError,
        "weights holds 'block1_conv1",
        "Keras",
        "torchvision",
    ),
    ("vgg16()(A[..., :1])", ValueError, "images must have shape [..., H, W, 3]", "[16, 17, 1]", "jnp.repeat"),
    ("vgg16()(A.astype(np.uint8))", TypeError, "images must be floating", "uint8"),
)
def test_refused_by_the_network(row):
    check(*row, names=NAMES)


@calls(
    ("dists_loss(A, A[:15], **SMALL)", ValueError, "predictions and targets must have the same shape", "[15, 17, 3]"),
    ("dists_loss(A[0], A[0], **SMALL)", ValueError, "predictions must have shape"),
    ("dists_loss(A.astype(int), A.astype(int), **SMALL)", ValueError, "max_val must be given for predictions"),
    ("dists_loss(A, A, data_range=1, **SMALL)", TypeError, "dists_loss() got an unexpected keyword", "Pass max_val"),
    ("dists_loss(A, A, 1.0, **SMALL)", TypeError, "dists_loss() takes 2 positional arguments"),
    ("dists_loss(A, A, **SMALL, where=A)", TypeError, "where must be boolean"),
    ("dists_loss(A, A, **SMALL, sizes=np.array([16, 18]))", ValueError, "sizes must be at least [1, 1]"),
    ("dists_loss(A, A, network='vgg.npz')", TypeError, "network must be a function of images", "got str"),
    ("dists_loss(A, A, network=two_maps)", ValueError, "weights must hold", "[3, 4] channels", "DISTS_WEIGHTS"),
    ("dists_loss(A, A, network=lambda x: x)", TypeError, "network must return a list or tuple of feature maps"),
    ("dists_loss(A, A, network=lambda x: [x], where=A > 0)", TypeError, "network must take where="),
    (
        "dists_from_features([A], [A, A], weights=ONES)",
        ValueError,
        "features_a, features_b and where must hold",
        "1, 2",
    ),
    ("dists_from_features([], [], weights=([], []))", ValueError, "features_a, features_b and where must hold"),
    ("dists_from_features([A], [A[1:]], weights=ONES)", ValueError, "features_a[0] and features_b[0] must have the"),
    ("dists_from_features([A], [A[0]], weights=ONES)", ValueError, "features_b[0] must have shape"),
    ("dists_from_features([A, A[None]], [A, A[None]], weights=ONES)", ValueError, "features_a must be of one batch"),
    ("dists_from_features([A], [A], weights=np.ones(3))", TypeError, "weights must be a pair (alpha, beta)"),
    (
        "dists_from_features([A], [A], weights=([-np.ones(3)], [np.ones(3)]))",
        ValueError,
        "weights must be finite and n",
    ),
    ("dists_from_features([A], [A], weights=([np.zeros(3)],) * 2)", ValueError, "weights must not all be 0"),
    ("feature_terms(A, A, c1=0)", ValueError, "c1 must be above 0"),
    ("feature_terms(A, A, where=A[..., :2] > 0)", ValueError, "where must have the images' rank"),
    ("DISTS(network=two_maps, where=A > 0)", TypeError, "DISTS() got an unexpected keyword", "argument of update"),
    ("DISTS(network=two_maps, max_val=np.ones(2))", TypeError, "max_val must be one number"),
)
def test_refused(row):
    check(*row, names=NAMES)


def test_signatures():
    images, constants = dict.fromkeys(("max_val", "where", "sizes")), {"c1": 1e-6, "c2": 1e-6, "where": None}
    network, weights = {"network": inspect.Parameter.empty}, {"weights": inspect.Parameter.empty}
    assert parameters(dists_loss) == (["predictions", "targets"], network | {"weights": DISTS_WEIGHTS} | images)
    assert parameters(feature_terms) == (["a", "b"], constants)
    assert parameters(dists_from_features) == (["features_a", "features_b"], weights | constants)


def test_an_optimizer_leaves_the_network_alone():
    assert jax.tree.leaves(nnx.state(vgg16(), nnx.Param)) == []
    assert len(jax.tree.leaves(nnx.state(vgg16()))) == 26


# --- the metric -----------------------------------------------------------------------------------------------


def test_metric():
    a, b = pair(3, 12, 13, 3)
    mask, sizes = np.array([True, True, False]), np.array([[12, 9], [8, 13], [12, 13]])
    metrics = nnx.MultiMetric(dists=DISTS(**SMALL, max_val=1), ssim=SSIM(filter_size=3))

    @nnx.jit
    def update(metrics, a, b, mask, sizes):
        metrics.update(predictions=a, targets=b, mask=mask, sizes=sizes, labels=None)

    update(metrics, a, b, mask, sizes)
    np.testing.assert_allclose(metrics.compute()["dists"], small(a, b, sizes=sizes)[:2].mean(), rtol=1e-6)
    other = DISTS(**SMALL)
    with pytest.raises(ValueError, match=r"max_val is 1.0, not None"):
        other.merge(metrics.dists)
    other = DISTS(**SMALL, max_val=1.0)
    other.merge(metrics.dists)
    assert other.compute() == metrics.dists.compute()


@slow
def test_metric_of_a_module():
    """Its network is an argument of a compiled update, not a constant in it."""
    a, b = pair(2, 16, 16, 3)
    metric = DISTS(network=vgg16())
    nnx.jit(lambda metric: metric.update(predictions=a, targets=b))(metric)
    np.testing.assert_allclose(metric.compute(), dists_loss(a, b, network=vgg16()).mean(), rtol=1e-5)
    state = nnx.state(metric, nnx.metrics.MetricState)
    assert len(jax.tree.leaves(state)) == 4  # total, compensation, count, rounds: none of the network


# --- the machine ----------------------------------------------------------------------------------------------

OFFLINE = """
import sys

def refuse(event, arguments):
    if event.startswith("socket."):
        raise RuntimeError(event)

sys.addaudithook(refuse)
import numpy as np
import jax_msssim
assert "flax" not in sys.modules and "jax_msssim.deep" not in sys.modules
from jax_msssim.deep import DISTS_WEIGHTS, VGG16, dists_loss
from jax_msssim.nnx import DISTS
x = np.zeros((8, 8, 3), np.float32)
weights = tuple(of_maps[:1] for of_maps in DISTS_WEIGHTS)
metric = DISTS(network=lambda x: [x], weights=weights)
metric.update(predictions=x, targets=x)
print(dists_loss(x, x, network=lambda x: [x], weights=weights), metric.compute())
"""


def test_offline_and_without_flax():
    # In processes of their own: where sockets are refused, and where Flax cannot be imported.
    process = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=False)
    assert process.stdout.split() == ["0.0", "0.0"], process.stderr
    program = "import sys; sys.modules['flax'] = None; import jax_msssim; import jax_msssim.deep"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: jax_msssim.deep needs Flax" in process.stderr
