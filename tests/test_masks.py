"""Masked images: the crop, the ragged batch, and the definition in plain loops."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from functions import conv_is_slow
from images import random_pair

import jax_msssim

FLOAT32 = {"rtol": 1e-6}  # two orders of the same float32 means: a dozen roundings of 6e-8
FLOAT64 = {"rtol": 0, "atol": 1e-12}  # and of float64 ones, of numbers of order 1
SMALL = {"filter_size": 5, "power_factors": (0.3, 0.3, 0.4)}
LOSSES = {
    "ssim_loss": {"filter_size": 5},
    "dssim_loss": {"filter_size": 5},
    "ms_ssim_loss": SMALL,
    "log_ms_ssim_loss": SMALL,
    "ssim_l1_loss": {"filter_size": 5, "padding": "valid"},
    "ms_ssim_l1_loss": SMALL,
}


def masked_similarity(a, b, where, min_coverage, size=5):
    """The similarity of one pair at every position as DESIGN defines it, NaN where it does not count."""
    taps = oracle.gaussian(size)
    out = np.full([*(n - size + 1 for n in a.shape[:-1]), a.shape[-1]], np.nan)
    weights = np.ones([1] * (a.ndim - 1))
    for axis in range(a.ndim - 1):
        weights = weights * np.reshape(taps, [-1 if i == axis else 1 for i in range(a.ndim - 1)])
    for position in np.ndindex(out.shape):
        *corner, channel = position
        here = (*(slice(i, i + size) for i in corner), channel)
        valid = where[here]
        if (weights * ~valid).sum() > 1 - min_coverage or not valid.any():
            continue
        g = weights * valid / (weights * valid).sum()
        x, y = np.where(valid, a[here], 0), np.where(valid, b[here], 0)
        ma, mb = (g * x).sum(), (g * y).sum()
        va, vb, c = (g * (x - ma) ** 2).sum(), (g * (y - mb) ** 2).sum(), (g * (x - ma) * (y - mb)).sum()
        out[position] = (2 * ma * mb + 1e-4) / (ma**2 + mb**2 + 1e-4) * (2 * c + 9e-4) / (va + vb + 9e-4)
    return out


@pytest.mark.parametrize("min_coverage", [1.0, 0.6])
@pytest.mark.parametrize("shape", [(25, 2), (13, 16, 2), (8, 9, 7, 1)])
def test_random_mask_is_the_definition(shape, min_coverage, implementation, x64):
    a, b = random_pair(shape)
    spatial_ndim = len(shape) - 1
    holes = {1: 0.05, 2: 0.02, 3: 0.005}[spatial_ndim] if min_coverage == 1 else 0.4
    where = np.random.default_rng(1).random(shape) > holes
    options = {"filter_size": 5, "min_coverage": min_coverage, "implementation": implementation}
    options |= {"spatial_ndim": spatial_ndim, "where": where}
    expected = masked_similarity(a, b, where, min_coverage)
    assert np.isfinite(expected).any()
    assert np.isnan(expected).any()
    similarity = jax_msssim.ssim_map(a, b, **options)
    np.testing.assert_allclose(similarity, expected, **FLOAT64)
    per_channel = np.nanmean(expected.reshape(-1, shape[-1]), axis=0)
    np.testing.assert_allclose(jax_msssim.ssim(a, b, **options), per_channel.mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("downsample", "padding"),
    [("edge", "valid"), ("floor", "same")]
    + [pytest.param(*pair, marks=pytest.mark.slow) for pair in (("edge", "same"), ("floor", "valid"))],
)
def test_all_true_is_no_mask(downsample, padding, implementation):
    a, b = (x.astype(np.float32) for x in random_pair((2, 45, 38, 2)))
    options = {**SMALL, "downsample": downsample, "padding": padding, "implementation": implementation}
    where = np.ones((1, 45, 1, 1), bool)
    value, masked = (jax_msssim.ms_ssim(a, b, **options, **mask) for mask in ({}, {"where": where}))
    np.testing.assert_allclose(masked, value, **FLOAT32)


@conv_is_slow
@pytest.mark.parametrize("downsample", ["edge", "floor"])
@pytest.mark.parametrize(("height", "width"), [pytest.param(31, 26, marks=pytest.mark.slow), (24, 37)])
def test_rectangle_is_its_crop(height, width, downsample, implementation, x64):
    # It starts on a multiple of 2^(scales - 1); its size is arbitrary. In float64, of numbers of order 1: what either
    # is measured from differs, and in float32 the largest gradient's 6th digit with it.
    a, b = random_pair((56, 60, 2))
    where = np.zeros(a.shape, bool)
    here = np.s_[8 : 8 + height, 16 : 16 + width]
    where[here] = True
    a_masked, b_masked = np.where(where, a, np.nan), np.where(where, b, np.inf)
    options = {**SMALL, "downsample": downsample, "implementation": implementation}
    of_crop = jax.value_and_grad(lambda x: jax_msssim.ms_ssim(x, b[here], **options))
    of_rest = jax.value_and_grad(lambda x: jax_msssim.ms_ssim(x, b_masked, where=where, **options))
    value, gradient = of_crop(jnp.asarray(a[here]))
    masked_value, masked_gradient = of_rest(jnp.asarray(a_masked))
    np.testing.assert_allclose(masked_value, value, rtol=1e-12)
    np.testing.assert_allclose(masked_gradient[here], gradient, rtol=0, atol=1e-12 * np.abs(gradient).max())
    assert not np.asarray(masked_gradient)[~where].any()  # exactly 0, under NaN


@pytest.mark.slow
def test_ragged_batch_is_its_images_one_by_one(implementation):
    sizes = [(32, 40), (21, 29), (40, 23)]
    pairs = [[x.astype(np.float32) for x in random_pair((*size, 1), seed)] for seed, size in enumerate(sizes)]
    a, b, where = (np.zeros((3, 40, 40, 1), dtype) for dtype in (np.float32, np.float32, bool))
    for i, (x, y) in enumerate(pairs):
        a[i, : x.shape[0], : x.shape[1]], b[i, : x.shape[0], : x.shape[1]] = x, y
        where[i, : x.shape[0], : x.shape[1]] = True
    options = {**SMALL, "implementation": implementation}
    one_by_one = [jax_msssim.ms_ssim(x, y, **options) for x, y in pairs]
    np.testing.assert_allclose(jax_msssim.ms_ssim(a, b, where=where, **options), one_by_one, **FLOAT32)
    mapped = jax.vmap(lambda x, y, w: jax_msssim.ms_ssim(x, y, where=w, **options))(a, b, where)
    np.testing.assert_allclose(mapped, one_by_one, **FLOAT32)


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_losses_never_see_masked_pixels(name, implementation):
    a, b = (x.astype(np.float32) for x in random_pair((2, 40, 36, 1)))
    where = np.random.default_rng(2).random(a.shape) > 0.01
    where[:, :16, 16:] = False
    loss = getattr(jax_msssim, name)
    options = {**LOSSES[name], "where": where, "min_coverage": 0.7, "implementation": implementation}

    def value_and_gradient(fill):
        x, y = np.where(where, a, np.float32(fill)), np.where(where, b, np.float32(-fill))
        return jax.value_and_grad(lambda x: loss(x, y, **options).sum())(jnp.asarray(x))

    value, gradient = value_and_gradient(0)
    for fill in (1e30, np.inf, np.nan):
        other_value, other_gradient = value_and_gradient(fill)
        assert other_value == value
        np.testing.assert_array_equal(other_gradient, gradient)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient)[~where].any()
    assert np.asarray(gradient)[where].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", LOSSES)
def test_an_image_without_a_counted_position(name, implementation):
    a, b = (x.astype(np.float32) for x in random_pair((2, 40, 36, 1)))
    where = np.ones(a.shape, bool)
    where[0] = False
    loss = getattr(jax_msssim, name)
    options = {**LOSSES[name], "where": where, "implementation": implementation}
    values = loss(a, b, **options)
    assert np.isnan(values[0])
    assert np.isfinite(values[1])
    gradient = jax.grad(lambda x: jnp.nanmean(loss(x, b, **options)))(jnp.asarray(a))
    assert np.isfinite(gradient).all()
    assert not np.asarray(gradient[0]).any()
    assert np.asarray(gradient[1]).any()


def test_corner_hole_of_a_volume(implementation):
    # Away from the hole the map is as if it were not there; next to it, it is not defined.
    a, b = random_pair((12, 13, 14, 1))
    a, b = a.astype(np.float32), b.astype(np.float32)
    where = np.ones(a.shape, bool)
    where[:4, :4, :4] = False
    options = {"filter_size": 5, "spatial_ndim": 3, "implementation": implementation}
    similarity, whole = (jax_msssim.ssim_map(a, b, **options, **mask) for mask in ({"where": where}, {}))
    touched = np.zeros(whole.shape, bool)
    touched[:4, :4, :4] = True
    np.testing.assert_array_equal(np.isnan(similarity), touched)
    np.testing.assert_allclose(np.asarray(similarity)[~touched], np.asarray(whole)[~touched], rtol=0, atol=2e-6)


@pytest.mark.slow
def test_derivatives(implementation, x64):
    a, b = random_pair((2, 19, 18, 1))
    where = np.random.default_rng(3).random(a.shape) > 0.05
    direction = np.random.default_rng(4).standard_normal(a.shape)

    @jax.jit
    def function(x, y):
        options = {"filter_size": 5, "power_factors": (0.5, 0.5), "min_coverage": 0.8}
        return jax_msssim.ms_ssim(x, y, where=where, implementation=implementation, **options).sum()

    step = 1e-6 * direction
    slope_a = (function(a + step, b) - function(a - step, b)) / 2e-6
    slope_b = (function(a, b + step) - function(a, b - step)) / 2e-6
    gradients = jax.grad(function, (0, 1))(a, b)
    # A central difference of step h = 1e-6 is off by 1e-16 / h of a value of order 1, and by h^2.
    np.testing.assert_allclose([(g * direction).sum() for g in gradients], [slope_a, slope_b], rtol=1e-6)
    zeros = np.zeros_like(a)
    np.testing.assert_allclose(
        jax.jvp(function, (a, b), (direction, zeros))[1], (jax.grad(function)(a, b) * direction).sum(), rtol=1e-12
    )


@pytest.mark.parametrize("masked", [False, True])
def test_both_implementations_have_the_same_derivative(masked, x64):
    # At two scales, by either image: "conv" differentiates what the coarser pixels are above their anchors.
    a, b = random_pair((22, 20, 2))
    where = np.random.default_rng(5).random(a.shape) > 0.05 if masked else None
    options = {"where": where, "min_coverage": 0.7, "filter_size": 5, "power_factors": (0.4, 0.6)}

    def gradients(implementation):
        return jax.grad(lambda a, b: jax_msssim.ms_ssim(a, b, implementation=implementation, **options), (0, 1))(a, b)

    for stencil, conv in zip(gradients("stencil"), gradients("conv"), strict=True):
        np.testing.assert_allclose(stencil, conv, **FLOAT64)


def test_both_implementations_have_the_same_derivative_of_the_map(x64):
    a, b = random_pair((11, 12, 2))
    options = {"filter_size": 5, "min_coverage": 0.7, "where": np.random.default_rng(7).random(a.shape) > 0.05}

    def gradients(implementation):
        def total(*images):
            similarity = jax_msssim.ssim_map(*images, implementation=implementation, **options)
            return (jnp.nan_to_num(similarity) * jnp.cos(jnp.arange(similarity.size).reshape(similarity.shape))).sum()

        return jax.grad(total, (0, 1))(a, b)

    for stencil, conv in zip(gradients("stencil"), gradients("conv"), strict=True):
        assert np.abs(stencil).max() > 0.1
        np.testing.assert_allclose(stencil, conv, **FLOAT64)


@pytest.mark.parametrize("filter_size", [1, 5, 7])
@pytest.mark.parametrize("shape", [(31, 1), (27, 13, 2), (15, 9, 8, 1)])
def test_blocks(shape, filter_size, small_blocks, x64):
    # Blocks of four rows, the last ones moved up, windows larger than a block: against the reference without blocks.
    a, b = random_pair(shape)
    options = {"where": np.random.default_rng(5).random(shape) > 0.05, "min_coverage": 0.7}
    options |= {"filter_size": filter_size, "spatial_ndim": len(shape) - 1}

    def value_and_gradient(implementation):
        return jax.value_and_grad(lambda x: jax_msssim.ssim(x, b, implementation=implementation, **options))(a)

    for stencil, conv in zip(value_and_gradient("stencil"), value_and_gradient("conv"), strict=True):
        np.testing.assert_allclose(stencil, conv, **FLOAT64)


def test_without_a_mask_no_mask_operation(implementation):
    # A mask is a boolean array of the images' size that is made a number.
    a = jnp.zeros((32, 32, 1))
    options = {"power_factors": (0.5, 0.5), "filter_size": 5, "implementation": implementation}
    plain, masked = (
        jax.make_jaxpr(lambda x, options=options: jax_msssim.ms_ssim(x, x, **options))(a)
        for options in (options, options | {"where": np.ones(a.shape, bool)})
    )
    assert masks_made_numbers(plain, a.size) == 0
    assert masks_made_numbers(masked, a.size) > 0


def masks_made_numbers(program, size):
    """How many booleans of so many pixels a program converts, in all its parts."""
    found = 0
    for equation in program.eqns:
        found += equation.primitive.name == "convert_element_type" and any(
            x.aval.dtype == bool and x.aval.size == size for x in equation.invars
        )
        parts = [part for part in jax.tree.leaves(list(equation.params.values())) if hasattr(part, "eqns")]
        found += sum(masks_made_numbers(part, size) for part in parts)
    return found


MASK = np.ones((2, 20, 20, 1), bool)


@pytest.mark.parametrize(
    ("error", "message", "options"),
    [
        (TypeError, "boolean", {"where": MASK.astype(float)}),
        (TypeError, "Wrap it", {"where": [True]}),
        (ValueError, r"where\[..., None\]", {"where": MASK[..., 0]}),
        (ValueError, "rank", {"where": MASK[:, :, 1:]}),
        (ValueError, 'use padding="valid" or "same"', {"where": MASK, "padding": "reflect"}),
        (
            ValueError,
            'use downsample="edge" or "floor"',
            {"where": MASK, "downsample": "zero"},
        ),
        (ValueError, "min_coverage", {"min_coverage": 0}),
        (ValueError, "min_coverage", {"min_coverage": 1.5}),
    ],
)
def test_errors(error, message, options):
    a = np.zeros((2, 20, 20, 1), np.float32)
    with pytest.raises(error, match=message):
        jax_msssim.ms_ssim(a, a, power_factors=(0.5, 0.5), filter_size=5, **options)
