"""The metrics of Flax NNX: the mean over every image seen, under everything Flax and JAX do with a metric."""

import doctest
import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, serialization
from flax.training import train_state
from images import random_pair
from jax.sharding import AxisType
from test_api import KEYWORDS, parameters
from test_buffers import assert_free_after
from test_checks import calls, check
from test_sharding import over_batch

import jax_msssim
from jax_msssim.nnx import DISTS, DSSIM, MSSSIM, SSIM

SMALL = {"filter_size": 3}
TWO_SCALES = {"filter_size": 3, "power_factors": (0.4, 0.6)}
METRICS = [(SSIM, "ssim", SMALL), (MSSSIM, "ms_ssim", TWO_SCALES), (DSSIM, "dssim_loss", SMALL)]
# A float32 mean of numbers below 1, and the same number computed in another order.
FLOAT32 = {"rtol": 0, "atol": 2e-7}


def pair(*batch, seed=0):
    return tuple(x.astype(np.float32) for x in random_pair((*batch, 6, 7, 2), seed))


def ssim_of(a, b, **options):
    return np.asarray(jax_msssim.ssim(a, b, **SMALL, **options), np.float64)


# --- values -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric_class", "like", "options"), METRICS)
def test_mean_over_all_images(metric_class, like, options):
    metric, values, function = metric_class(**options), [], getattr(jax_msssim, like)
    for seed, batch in enumerate([(3,), (), (3,)]):
        a, b = pair(*batch, seed=seed)
        metric.update(predictions=a, targets=b)
        values += np.ravel(function(a, b, **options)).tolist()
    assert metric.count[...] == len(values)
    assert metric.compute().dtype == jnp.float32
    np.testing.assert_allclose(metric.compute(), np.mean(values), **FLOAT32)


def test_empty_and_reset():
    metric, (a, b) = SSIM(**SMALL), pair(3)
    assert np.isnan(metric.compute())
    metric.update(predictions=a, targets=a * np.nan)
    metric.reset()
    assert np.isnan(metric.compute())
    metric.update(predictions=a, targets=b)
    np.testing.assert_allclose(metric.compute(), ssim_of(a, b).mean(), **FLOAT32)


def test_options_reach_the_function():
    a, b = (np.round(255 * x).astype(np.uint8) for x in pair(3))
    options = {"window": jax_msssim.uniform_window(3), "padding": ("valid", "same"), "max_val": np.float32(200)}
    options |= {"power_factors": np.array([0.3, 0.7]), "channel_mean": "before", "covariance": "sample"}
    metric = MSSSIM(**options)
    metric.update(predictions=a, targets=b)
    np.testing.assert_allclose(metric.compute(), jax_msssim.ms_ssim(a, b, **options).mean(), **FLOAT32)


def test_arrays_are_free_after_an_update():
    def mean(predictions, targets, **options):
        metric = SSIM(**SMALL, min_coverage=0.1)
        metric.update(predictions=predictions, targets=targets, **options)
        return metric.compute()

    (a, b), mask, sizes = pair(3), np.array([True, False, True]), np.array([[6, 5], [5, 7], [6, 7]])
    assert_free_after(mean, a, b, where=a < 0.9, sizes=sizes, mask=mask)


def test_mask_leaves_images_out():
    a, b = pair(2, 2)
    mask = np.array([[True, False], [True, True]])
    metric = SSIM(**SMALL)
    metric.update(predictions=np.where(mask[..., None, None, None], a, np.nan), targets=b, mask=mask)
    metric.update(predictions=a * np.nan, targets=b, mask=np.zeros_like(mask))
    assert metric.count[...] == 3
    np.testing.assert_allclose(metric.compute(), ssim_of(a, b)[mask].mean(), **FLOAT32)


def test_where_leaves_pixels_out():
    a, b = pair(3)
    where = np.ones((3, 6, 7, 1), bool)
    where[:, :, 5:], where[0] = False, False  # the first image has no value
    metric, images = SSIM(**SMALL), {"predictions": np.where(where, a, np.nan), "targets": b, "where": where}
    metric.update(**images, mask=where.any((1, 2, 3)))
    np.testing.assert_allclose(metric.compute(), ssim_of(a[1:, :, :5], b[1:, :, :5]).mean(), **FLOAT32)
    metric.update(**images)
    assert np.isnan(metric.compute())


