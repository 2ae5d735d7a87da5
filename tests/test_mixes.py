"""The losses that mix in L1."""

import jax
import numpy as np
import oracle
import pytest
from images import p2d, photographs, random_pair

from jax_msssim import fit_power_factors, ms_ssim_l1_loss, ms_ssim_loss, ssim_l1_loss, ssim_loss

SMALL = {"filter_size": 5, "power_factors": (0.5, 0.5)}


def test_ssim_l1_is_its_definition(implementation, x64):
    a, b = random_pair((2, 15, 17, 3))
    l1 = np.abs(a - b).mean((1, 2, 3)) / 2
    similarity = oracle.ssim(a, b, max_val=2.0, padding="same")
    loss = ssim_l1_loss(a, b, max_val=2.0, implementation=implementation)
    np.testing.assert_allclose(loss, 0.8 * l1 + 0.2 * (1 - similarity), rtol=1e-12)
    loss = ssim_l1_loss(a, b, weight=1.0, padding="valid", max_val=2.0)
    np.testing.assert_allclose(loss, ssim_loss(a, b, max_val=2.0), rtol=1e-12)


def test_pyramid_form_is_its_definition(implementation, x64):
    a, b = random_pair((2, 21, 24, 3))
    options = {**SMALL, "max_val": 2.0, "implementation": implementation}
    l1 = np.abs(a - b).mean((1, 2, 3)) / 2
    expected = 0.84 * ms_ssim_loss(a, b, **options) + 0.16 * l1
    np.testing.assert_allclose(ms_ssim_l1_loss(a, b, **options), expected, rtol=1e-12)


def test_single_resolution_golden(implementation, x64):
    options = {"form": "single_resolution", "implementation": implementation}
    np.testing.assert_allclose(ms_ssim_l1_loss(*p2d(), alpha=1, **options), 0.1190055810, rtol=1e-9)
    np.testing.assert_allclose(ms_ssim_l1_loss(*p2d(), alpha=0, **options), 0.0504487463, rtol=1e-9)


def test_single_resolution_is_its_definition(x64):
    # Smaller than the widest window, and several channels.
    a, b = random_pair((14, 19, 2))
    product, spread = 1.0, None
    for sigma in (0.5, 1, 2, 4, 8):
        window = oracle.gaussian(33, sigma)
        luminance, contrast_structure = oracle.local_terms(a, b, window=window, padding="same")
        product = product * contrast_structure * (luminance if sigma == 8 else 1)
    l1 = np.pad(np.abs(a - b), [(16, 16), (16, 16), (0, 0)])
    spread = sum(window[i] * window[j] * l1[i : i + 14, j : j + 19] for i in range(33) for j in range(33))
    expected = 0.025 * np.mean(1 - product) + 0.975 * spread.mean()
    # Taps beyond 8 sigmas, below 1e-14, are left out.
    np.testing.assert_allclose(ms_ssim_l1_loss(a, b, alpha=0.025, form="single_resolution"), expected, rtol=1e-11)


def test_kornia(implementation):
    losses = pytest.importorskip("kornia.losses")
    import torch

    a, b = (x.astype(np.float32) for x in photographs("astronaut", 64, 70))
    tensors = [torch.from_numpy(np.moveaxis(x, -1, 0)[None].copy()) for x in (a, b)]
    theirs = losses.MS_SSIMLoss(alpha=0.84, compensation=1.0)(*tensors).item()
    ours = ms_ssim_l1_loss(a, b, alpha=0.84, form="single_resolution", implementation=implementation)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["pyramid", "single_resolution"])
def test_gradient(form, implementation, x64):
    a, b = random_pair((21, 24, 1))
    direction = np.random.default_rng(1).standard_normal(a.shape)
    options = SMALL if form == "pyramid" else {}

    @jax.jit
    def loss(x, alpha):
        return ms_ssim_l1_loss(x, b, alpha=alpha, form=form, implementation=implementation, **options)

    slope = (loss(a + 1e-7 * direction, 0.84) - loss(a - 1e-7 * direction, 0.84)) / 2e-7
    gradient, by_alpha = jax.grad(loss, (0, 1))(a, 0.84)
    # A central difference of step h = 1e-7 is off by 1e-16 / h of a value of order 0.1, the slope being of order 1e-2.
    np.testing.assert_allclose((gradient * direction).sum(), slope, rtol=1e-6)
    np.testing.assert_allclose(by_alpha, loss(a, 1.0) - loss(a, 0.0), rtol=1e-9)


def test_cifar_sized_images_train():
    # Two scales fit 32x32; descending the loss brings the images together.
    targets = photographs("astronaut", 64, 64)[0].reshape(2, 32, 2, 32, 3).swapaxes(1, 2).reshape(4, 32, 32, 3)
    targets = targets.astype(np.float32)
    power_factors = fit_power_factors((32, 32))
    assert len(power_factors) == 2
    step = jax.jit(jax.value_and_grad(lambda x: ms_ssim_l1_loss(x, targets, power_factors=power_factors).mean()))
    images = np.full_like(targets, 0.5)
    losses = []
    for _ in range(30):
        loss, gradient = step(images)
        images = images - 20 * gradient
        losses.append(loss)
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("message", "options"),
    [
        ("alpha must be between 0 and 1", {"alpha": 1.2}),
        ("alpha must be a single number", {"alpha": np.array([0.5, 0.5])}),
        ("form must be one of", {"form": "paper"}),
        ("downsample, power_factors cannot be given", {"power_factors": (1.0,), "downsample": "floor"}),
        ("negative cannot be given", {"negative": "relu"}),
    ],
)
def test_errors(message, options):
    a = np.zeros((16, 16, 1), np.float32)
    with pytest.raises(ValueError, match=message):
        ms_ssim_l1_loss(a, a, **{"form": "single_resolution"} | options)
