"""A sharded batch stays where it is, whatever the mesh. Images that are themselves sharded are in test_shards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import KINDS, assert_same, function_of, pair, total
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_msssim import ssim, ssim_loss

COLLECTIVES = re.compile("all-gather|all-reduce|all-to-all|collective-permute|collective-broadcast|reduce-scatter")
SHAPE = (8, 9, 10, 1)
IN_BLOCKS = (8, 150, 12, 1)  # three of them, on a CPU
# Programs for one image and for eight order the same float32 sums otherwise; a gradient sums hundreds of such terms.
VALUE, GRADIENT = 2e-6, 1e-5

pytestmark = pytest.mark.usefixtures("eight_devices")


def over_batch(mesh, *arrays):
    return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec("batch")))


def run(function, *arrays):
    """What a function returns, and the names of the collectives in its program."""
    program = jax.jit(function).lower(*arrays).compile()
    return program(*arrays), set(COLLECTIVES.findall(program.as_text()))


def stays_over_batch(mesh, arrays):
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    return all(x.sharding.is_equivalent_to(sharding, x.ndim) for x in jax.tree.leaves(arrays))


def value_and_gradients(function):
    """Outputs and the gradient of their sum, by both images."""

    def of(*images, **options):
        return function(*images, **options), jax.grad(total(function), (0, 1))(*images, **options)

    return of


def meshes(**axes):
    """A mesh of these axes, of either type."""
    for axis_type in (AxisType.Auto, AxisType.Explicit):
        yield jax.make_mesh(tuple(axes.values()), tuple(axes), axis_types=(axis_type,) * len(axes))


def check(function, *arrays, **axes):
    """The same outputs as without a mesh, on the devices of their images, and nothing moved."""
    expected = jax.device_get(jax.jit(function)(*arrays))
    for mesh in meshes(**axes or {"batch": 8}):
        with jax.set_mesh(mesh):
            got, collectives = run(function, *over_batch(mesh, *arrays))
        assert collectives == set()
        assert stays_over_batch(mesh, got)
        assert_same(jax.device_get(got), expected, GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        # The gradient of "single_resolution" compiles for a minute with the stencil.
        *((name, "conv" if name == "single_resolution" else "stencil") for name in KINDS),
        *((name, kind) for name in ("ssim_map", "ms_ssim") for kind in ("conv", "matmul")),
    ],
)
def test_batch(name, implementation):
    check(value_and_gradients(function_of(name, implementation=implementation)), *pair(*SHAPE))


@pytest.mark.parametrize("name", ["ssim", pytest.param("ms_ssim", marks=pytest.mark.slow)])
def test_blocks_of_rows(name):
    check(value_and_gradients(function_of(name)), *pair(*IN_BLOCKS))


@pytest.mark.parametrize(
    ("name", "implementation"),
    [
        ("ssim_loss", "stencil"),
        *(pytest.param(*cell, marks=pytest.mark.slow) for cell in (("ms_ssim_loss", "stencil"), ("ssim_loss", "conv"))),
    ],
)
def test_what_is_whole_is_cut(name, implementation):
    # One of them lies on every device, and no other array is gathered for it. With a mask, in blocks of rows.
    a, b = pair(*IN_BLOCKS)
    where = np.random.default_rng(2).random(IN_BLOCKS) > 0.02
    function = function_of(name, min_coverage=0.5, implementation=implementation)

    def value_and_gradient(predictions, targets, where):
        loss = function(predictions, targets, where=where)
        return loss, jax.grad(lambda x: function(x, targets, where=where).sum())(predictions)

    expected = jax.device_get(jax.jit(value_and_gradient)(a, b, where))
    for mesh in meshes(batch=8):
        for whole in (1, 2):
            arrays = [*over_batch(mesh, a, b, where)]
            arrays[whole] = jax.device_put(arrays[whole], NamedSharding(mesh, PartitionSpec()))
            with jax.set_mesh(mesh):
                got, collectives = run(value_and_gradient, *arrays)
            assert collectives == set()
            assert stays_over_batch(mesh, got)
            assert_same(jax.device_get(got), expected, GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssim", "ms_ssim_l1_loss"])
def test_vmap_and_a_model_axis(name):
    function = value_and_gradients(function_of(name))
    check(jax.vmap(function), *pair(*SHAPE))
    check(function, *pair(*SHAPE), batch=4, model=2)  # the images are the same along the model axis


def test_max_val_outside_jit(mesh):
    a, b = pair(*SHAPE)
    max_val = jnp.linspace(0.5, 2, 8, dtype=np.float32)
    images = over_batch(mesh, a, b)
    options = {"filter_size": 3}
    for given in (max_val, *over_batch(mesh, max_val)):  # on one device, and sharded
        got = ssim(*images, max_val=given, **options)
        assert stays_over_batch(mesh, got)
        assert_same(jax.device_get(got), jax.device_get(ssim(a, b, max_val=max_val, **options)), VALUE)


@pytest.mark.parametrize("options", [{"where": np.ones(SHAPE, bool)}, {"sizes": np.full((8, 2), 9)}])
def test_images_outside_the_mesh(options, mesh):
    a, b = (np.asarray(x) for x in pair(*SHAPE))
    expected = ssim(a[:, :, :9], b[:, :, :9], filter_size=3) if "sizes" in options else ssim(a, b, filter_size=3)
    assert_same(jax.device_get(ssim(a, b, filter_size=3, **options)), jax.device_get(expected), VALUE)


def test_training_step(mesh):
    # The mean over the batch is the one sum across devices; it must not move the images.
    step = jax.value_and_grad(lambda a, b: ssim_loss(a, b, filter_size=3).mean())
    images = pair(*SHAPE)
    got, collectives = run(step, *over_batch(mesh, *images))
    assert collectives == {"all-reduce"}
    assert_same(jax.device_get(got), jax.device_get(step(*images)), GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ssim_map", "ssim_l1_loss", "ms_ssim_loss"])
def test_inside_shard_map(name, mesh):
    batch = PartitionSpec("batch")
    images = pair(*IN_BLOCKS)
    function = value_and_gradients(function_of(name))
    got, collectives = run(jax.shard_map(function, in_specs=batch, out_specs=batch), *over_batch(mesh, *images))
    assert collectives == set()
    assert stays_over_batch(mesh, got)
    one_by_one = jax.jit(lambda *pairs: jax.lax.map(lambda pair: function(*(x[None] for x in pair)), pairs))(*images)
    assert_same(jax.device_get(got), jax.tree.map(lambda x: np.asarray(x)[:, 0], one_by_one), GRADIENT)


@pytest.mark.slow
@pytest.mark.parametrize("axis", ["H", "W", "C"])
def test_auto_mesh_gathers_sharded_images(axis, implementation):
    images = pair(2, 12, 16, 4)
    function = function_of("ms_ssim", implementation=implementation)
    mesh = jax.make_mesh((4,), ("space",), axis_types=(AxisType.Auto,))
    spec = PartitionSpec(*("space" if along == axis else None for along in "NHWC"))
    got, collectives = run(function, *jax.device_put(images, NamedSharding(mesh, spec)))
    assert collectives  # right, at the price of communication
    assert_same(jax.device_get(got), jax.device_get(function(*images)), VALUE)
