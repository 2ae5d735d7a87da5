"""Test sets of many sizes: the values of the pairs one by one, few programs, little memory, errors that name a pair."""

import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest
from images import random_pair

from jax_msssim import evaluate, ms_ssim, ms_ssim_loss, pad_images, ssim, ssim_loss, ssim_map

SIZES = [(40, 33), (33, 40), (61, 47), (9, 30), (40, 33), (8, 8), (64, 12)]
SMALL = {"filter_size": 5, "max_val": 255}


def pairs(sizes=SIZES, channels=3):
    for seed, size in enumerate(sizes):
        yield tuple((255 * x).astype(np.uint8) for x in random_pair((*size, channels), seed))


@pytest.mark.parametrize(
    ("function", "options"),
    [(ssim, SMALL), (ms_ssim_loss, SMALL | {"power_factors": (0.5, 0.5), "downsample": "zero", "padding": "reflect"})],
)
def test_values_in_order(function, options):
    expected = [function(a, b, **options) for a, b in pairs()]
    for batch_size in (1, 2, 16):
        got = evaluate(function, pairs(), batch_size=batch_size, **options)
        assert got.dtype == np.float32
        # Sums in another order, of images that were turned.
        np.testing.assert_allclose(got, expected, rtol=2e-6)


def test_types_channels_and_dimensions():
    def mixed():
        for i, (a, b) in enumerate(pairs()):
            yield a[..., : 1 + i % 3].astype(np.float32), jnp.asarray(b[..., : 1 + i % 3])

    np.testing.assert_allclose(evaluate(ssim, mixed(), **SMALL), [ssim(a, b, **SMALL) for a, b in mixed()], rtol=2e-6)
    signals = [random_pair((length, 2), length) for length in (30, 41, 30)]
    options = {"filter_size": 5, "spatial_ndim": 1}
    got = evaluate(ssim, signals, **options)
    np.testing.assert_allclose(got, [ssim(a, b, **options) for a, b in signals], rtol=2e-6)


def test_a_reader_that_fills_one_array_again():
    buffer = np.zeros((2, 40, 40, 1), np.float32)

    def reader():
        for seed in range(40):
            buffer[:] = np.stack(random_pair((40, 40, 1), seed))
            yield buffer[0], buffer[1]

    expected = [ssim(*(x.astype(np.float32) for x in random_pair((40, 40, 1), seed))) for seed in range(40)]
    np.testing.assert_allclose(evaluate(ssim, reader()), expected, rtol=2e-6)


def test_nothing():
    assert evaluate(ssim, []).shape == (0,)


# --- programs and memory ----------------------------------------------------------------------------------------


def canvases(sizes, channels=1):
    """The shapes that a function is called with for black images of these sizes, and the number of images in all."""
    shapes = []

    def difference(a, b, *, sizes):
        shapes.append(a.shape)
        assert (np.max(sizes, 0) <= a.shape[1:-1]).all()
        return np.abs(a.astype(float) - b).sum((1, 2, 3))

    images = (np.zeros((2, *size, channels), np.uint8) for size in sizes)
    assert evaluate(difference, images).shape == (len(sizes),)
    return set(shapes), sum(shape[0] for shape in shapes)


def test_few_programs():
    rng = np.random.default_rng(0)
    shapes, _ = canvases(rng.integers(256, 1025, (100, 2)).tolist(), channels=3)
    assert len(shapes) <= 5  # a few seconds of computing more, or a second and a half of compiling for each
    assert len(canvases(rng.integers(200, 641, (24, 2)).tolist())[0]) == 1
    assert len(canvases([(40, 50), (50, 40), (44, 44), (10, 12)])[0]) == 1


def test_a_program_for_each_size_that_pays():
    large, small = (2000, 3000), (64, 64)
    shapes, images = canvases([large] * 4 + [small] * 100, channels=3)
    assert {shape[1:3] for shape in shapes} == {large, small}  # of many images of one size, that size
    assert images < 4 + 100 + 16
    shapes, _ = canvases([small] * 3 + [(65, 64)])
    assert {shape[1:3] for shape in shapes} == {(64, 80)}


