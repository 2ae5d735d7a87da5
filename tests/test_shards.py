"""Images cut along their first spatial axis: each device computes its own lines, and few of others move there."""

import functools
import re

import jax
import numpy as np
import pytest
from functions import assert_same, function_of, pair, slow, total
from images import random_pair
from jax.sharding import AxisType, NamedSharding
from test_other_platforms import program_of
from test_sharding import COLLECTIVES, value_and_gradients

from jax_msssim import fit_power_factors, ms_ssim, ssim, ssim_map

# Float32 sums in another order; a gradient sums hundreds of such terms.
VALUE, GRADIENT = 1e-6, 1e-5
LINES, BOTH = jax.P(None, "space"), jax.P("batch", "space")
THREE_SCALES = {"power_factors": (0.2, 0.3, 0.5)}
SIZES = np.array([[17, 20], [31, 13], [32, 20], [30, 15]], np.int32)  # of four images of 32x20
RNG = np.random.default_rng(0)
HOLES = RNG.random((4, 32, 20, 1)) > 0.03
MORE_HOLES = RNG.random((4, 480, 6, 1)) > 0.03
LAST_SHARD_EMPTY = np.arange(32).reshape(1, 32, 1, 1) < np.full((4, 1, 1, 1), 21)

pytestmark = pytest.mark.usefixtures("eight_devices")


def explicit(**axes):
    """A mesh of the first devices."""
    return jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(AxisType.Explicit,) * len(axes))


def put(mesh, spec, *arrays):
    return jax.device_put(arrays, NamedSharding(mesh, spec))


def compiled(function, *arrays, **options):
    """What a function of sharded arrays returns, and the text of its program."""
    program = jax.jit(function).lower(*arrays, **options).compile()
    return program(*arrays, **options), program.as_text()


CUT = {"space": 4}
EVEN = ((0.1, 0.4, 0.3, 0.2), (0.05, 0.3, 0.4, 0.15, 0.1))
quick = pytest.param
CASES = [
    # function, its options, shape of the images, mesh, how they lie on it, and arrays of options
    quick("ssim", {"filter_size": 5, "padding": "same"}, (2, 32, 20, 2), CUT, LINES, {}, id="zeros around"),
    quick("ms_ssim", {}, (2, 32, 20, 1), {"batch": 2, "space": 4}, jax.P("batch", "space"), {}, id="batch, too"),
    slow("ssim", {"filter_size": 5, "padding": "reflect"}, (2, 32, 20, 2), CUT, LINES, {}, id="reflect"),
    slow("ms_ssim", {"filter_size": 7}, (1, 16, 20, 1), {"space": 8}, LINES, {}, id="shards shorter than the window"),
    slow("ssim", {"filter_size": 7, "padding": "reflect"}, (1, 8, 9, 1), {"space": 8}, LINES, {}, id="one line each"),
    slow("ssim", {}, (1, 36, 20, 1), CUT, LINES, {}, id="odd shards"),
    slow("ssim", {}, (1, 32, 20, 1), {"y": 2, "x": 4}, jax.P(None, ("y", "x")), {}, id="over two axes"),
    slow("ssim", {"spatial_ndim": 3}, (1, 16, 10, 9, 1), CUT, LINES, {}, id="volumes"),
    slow("ms_ssim_db", {"spatial_ndim": 1} | THREE_SCALES, (3, 64, 2), CUT, LINES, {}, id="signals"),
    slow("ms_ssim_terms", {}, (2, 32, 20, 2), CUT, LINES, {}, id="terms"),
    slow("ssim_l1_loss", {}, (4, 32, 20, 1), CUT, LINES, {"where": HOLES}, id="L1 and a mask"),
    slow("single_resolution", {}, (4, 32, 20, 1), CUT, LINES, {"sizes": SIZES}, id="single resolution"),
    slow("ms_ssim", {}, (4, 32, 20, 1), CUT, LINES, {"where": LAST_SHARD_EMPTY}, id="nothing counts in a shard"),
    *(
        slow("ms_ssim", {"downsample": rule, "padding": padding}, (4, 32, 20, 1), CUT, LINES, {"sizes": SIZES})
        for rule, padding in (("floor", "symmetric"), ("zero", "same"), ("edge_start", "reflect"))
    ),
    slow("ms_ssim", {"downsample": "start", "padding": "edge"}, (4, 32, 20, 1), CUT, LINES, {"sizes": SIZES}),
    slow("ssim", {"window": EVEN, "padding": "edge"}, (1, 8, 9, 1), {"space": 8}, LINES, {}, id="even, one line each"),
    slow("ssim", {"window": EVEN, "padding": "same"}, (2, 32, 20, 2), CUT, LINES, {}, id="even"),
    slow("ms_ssim", {"window": EVEN, "downsample": "start"}, (2, 32, 20, 2), CUT, LINES, {}, id="start"),
    slow("ms_ssim", {}, (1, 640, 12, 1), CUT, LINES, {}, id="blocks of rows"),
    slow(
        "ms_ssim", {"min_coverage": 0.5}, (4, 480, 6, 1), CUT, LINES, {"where": np.tile(HOLES, (1, 15, 1, 1))[:, :, :6]}
    ),
    slow("ssim_loss", {"implementation": "conv"}, (4, 32, 20, 1), CUT, LINES, {"where": HOLES}, id="conv"),
    slow("ssim_loss", {"implementation": "matmul"}, (2, 32, 20, 2), CUT, LINES, {}, id="matmul"),
]