def test_sizes_leave_padding_out():
    a, b = pair(2)
    padded = np.pad(a, [(0, 0), (0, 3), (0, 2), (0, 0)], constant_values=np.nan)
    metric = SSIM(**SMALL)
    metric.update(predictions=padded, targets=np.nan_to_num(padded), sizes=np.array([a.shape[1:3]] * 2))
    metric.update(predictions=padded[:, :6, :7], targets=b)
    np.testing.assert_allclose(metric.compute(), (1 + ssim_of(a, b).mean()) / 2, **FLOAT32)


def tenths(n):
    """``n`` pairs of images of one pixel, whose SSIM is about 0.1; a window of one tap makes it cheap."""
    a = np.random.default_rng(0).uniform(0.04, 0.06, (n, 1, 1, 1)).astype(np.float32)
    return a, np.ones_like(a)


@pytest.mark.parametrize("batches", [1, 1000])
def test_a_million_values(batches):
    a, b = tenths(1_000_000)
    mean = math.fsum(np.asarray(jax_msssim.ssim(a, b, filter_size=1))) / len(a)

    def update(metric, images):
        metric.update(predictions=images[0], targets=images[1])
        return metric, None

    images = jax.tree.map(lambda x: x.reshape(batches, -1, 1, 1, 1), (a, b))
    metric, _ = jax.jit(lambda metric: jax.lax.scan(update, metric, images))(SSIM(filter_size=1))
    assert metric.count[...] == 1_000_000
    # Half a unit in the last place of 0.1 is 4e-9, and of the quotient another; a sum in float32 is off by 1e-7.
    np.testing.assert_allclose(metric.compute(), mean, rtol=0, atol=8e-9)


def test_count_is_exact_beyond_float32():
    metric, (a, b) = SSIM(filter_size=1), tenths(3)
    metric.count[...] = jnp.uint32(2**24)
    metric.update(predictions=a, targets=b)
    assert metric.count[...] == 2**24 + 3


def test_as_many_images_as_there_may_be(x64):
    # 2^24 numbers of 24 bits have a sum of 48, the digits of two float32; beyond it each addition rounds off 4e-15.
    # Were the rest a plain sum in float32, the mean would be off by 1e-3.
    one, (a, b) = SSIM(filter_size=1), tenths(1)
    one.update(predictions=a, targets=b)
    value = float(one.compute())

    def merge(metric, _):
        metric.merge(one)
        return metric, None

    metric, _ = jax.jit(lambda metric: jax.lax.scan(merge, metric, length=10_000_000))(SSIM(filter_size=1))
    assert metric.count[...] == 10_000_000
    np.testing.assert_allclose(metric.compute(), value, rtol=1e-12)

    for _ in range(13):  # doubled, to 8e10 images
        metric.merge(metric)
    np.testing.assert_allclose(metric.compute(), value, rtol=1e-12)


@pytest.mark.parametrize("axis_type", [None, AxisType.Auto, AxisType.Explicit], ids=str)
def test_no_silent_transfers(axis_type, eight_devices):
    # An evaluation loop with images on the devices, as far as it runs more than once.
    images = jax.device_put(pair(8))
    if axis_type is not None:
        images = over_batch(jax.make_mesh((8,), ("batch",), axis_types=(axis_type,)), *images)
    metrics = [metric_class(**options) for metric_class, _, options in METRICS]

    def loop():
        for metric in metrics:
            metric.reset()
            metric.update(predictions=images[0], targets=images[1])
        losses = jax_msssim.ssim_l1_loss(*images, **SMALL), jax_msssim.ms_ssim_loss(*images, **TWO_SCALES)
        return losses, [metric.compute() for metric in metrics]

    expected = loop()
    with jax.transfer_guard("disallow"):
        got = loop()
    assert jax.tree.map(np.array_equal, got, expected) == jax.tree.map(lambda x: True, expected)