def test_memory_does_not_depend_on_the_number_of_pairs():
    def peak(number):
        def difference(a, b, *, sizes):
            return np.zeros(len(sizes))

        rng = np.random.default_rng(0)
        tracemalloc.start()
        evaluate(difference, (np.zeros((2, *rng.integers(64, 129, 2), 3), np.uint8) for _ in range(number)))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    # What is held varies with the sizes of 64 pairs; all of them are four times as much.
    assert peak(1000) < 1.25 * peak(200)


# --- errors -----------------------------------------------------------------------------------------------------


def broken():
    yield next(pairs())
    raise OSError("cannot read b.png")


IMAGE = np.zeros((40, 40, 3), np.uint8)
GOOD = IMAGE, IMAGE


@pytest.mark.parametrize(
    ("function", "given", "error", "message"),
    [
        (ssim, [GOOD, (IMAGE, IMAGE[:20])], ValueError, "pair 1: a and b must have the same shape"),
        (ssim, [GOOD] * 3 + [(IMAGE[:8], IMAGE[:8])], ValueError, "pair 3: a and b are too small"),
        (ssim, [(IMAGE[:8], IMAGE[:8])], ValueError, "pair 0: a and b are too small"),
        (ms_ssim, [GOOD], ValueError, "pair 0: a and b are too small"),
        (ssim, [(IMAGE[..., 0], IMAGE[..., 0])], ValueError, r"pair 0: a must have shape \[..., H, W, C\]"),
        (ssim, [(IMAGE[None], IMAGE[None])], ValueError, r"pair 0: must be one image each, \[H, W, C\]"),
        (ssim, [GOOD, (IMAGE.tolist(), IMAGE)], TypeError, "pair 1: a must be an array"),
        (ssim, [GOOD, GOOD * 2], ValueError, "pair 1: must be two images, got 4"),
        (ssim, [(IMAGE.astype(np.int32), IMAGE)], ValueError, "pair 0: max_val must be given"),
        (ssim_map, [GOOD], TypeError, "function must return one value per image"),
    ],
)
def test_errors(function, given, error, message):
    with pytest.raises(error, match=message):
        evaluate(function, given)


def test_what_the_reader_raises():
    with pytest.raises(OSError, match="cannot read b") as raised:
        evaluate(ssim, broken())
    assert raised.value.__notes__ == ["evaluate() was reading pair 1."]


def test_unknown_option():
    with pytest.raises(TypeError, match=r"ssim\(\) got an unexpected keyword argument 'data_range'. Pass max_val"):
        evaluate(ssim, [GOOD], data_range=255)


def test_progress(capsys):
    pytest.importorskip("rich")
    evaluate(ssim, [GOOD] * 3, progress=True)
    out, err = capsys.readouterr()
    assert not out
    assert "100%" in err


# --- pad_images -------------------------------------------------------------------------------------------------


def test_pad_images():
    images = [a for a, _ in pairs()]
    batch, sizes = pad_images(images, multiple=16)
    assert (batch.shape, batch.dtype, sizes.dtype) == ((len(SIZES), 64, 48, 3), np.uint8, np.int32)
    np.testing.assert_array_equal(sizes, SIZES)
    for image, padded in zip(images, batch, strict=True):
        height, width, _ = image.shape
        np.testing.assert_array_equal(padded[:height, :width], image)
        assert padded.sum() == image.sum()
    expected = [ssim_loss(image, 255 - image, filter_size=5) for image in images]
    np.testing.assert_allclose(ssim_loss(batch, 255 - batch, sizes=sizes, filter_size=5), expected, rtol=2e-6)


@pytest.mark.parametrize(
    ("images", "options", "error", "message"),
    [
        ([], {}, ValueError, "images must hold at least one"),
        ([IMAGE, IMAGE[..., :1]], {}, ValueError, r"images\[1\] must have the rank and channels of images\[0\]"),
        ([IMAGE, IMAGE[..., 0]], {}, ValueError, r"images\[1\] must have the rank"),
        ([IMAGE, IMAGE / 255], {}, TypeError, r"images\[1\] must have the type of images\[0\], uint8, got float64"),
        ([IMAGE[:, 0, 0]], {}, ValueError, r"images\[0\] must have shape \[H, W, C\]"),
        ([[1.0]], {}, TypeError, r"images\[0\] must be an array"),
        ([IMAGE], {"multiple": 0}, ValueError, "multiple must be at least 1"),
    ],
)
def test_pad_images_errors(images, options, error, message):
    with pytest.raises(error, match=message):
        pad_images(images, **options)