@pytest.mark.parametrize(("name", "options", "shape", "axes", "spec", "arrays"), CASES)
def test_as_on_one_device(name, options, shape, axes, spec, arrays):
    a, b = (np.array(x) for x in pair(*shape))
    for i, (height, width) in enumerate(arrays.get("sizes", ())):
        a[i, height:], b[i, :, width:] = np.nan, np.inf
    function = value_and_gradients(function_of(name, **options))
    expected = jax.jit(function)(a, b, **arrays)
    mesh = explicit(**axes)
    with jax.set_mesh(mesh):
        got, text = compiled(function, *put(mesh, spec, a, b), **arrays)
    assert set(COLLECTIVES.findall(text)) <= {"collective-permute", "all-reduce"}
    lies = [(x, spec) for x in got[1]] + [(x, jax.P(*spec[:1])) for x in jax.tree.leaves(got[0])]
    assert all(x.sharding.is_equivalent_to(NamedSharding(mesh, along), x.ndim) for x, along in lies)
    for x, y, tolerance in zip(got, expected, (VALUE, GRADIENT), strict=True):
        assert_same(jax.device_get(x), jax.device_get(y), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("platform", [None, "tpu"])
def test_programs_of_other_platforms(platform):
    function, images = value_and_gradients(function_of("ms_ssim", max_val=2.0)), pair(2, 32, 20, 1)
    expected = jax.device_get(jax.jit(function)(*images))
    mesh = explicit(space=4)
    with program_of(platform), jax.set_mesh(mesh):
        got, _ = compiled(function, *put(mesh, LINES, *images))
    # Those by matrices take variances as differences, of numbers below 1.
    for x, y, tolerance in zip(got, expected, (VALUE, GRADIENT), strict=True):
        assert_same(jax.device_get(x), y, tolerance)


# --- what moves -------------------------------------------------------------------------------------------------

BYTES = {"f32": 4, "s32": 4, "pred": 1}


def received(text):
    """Bytes that a device receives: of a sum twice its size. No collective lies in a loop."""
    pattern = re.compile(rf"= ([^=]*?) ({COLLECTIVES.pattern})(?:-start)?\(")
    found = pattern.findall(text)
    assert found == pattern.findall(text[text.index("\nENTRY ") :])
    total_bytes = 0
    for shapes, name in found:
        for kind, dims in re.findall(r"(\w+)\[([\d,]*)\]", shapes):
            size = BYTES[kind] * np.prod([int(n) for n in dims.split(",") if n], dtype=int)
            total_bytes += size * (2 if name == "all-reduce" else 1)
    return total_bytes


VOLUME = {"spatial_ndim": 3, "power_factors": fit_power_factors((128,) * 3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "shape", "wrt", "most"),
    [
        (ssim, (1, 2048, 2048, 3), (0, 1), 2**20),
        (ms_ssim, (1, 2048, 2048, 3), (0, 1), 2 * 2**20),
        (functools.partial(ssim, spatial_ndim=3), (1, 128, 128, 128, 1), (0,), 2 * 2**20),
        (functools.partial(ms_ssim, **VOLUME), (1, 128, 128, 128, 1), (0,), 2.5 * 2**20),
    ],
)
def test_only_lines_move(function, shape, wrt, most):
    images = [x.astype(np.float32) for x in random_pair(shape)]
    of_sum = jax.value_and_grad(lambda *images: function(*images).sum(), wrt)
    expected = jax.jit(of_sum)(*images)
    mesh = explicit(space=8)
    with jax.set_mesh(mesh):
        got, text = compiled(of_sum, *put(mesh, LINES, *images))
    assert set(COLLECTIVES.findall(text)) == {"collective-permute", "all-reduce"}
    assert received(text) <= most
    for x, y, tolerance in zip(got, expected, (VALUE, GRADIENT), strict=True):
        assert_same(jax.device_get(x), jax.device_get(y), tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("axes", [None, "space"])
def test_automatic_mesh(axes):
    # The line of the guide; with a batch that stays automatic, too.
    mesh = jax.make_mesh((2, 4), ("batch", "space"), axis_types=(AxisType.Auto,) * 2)
    spec = BOTH
    images, function = pair(2, 32, 20, 2), function_of("ssim")
    explicit_function = jax.sharding.explicit_axes(
        function, axes=axes, in_sharding=(LINES if axes else spec, LINES if axes else spec)
    )
    loss = jax.value_and_grad(lambda function, a, b: total(function)(a, b), 1)
    with jax.set_mesh(mesh):
        got, text = compiled(functools.partial(loss, explicit_function), *put(mesh, spec, *images))
    assert set(COLLECTIVES.findall(text)) == {"collective-permute", "all-reduce"}
    expected = jax.jit(functools.partial(loss, function))(*images)
    assert_same(jax.device_get(got), jax.device_get(expected), GRADIENT)


@pytest.mark.slow
@pytest.mark.skipif(jax.__version_info__ < (0, 9), reason="JAX cannot map a shard_map over an axis of the mesh")
def test_vmap_and_second_derivatives():
    a, b = pair(4, 16, 10, 1)
    function = function_of("ssim")
    mapped = jax.vmap(lambda a, b: jax.jvp(jax.grad(function), (a, b), (b, a)))
    expected = jax.jit(mapped)(a, b)
    mesh = explicit(batch=2, space=2, model=2)  # along the last the images are the same
    with jax.set_mesh(mesh):
        got, _ = compiled(mapped, *put(mesh, BOTH, a, b))
    assert_same(jax.device_get(got), jax.device_get(expected), GRADIENT)


@pytest.mark.parametrize("other", ["whole", "over the batch", "of NumPy"])
def test_outside_jit_and_beside_other_images(other):
    mesh = explicit(batch=2, space=4)
    a, b = pair(4, 16, 10, 1)
    (cut,) = put(mesh, BOTH, a)
    (beside,) = (np.asarray(b),) if other == "of NumPy" else put(mesh, jax.P("batch" if "batch" in other else None), b)
    max_val = np.linspace(1, 2, 4)
    got = ssim(cut, beside, filter_size=3, max_val=max_val)
    assert_same(jax.device_get(got), jax.device_get(ssim(a, b, filter_size=3, max_val=max_val)), VALUE)


# --- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["W", "C"])
def test_other_axes(axis, implementation):
    mesh = explicit(space=4)
    spec = {"W": jax.P(None, None, "space"), "C": jax.P(None, None, None, "space")}[axis]
    a, b = pair(4, 16, 16, 4)
    message = rf"@space.* sharded along {axis}\b.*reshard\(x, jax.P\(None\)\), or cut along H by jax.P\(None, 'space'\)"
    (cut,) = put(mesh, spec, a)
    for images in ((cut, b), (b, cut)):
        with pytest.raises(ValueError, match=message):
            ssim(*images, filter_size=3, implementation=implementation)


def test_networks():
    pytest.importorskip("flax")
    from jax_msssim import deep

    mesh = explicit(space=4)
    (cut,), message = (
        put(mesh, LINES, pair(2, 16, 16, 1)[0]),
        "sharded along H over 'space', and a {} needs whole images",
    )
    with pytest.raises(ValueError, match=message.format("network")):
        deep.dists_loss(cut, cut, network=lambda x: [x])
    with pytest.raises(ValueError, match=message.format("mean of maps")):
        deep.feature_terms(cut, cut)


def test_maps():
    mesh = explicit(space=4)
    a, b = pair(2, 16, 16, 1)
    cut, whole = (*put(mesh, LINES, a), *put(mesh, jax.P(), b))
    for images in ((cut, whole), (whole, cut)):
        with pytest.raises(
            ValueError, match=r"sharded along H over .space., and a map .* jax.sharding.reshard\(x, jax.P\(None\)\)"
        ):
            ssim_map(*images, filter_size=3)
    resharded = jax.sharding.reshard(cut, NamedSharding(mesh, jax.P(None)))
    got = ssim_map(resharded, whole, filter_size=3)
    assert_same(jax.device_get(got), jax.device_get(ssim_map(a, b, filter_size=3)), VALUE)


def test_shards_that_cannot_be_halved():
    # The message says how to pad, and what it says has the value of the image alone.
    a, b = (np.asarray(x) for x in pair(1, 36, 20, 1))
    mesh = explicit(space=4)
    options = {"filter_size": 3, "power_factors": (0.5, 0.5)}
    with pytest.raises(
        ValueError, match=r"4 shards of 9 lines, and for 2 scales .* of 2. Pad H from 36 to 40 and pass s"
    ):
        ms_ssim(*put(mesh, LINES, a, b), **options)
    longer = put(mesh, LINES, *(np.pad(x, ((0, 0), (0, 4), (0, 0), (0, 0))) for x in (a, b)))
    got = ms_ssim(*longer, sizes=np.array([[36, 20]]), **options)
    assert_same(jax.device_get(got), jax.device_get(ms_ssim(a, b, **options)), VALUE)