@pytest.mark.slow
def test_float64(x64):
    metric, values = SSIM(**SMALL), []
    for seed in range(20):
        a, b = random_pair((5, 6, 7, 2), seed)
        metric.update(predictions=a, targets=b, mask=np.ones(5, bool))
        values += jax_msssim.ssim(a, b, **SMALL).tolist()
    assert [x.dtype.name for x in jax.tree.leaves(metric)] == ["float32", "uint32", "uint32", "float32"]
    assert metric.compute().dtype == jnp.float64
    # The state has twice 24 bits: 2^-48 is 4e-15, a hundred times.
    np.testing.assert_allclose(metric.compute(), math.fsum(values) / 100, rtol=4e-13)


# --- beside others, and under transformations ---------------------------------------------------------------


@jax.numpy_dtype_promotion("standard")  # Accuracy adds an integer
def test_in_a_multi_metric():
    a, b = pair(3)
    mask = np.array([True, True, False])
    a[2] = np.nan
    others = {"logits": np.eye(3, dtype=np.float32), "labels": np.array([0, 0, 0]), "loss": np.arange(3.0)}
    metrics = nnx.MultiMetric(
        ssim=SSIM(**SMALL), dssim=DSSIM(**SMALL), accuracy=nnx.metrics.Accuracy(), loss=nnx.metrics.Average("loss")
    )
    metrics.update(predictions=a, targets=b, mask=mask, **others)
    got = metrics.compute()
    np.testing.assert_allclose(got["ssim"], ssim_of(a, b)[:2].mean(), **FLOAT32)
    np.testing.assert_allclose(got["dssim"], (1 - got["ssim"]) / 2, **FLOAT32)
    np.testing.assert_allclose([got["accuracy"], got["loss"]], [1 / 2, 1 / 2], rtol=1e-6)
    metrics.reset()
    metrics.update(predictions=a, targets=b, mask={"ssim": mask}, **others)
    assert metrics.loss.count[...] == 3
    assert np.isnan(metrics.compute()["dssim"])
    np.testing.assert_allclose(metrics.compute()["ssim"], got["ssim"], **FLOAT32)


def by_nnx_jit(update, metric, *arguments):
    nnx.jit(update)(metric, *arguments)
    return metric


def by_split(update, metric, *arguments):
    graph, state = nnx.split(metric, nnx.metrics.MetricState)

    @jax.jit
    def step(state, *arguments):
        metric = nnx.merge(graph, state)
        update(metric, *arguments)
        return nnx.state(metric, nnx.metrics.MetricState)

    return nnx.merge(graph, step(state, *arguments))


@pytest.mark.parametrize("transformed", [by_nnx_jit, by_split])
def test_compiled(transformed):
    a, b = pair(3)
    mask = np.array([True, False, True])
    compilations = []

    def update(metric, a, b, mask):
        compilations.append(None)
        metric.update(predictions=a, targets=b, mask=mask)

    metric = SSIM(**SMALL)
    metric.update(predictions=a, targets=b)
    metric = transformed(update, metric, a, b, mask)
    expected = ssim_of(a, b)
    np.testing.assert_allclose(metric.compute(), (expected.sum() + expected[mask].sum()) / 5, **FLOAT32)
    assert len(compilations) == 1


def test_equal_options_share_a_compiled_program():
    a, b = pair(3)
    compilations = []

    @nnx.jit
    def update(metric):
        compilations.append(None)
        metric.update(predictions=a, targets=b)

    power_factors = [0.25, 0.75]
    for spelling in (power_factors, tuple(power_factors), np.array(power_factors), jnp.array(power_factors)):
        metric = MSSSIM(filter_size=np.int64(3), max_val=1, power_factors=spelling)
        update(metric)
        metric.reset()
        update(metric)
    update(MSSSIM(filter_size=3, max_val=np.float32(1), power_factors=power_factors, negative="relu"))
    assert len(compilations) == 1


