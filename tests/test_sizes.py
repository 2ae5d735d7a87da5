"""Images that are smaller than their array: each is what it is alone, and what lies beyond it is never seen."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from functions import ARITHMETIC, assert_same, conv_is_slow, implementations, pair, slow, total
from images import photographs, random_pair
from jax import export
from jax.sharding import NamedSharding, PartitionSpec

import jax_msssim

CANVAS = (30, 27)
# Odd and even, from the shortest side of three scales, 20 with "floor", to that of the array.
SIZES = [(20, 20), (21, 20), (20, 23), (23, 21), (22, 22), (25, 24), (24, 27), (27, 26), (28, 25), (29, 27), (30, 20)]
SIZES += [CANVAS]
FEW = [(21, 24), (28, 23)]
SCALES = {"power_factors": (0.3, 0.3, 0.4)}
PAIR = ("symmetric", "reflect")
LOOSE = {"where": True, "min_coverage": 0.6}
ZHAO = {"form": "single_resolution"}
EACH_AXIS = ((0.05, 0.3, 0.4, 0.15, 0.1), (0.1, 0.4, 0.3, 0.2))

# Name: function, options, array and sizes where they are others. The window has 5 taps.
CASES = {
    "ssim": ("ssim", {}),
    "ssim-same": ("ssim", {"padding": "same"}),
    "ssim-symmetric": ("ssim", {"padding": "symmetric"}),
    "ssim-where": ("ssim", LOOSE | {"padding": "same"}),
    "ssim-blocks": ("ssim", {}, (150, 12), [(150, 12), (70, 7), (131, 12), (6, 5)]),
    "ssim-tiles": ("ssim", {}, (290, 40), [(290, 40), (127, 33), (131, 9)]),
    "ssim-tiles-where": ("ssim", LOOSE, (290, 12), [(290, 12), (131, 9)]),
    "map": ("ssim_map", {}),
    "map-reflect": ("ssim_map", {"padding": "reflect"}),
    "map-where": ("ssim_map", LOOSE),
    "edge": ("ms_ssim", SCALES),
    "edge-same": ("ms_ssim", SCALES | {"padding": "same"}),
    "edge-where": ("ms_ssim", SCALES | LOOSE),
    "floor": ("ms_ssim", SCALES | {"downsample": "floor"}),
    "floor-where": ("ms_ssim", SCALES | LOOSE | {"downsample": "floor"}),
    "zero": ("ms_ssim", SCALES | {"downsample": "zero"}),
    "zero-pair": ("ms_ssim", SCALES | {"downsample": "zero", "padding": PAIR}),
    "edge-start": ("ms_ssim", SCALES | {"downsample": "edge_start"}),
    "start": ("ms_ssim", SCALES | {"downsample": "start", "padding": "edge"}),
    "even": ("ms_ssim", SCALES | {"window": EACH_AXIS, "padding": ("valid", "reflect")}),
    "even-same": ("ssim", {"window": EACH_AXIS, "padding": "same"}),
    "terms": ("ms_ssim_terms", {"scales": 3, "downsample": "edge_start"}),
    "db": ("ms_ssim_db", SCALES),
    "signal": ("ms_ssim", SCALES | {"downsample": "zero", "padding": "symmetric"}, (43,), [(20,), (41,), (43,)]),
    "signal-blocks": ("ssim", {}, (330_001,), [(330_001,), (64_000,)]),
    "volume": ("ms_ssim", {"power_factors": (0.4, 0.6)}, (12, 11, 10), [(12, 11, 10), (9, 10, 9), (11, 9, 10)]),
    "ssim_loss": ("ssim_loss", {}),
    "dssim_loss": ("dssim_loss", {}),
    "ms_ssim_loss": ("ms_ssim_loss", SCALES),
    "log_ms_ssim_loss": ("log_ms_ssim_loss", SCALES),
    "ssim_l1_loss": ("ssim_l1_loss", {}),
    "ssim_l1_loss-where": ("ssim_l1_loss", LOOSE),
    "ms_ssim_l1_loss": ("ms_ssim_l1_loss", SCALES),
    "zhao": ("ms_ssim_l1_loss", ZHAO),
}


def case_of(name, sizes=SIZES):
    """A function, its options, two images in float64 with NaN and infinity beyond their sizes, and these."""
    function, options, *other = CASES[name]
    canvas, sizes = other or (CANVAS, sizes)
    a, b = random_pair((len(sizes), *canvas, 2))
    options = options | {"spatial_ndim": len(canvas)}
    if "form" not in options and "window" not in options:
        options["filter_size"] = 5
    if "where" in options:
        options["where"] = np.random.default_rng(1).random(a.shape) > 0.02
    beyond = np.ones(a.shape, bool)
    for i, size in enumerate(sizes):
        beyond[crop(i, size)] = False
    return function, options, np.where(beyond, np.nan, a), np.where(beyond, np.inf, b), np.array(sizes)


def crop(i, size):
    """Image ``i`` of a batch without what lies beyond it."""
    return (i, *(slice(side) for side in size))


def alone(options, i, size):
    """The options of image ``i``."""
    return options | ({"where": options["where"][crop(i, size)]} if "where" in options else {})


def by_definition(function, a, b, filter_size=None, **options):
    window = {"window": oracle.gaussian(filter_size)} if filter_size else {}
    value = getattr(oracle, function)(a, b, **window, **options)
    return jax_msssim.MSSSIMTerms(*value) if function == "ms_ssim_terms" else value


def quick_and_slow(quick, every):
    """Cells of a case and an implementation."""
    assert {*quick} <= {*every}
    return [(pytest.param if cell in quick else slow)(*cell, id="-".join(cell)) for cell in every]


# Both sides compute in float64; sums of a few hundred numbers round by 1e-14.
RTOL = 1e-12
VALUES = [
    (name, kind)
    for i, name in enumerate(CASES)
    for kind in implementations(i, name)
    if kind == "stencil" or CASES[name][0] not in ARITHMETIC
]
# A line of arithmetic does not know of sizes.
QUICK_VALUES = [
    (name, "stencil")
    for name, (function, *_) in CASES.items()
    if function not in ARITHMETIC and name not in ("zhao", "signal-blocks", "volume")
]
QUICK_VALUES += [("ssim-same", "matmul"), ("zero-pair", "conv"), ("ssim-tiles", "matmul"), ("edge-where", "conv")]


@pytest.mark.parametrize(("name", "implementation"), quick_and_slow(QUICK_VALUES, VALUES))
def test_values_are_those_of_the_images(name, implementation, x64):
    function, options, a, b, sizes = case_of(name)
    got = getattr(jax_msssim, function)(a, b, sizes=sizes, implementation=implementation, **options)
    for i, size in enumerate(sizes):
        here = crop(i, size)
        expected = by_definition(function, a[here], b[here], **alone(options, i, size))
        value = jax.tree.map(lambda x, i=i: np.asarray(x[i]), got)
        if function == "ssim_map":
            assert np.isfinite(value).sum() == np.isfinite(expected).sum()  # NaN beyond the image
            value = value[tuple(slice(n) for n in expected.shape)]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, RTOL, 1e-13), value, expected)


# Each cell compiles three programs or four: one of each way to pad, to halve, to cut into blocks or tiles, and to mask.
QUICK_GRADIENTS = [("edge", "stencil"), ("ssim-blocks", "stencil"), ("ssim-where", "matmul")]
GRADIENTS = [(name, "stencil") for name in ("edge-where", "floor", "zero-pair", "start", "even", "map-where", "volume")]
GRADIENTS += [("zero", "matmul"), ("edge-where", "conv"), ("ssim-tiles-where", "matmul"), ("zhao", "matmul")]


@pytest.mark.parametrize(("name", "implementation"), quick_and_slow(QUICK_GRADIENTS, QUICK_GRADIENTS + GRADIENTS))
def test_gradients_are_those_of_the_images(name, implementation, x64):
    function, options, a, b, sizes = case_of(name, FEW)

    def gradients(a, b, **options):
        def of(a, b):
            values = getattr(jax_msssim, function)(a, b, implementation=implementation, **options)
            return sum(jnp.nan_to_num(x).sum() for x in jax.tree.leaves(values))

        return jax.jit(jax.grad(of, (0, 1)))(a, b)

    got = gradients(a, b, sizes=sizes, **options)
    for i, size in enumerate(sizes):
        here = crop(i, size)
        for x, y in zip(got, gradients(a[here], b[here], **alone(options, i, size)), strict=True):
            np.testing.assert_allclose(x[here], y, rtol=0, atol=RTOL * np.abs(y).max())
    for x in got:
        assert not np.asarray(x)[np.isnan(a)].any()  # exactly 0


# --- float32 ----------------------------------------------------------------------------------------------------

FEW_LARGE = [(86, 95), (91, 88), (96, 96)]  # in blocks of rows


@pytest.mark.parametrize(
    ("implementation", "function", "options"),
    [
        ("stencil", "ms_ssim", {"power_factors": (0.3, 0.3, 0.4)}),
        slow("conv", "ms_ssim", {"power_factors": (0.3, 0.3, 0.4)}),
        slow("stencil", "ssim", {}),
        slow("matmul", "ssim", {}),
    ],
)
def test_float32(implementation, function, options):
    # Two orders of the same float32 sums: of a value, and of a gradient, which sums hundreds of such terms, and in the
    # linear blurs differences of larger numbers.
    a, b = (np.stack([x] * 3).astype(np.float32) for x in photographs("astronaut", 96, 96))
    function = functools.partial(getattr(jax_msssim, function), implementation=implementation, **options)
    tolerance = 1e-5 if implementation == "stencil" else 1e-4
    values, gradients = jax.vmap(jax.value_and_grad(lambda a, b, s: function(a, b, sizes=s)))(a, b, np.array(FEW_LARGE))
    for i, size in enumerate(FEW_LARGE):
        here = crop(i, size)
        value, gradient = jax.value_and_grad(function)(a[here], b[here])
        np.testing.assert_allclose(values[i], value, rtol=1e-6)
        np.testing.assert_allclose(gradients[here], gradient, rtol=0, atol=tolerance * np.abs(gradient).max())


def test_flat_images_have_no_rounding():
    # A constant map sums with roundings of one sign, unless it is measured from one of its values.
    a, b = (np.full((1, 4200, 48, 1), value, np.float32) for value in (0.3, 0.6))
    got = jax_msssim.ssim_loss(a, b, sizes=np.array([[4100, 41]]))
    np.testing.assert_allclose(got, jax_msssim.ssim_loss(a[:, :41, :41], b[:, :41, :41]), rtol=1e-6)


# --- under transformations of JAX -----------------------------------------------------------------------------

SMALL = {"filter_size": 3, "power_factors": (0.4, 0.6)}
TRACED = np.array([[9, 10], [5, 6], [7, 10]], np.int32)


def sized(a, b, sizes):
    return jax_msssim.ms_ssim_loss(a, b, sizes=sizes, **SMALL)


def value_and_gradients(a, b, sizes):
    return sized(a, b, sizes), jax.grad(lambda *x: total(sized)(*x, sizes), (0, 1))(a, b)


def test_transformations():
    a, b = pair(3, 9, 10, 1)
    expected = sized(a, b, TRACED)
    assert_same(jax.vmap(sized)(a, b, TRACED), expected, 2e-6)
    assert_same(jax.vmap(sized, (0, 1, 0))(a, jnp.moveaxis(b, 0, 1), TRACED), expected, 2e-6)
    each = jax.lax.scan(lambda carry, x: (carry, sized(*x)), 0, (a, b, TRACED))[1]
    assert_same(each, expected, 2e-6)
    of_sizes = jax.vmap(lambda s: sized(a, b, s))(np.stack([TRACED, TRACED[::-1]]))
    assert_same(of_sizes[0], expected, 2e-6)
    one_for_all = jax.jit(sized)(a, b, np.array([[7, 8]]))  # broadcast over the batch
    assert_same(one_for_all, sized(a[:, :7, :8], b[:, :7, :8], None), 2e-6)


def test_one_program_for_all_sizes():
    a, b = pair(2, 13, 15, 1)
    programs = []
    program = jax.jit(lambda *x: programs.append(x) or sized(*x))
    for side in range(5, 14):
        program(a, b, np.array([[side, 15], [13, side]], np.int32))
    assert len(programs) == 1


def test_export():
    pytest.importorskip("flatbuffers")  # which JAX saves programs with
    (batch,) = export.symbolic_shape("batch")
    image, sizes = (jax.ShapeDtypeStruct(*x) for x in (((batch, 9, 10, 1), np.float32), ((batch, 2), np.int32)))
    program = export.export(jax.jit(sized), platforms=("cpu", "cuda", "tpu"))(image, image, sizes)
    a, b = pair(3, 9, 10, 1)
    assert_same(export.deserialize(program.serialize()).call(a, b, TRACED), sized(a, b, TRACED), 2e-6)


# The second is worked through in blocks of rows.
@pytest.mark.parametrize("height", [9, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sharded(whole, height, mesh):
    batch = PartitionSpec("batch")
    a, b = pair(8, height, 10, 1)
    sizes = np.concatenate([TRACED, TRACED, TRACED[:2]])
    images = jax.device_put((a, b), NamedSharding(mesh, batch))
    placed = jax.device_put(sizes, NamedSharding(mesh, PartitionSpec() if whole else batch))
    compiled = jax.jit(value_and_gradients).lower(*images, placed).compile()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "permute") if name in compiled.as_text()]
    assert_same(jax.device_get(compiled(*images, placed)), jax.device_get(value_and_gradients(a, b, sizes)), 1e-5)


# --- sizes that cannot be ---------------------------------------------------------------------------------------


@conv_is_slow
@pytest.mark.parametrize("options", [{}, {"padding": "reflect"}, {"downsample": "zero", "padding": "same"}])
def test_traced_sizes_that_cannot_be_have_no_value(options, implementation):
    a, b = pair(4, 9, 10, 1)
    sizes = jnp.array([[9, 10], [10, 10], [9, 0], [-5, 9]])

    def loss(a, sizes):
        values = jax_msssim.ms_ssim_loss(a, b, sizes=sizes, implementation=implementation, **SMALL, **options)
        return jnp.nansum(values), values

    (_, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(a, sizes)
    assert [*np.isfinite(values)] == [True, False, False, False]
    assert gradient[0].any()
    assert not gradient[1:].any()
