"""The same numbers as other libraries, on noise and on photographs, wherever the conventions are the same."""

import dm_pix
import jax
import numpy as np
import pytest
import skimage.metrics
from images import photographs, random_pair

import jax_msssim

# Peers lose digits where they subtract E[x]^2 from E[x^2], and pytorch-msssim by a float32 window (4e-6).
TOLERANCE = 1e-5

PAIRS = {
    "noise": lambda: random_pair((176, 192, 3)),
    "astronaut": lambda: photographs("astronaut"),
    "coffee": lambda: photographs("coffee"),
    "camera": lambda: photographs("camera"),
}


@pytest.fixture(params=PAIRS)
def pair(request, x64):
    return PAIRS[request.param]()


def test_scikit_image(pair, implementation):
    # Its default is a uniform window of 7 and the sample covariance; Wang's SSIM has to be asked for. Its map is as
    # large as the image, its mean is over the positions where the window fits.
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    value, full_map = skimage.metrics.structural_similarity(*pair, data_range=1, channel_axis=-1, full=True, **wang)
    np.testing.assert_allclose(jax_msssim.ssim(*pair, implementation=implementation), value, TOLERANCE)
    similarity = jax_msssim.ssim_map(*pair, implementation=implementation)
    np.testing.assert_allclose(similarity, full_map[5:-5, 5:-5], rtol=0, atol=TOLERANCE)


def test_dm_pix(pair, implementation):
    # It clips variances from below, and covariances to what variances allow: no difference but for rounding.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        value = dm_pix.ssim(*map(jax.numpy.asarray, pair))
    np.testing.assert_allclose(jax_msssim.ssim(*pair, implementation=implementation), value, TOLERANCE)


def test_pytorch_msssim(pair, implementation):
    # It pads odd sides with zeros before halving them: 176x192 stays even down to the last scale, of 11x12.
    peer, images = pytest.importorskip("pytorch_msssim"), torch_images(pair)
    options = {"data_range": 1, "size_average": False}
    value = peer.ssim(*images, **options).numpy()
    np.testing.assert_allclose(jax_msssim.ssim(*pair, implementation=implementation), value[0], TOLERANCE)
    value = peer.ms_ssim(*images, **options).numpy()
    np.testing.assert_allclose(jax_msssim.ms_ssim(*pair, implementation=implementation), value[0], TOLERANCE)


def test_piq(pair, implementation):
    # It shrinks large images before SSIM unless told not to, and repeats the first line of odd sides, not the last.
    peer, images = pytest.importorskip("piq"), torch_images(pair)
    value = peer.ssim(*images, downsample=False, reduction="none").numpy()
    np.testing.assert_allclose(jax_msssim.ssim(*pair, implementation=implementation), value[0], TOLERANCE)
    value = peer.multi_scale_ssim(*images, reduction="none").numpy()
    np.testing.assert_allclose(jax_msssim.ms_ssim(*pair, implementation=implementation), value[0], TOLERANCE)


def torch_images(pair):
    torch = pytest.importorskip("torch")
    return [torch.from_numpy(np.moveaxis(x, -1, 0)[None].copy()) for x in pair]