def test_sharded_batch(mesh):
    a, b = pair(8)
    mask = np.arange(8) < 5
    images = over_batch(mesh, a, b, mask)
    metric = SSIM(**SMALL)
    update = jax.jit(lambda metric, a, b, mask: (metric.update(predictions=a, targets=b, mask=mask), metric)[1])
    text = update.lower(metric, *images).compile().as_text()
    # What moves between devices is a value per image, never an image.
    moved = re.findall(r" = \(?\w+\[([\d,]*)\]\S* (?:all-|collective-|reduce-scatter)", text)
    assert set(moved) <= {"", "8"}
    metric = update(metric, *images)
    metric.update(predictions=images[0], targets=images[1])  # op by op
    metric.update(predictions=images[0], targets=images[1], mask=mask)  # a mask that is on no mesh
    values = ssim_of(a, b)
    np.testing.assert_allclose(metric.compute(), (values.sum() + 2 * values[mask].sum()) / 18, **FLOAT32)


def test_merge():
    (a, b), (c, d) = pair(3), pair(3, seed=1)
    metric, other = SSIM(**SMALL), SSIM(**SMALL)
    metric.update(predictions=a, targets=b)
    other.update(predictions=c, targets=d)
    assert metric.merge(other) is metric.merge(SSIM(**SMALL)) is None  # the last has seen no images
    values = np.concatenate([ssim_of(a, b), ssim_of(c, d)])
    np.testing.assert_allclose(metric.compute(), values.mean(), **FLOAT32)
    np.testing.assert_allclose(other.compute(), values[3:].mean(), **FLOAT32)


def test_merge_keeps_what_was_rounded_off():
    metric, other = SSIM(filter_size=1), SSIM(filter_size=1)
    metric.total[...], other.total[...] = jnp.float32(2**24), jnp.float32(1)
    for _ in range(100):
        metric.merge(other)
    assert metric.total[...] + np.float64(metric.compensation[...]) == 2**24 + 100


# --- errors -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric_class", "like"), [row[:2] for row in METRICS])
def test_signature(metric_class, like):
    # That of the class itself is of Flax's metaclass.
    keywords = {name: default for name, default in KEYWORDS[like].items() if name not in ("where", "sizes")}
    assert parameters(metric_class.__init__) == (["self"], keywords)


UNEXPECTED = "() got an unexpected keyword argument "


@calls(
    ("SSIM(foo=1)", TypeError, f"SSIM{UNEXPECTED}'foo'"),
    ("SSIM(sigma=1.5)", TypeError, f"SSIM{UNEXPECTED}'sigma'", "filter_sigma"),
    ("MSSSIM(weights=(1.0,))", TypeError, f"MSSSIM{UNEXPECTED}'weights'", "power_factors"),
    ("DSSIM(where=None)", TypeError, f"DSSIM{UNEXPECTED}'where'", "argument of update"),
    ("SSIM(power_factors=(1.0,))", TypeError, f"SSIM{UNEXPECTED}'power_factors'"),
    ("SSIM(255)", TypeError, "SSIM", "positional argument"),
    ("SSIM(filter_size=0)", ValueError, "filter_size must be at least 1"),
    ("SSIM(max_val=np.ones(2))", TypeError, "max_val must be one number"),
    ("MSSSIM(power_factors=np.ones((2, 2)))", ValueError, "power_factors must be a sequence of numbers"),
    ("MSSSIM(power_factors=(0.5, -0.5))", ValueError, "power_factors must be finite and not negative"),
    ("MSSSIM(downsample='mean')", ValueError, "downsample must be one of"),
    ("jax.jit(lambda x: MSSSIM(power_factors=x).compute())(np.ones(2))", TypeError, "power_factors must be plain Pyth"),
    ("SSIM().merge(DSSIM())", ValueError, "other must be a SSIM too, got DSSIM"),
    ("SSIM(filter_size=3).merge(SSIM(max_val=2))", ValueError, "other must", "max_val is 2.0, not None", "11, not 3"),
)
def test_errors(row):
    check(*row, names=globals())


def update(**arguments):
    """An update of three images that fails leaves the metric as it was."""
    metric, (a, b) = SSIM(**SMALL), pair(3)
    try:
        metric.update(**({"predictions": a, "targets": b} | arguments))
    finally:
        assert metric.count[...] == 0


@calls(
    ("update(mask=[True, True, False])", TypeError, "mask must be an array, got list"),
    ("update(mask=np.ones(3, np.float32))", TypeError, "mask must be boolean", "float32"),
    ("update(mask=np.ones((3, 1), bool))", ValueError, "mask must have one value per image, shape [3], got [3, 1]"),
    ("update(mask=np.ones((3, 6, 7, 1), bool))", ValueError, "mask must", "passed as where"),
    ("update(targets=np.zeros((3, 6, 6, 2)))", ValueError, "predictions and targets must have the same"),
    ("update(where=np.ones((3, 6, 7, 1)))", TypeError, "where must be boolean"),
)
def test_update_errors(row):
    check(*row, names=globals())


def test_without_flax():
    # In a process of its own, where Flax cannot be imported.
    program = "import sys; sys.modules['flax'] = None; import jax_msssim; import jax_msssim.nnx"
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "ImportError: jax_msssim.nnx needs Flax" in process.stderr
    assert 'pip install "jax_msssim[flax]"' in process.stderr


@pytest.mark.slow  # five scales
@jax.numpy_dtype_promotion("standard")  # clu divides by an integer
def test_clu():  # as the module's docstring says
    pytest.importorskip("clu.metrics")
    (line,) = re.findall(r"^    (\w+ = clu\..*)$", sys.modules[SSIM.__module__].__doc__, re.MULTILINE)
    namespace = {"clu": sys.modules["clu"], "jax_msssim": jax_msssim}
    exec(line, namespace)
    a, b = (x.astype(np.float32) for x in random_pair((2, 176, 176, 1)))
    metric = namespace["MSSSIM"].from_model_output(predictions=a, targets=b, labels=None, mask=np.array([True, False]))
    np.testing.assert_allclose(metric.compute(), jax_msssim.ms_ssim(a, b)[0], **FLOAT32)


def test_linen_train_state():  # and this, too
    namespace = {"nnx": nnx, "__name__": "example"}
    for example in doctest.DocTestParser().get_examples(sys.modules[SSIM.__module__].__doc__):
        exec(example.source, namespace)

    @jax.jit
    def step(state, a, b):
        state.metric.update(predictions=a, targets=b)
        return state

    state = namespace["TrainState"].create(apply_fn=None, params={}, tx=optax.identity(), metric=SSIM(**SMALL))
    a, b = pair(3)
    np.testing.assert_allclose(step(state, a, b).metric.compute(), ssim_of(a, b).mean(), **FLOAT32)


def test_saved_by_flax_serialization():
    class TrainState(train_state.TrainState):
        metric: nnx.Metric

    def create(**parts):
        return TrainState.create(apply_fn=None, params={}, tx=optax.identity(), **parts)

    a, b = pair(3)
    state = create(metric=SSIM(**SMALL))
    state.metric.update(predictions=a, targets=b)
    empty = create(metric=SSIM(**SMALL))
    restored = serialization.from_bytes(empty, serialization.to_bytes(state)).metric
    assert np.isnan(empty.metric.compute())
    restored.update(predictions=a, targets=a)
    expected = (ssim_of(a, b).sum() + 3) / 6
    np.testing.assert_allclose(restored.compute(), expected, **FLOAT32)
    with pytest.raises(ValueError, match="metric"):
        serialization.from_state_dict(empty, serialization.to_state_dict(state) | {"metric": {"total": 1.0}})


def test_network_saved_by_flax_serialization():
    class Network(nnx.Module):
        def __init__(self, scale):
            self.scales = nnx.List([nnx.Param(jnp.float32(scale)), nnx.Param(jnp.float32(1))])

        def __call__(self, images):
            return [scale[...] * images for scale in self.scales]

    weights = [np.ones(2), np.ones(2)], [np.ones(2), np.ones(2)]
    saved, empty = (DISTS(network=Network(scale), weights=weights) for scale in (3, 0))
    a, b = pair(2)
    saved.update(predictions=a, targets=b)
    restored = serialization.from_bytes(empty, serialization.to_bytes(saved))
    assert restored.network.scales[0][...] == 3
    np.testing.assert_array_equal(restored.compute(), saved.compute())
