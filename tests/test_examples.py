"""The examples, each at a small size."""

import importlib
import subprocess
import sys
from pathlib import Path

import formulas
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tifffile
from flax import nnx
from images import random_pair

import jax_msssim

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
SIDE = 32  # two scales


@pytest.fixture
def example(monkeypatch):
    """Imports one of the examples."""
    monkeypatch.syspath_prepend(EXAMPLES)
    with jax.numpy_dtype_promotion("standard"):  # Optax's Adam does not run under strict promotion
        yield importlib.import_module


def assert_learned(result, share):
    """The loss has fallen below a share of what it was, over tenths of the run: the crops differ in difficulty."""
    losses = result["losses"]
    tenth = len(losses) // 10
    assert np.isfinite(losses).all()
    assert losses[-tenth:].mean() < share * losses[:tenth].mean()
    assert result.get("not_finite", 0) == 0


@pytest.mark.slow
def test_nnx(example):
    module = example("train_nnx")
    assert module.Denoiser(rngs=nnx.Rngs(0)).noise(jnp.zeros((1, 8, 8, 3))).dtype == jnp.bfloat16
    result = module.main(steps=60, side=SIDE, batch=8)
    assert_learned(result, 0.75)
    assert result["evaluation"].keys() == {"ssim", "ms_ssim", "l1"}
    assert all(0 < value < 1 for value in result["evaluation"].values())


@pytest.mark.slow
def test_linen_accumulates_a_larger_batch(example):
    main = example("train_linen").main
    parts, whole = (main(steps=30, side=SIDE, batch=4 // n, accumulate=n) for n in (2, 1))
    assert_learned(parts, 0.5)
    # The same sums in another order: 1e-7 a step, which adds up over the steps.
    np.testing.assert_allclose(parts["losses"], whole["losses"], rtol=1e-5)
    np.testing.assert_allclose(parts["ms_ssim"], whole["ms_ssim"], rtol=1e-5)


@pytest.mark.slow
def test_jax_on_all_devices_and_on_one(example, monkeypatch):
    module = example("train_jax")
    parallel, single = (module.main(steps=40, side=SIDE, devices=devices) for devices in (None, 1))
    assert len(parallel["weights"][0].sharding.device_set) == jax.device_count() == 8
    assert_learned(parallel, 0.7)
    np.testing.assert_allclose(parallel["losses"], single["losses"], rtol=1e-5)  # as above

    # What the count of steps that are not finite is worth: it counts one, and training goes on.
    crops, steps = module.random_crops, iter(range(5))
    monkeypatch.setattr(module, "random_crops", lambda *args: crops(*args) * (np.nan if next(steps) == 2 else 1))
    result = module.main(steps=5, side=SIDE, devices=1)
    assert np.isnan(result["losses"]).tolist() == [False, False, True, False, False]
    assert result["not_finite"] == 1
    assert all(np.isfinite(kernel).all() for kernel in result["weights"])


@pytest.mark.slow
def test_dists(example, tmp_path):
    # By weights that mean nothing: it runs, the network stays as it is, and the loss falls.
    module = example("train_dists")
    np.savez(tmp_path / "vgg16.npz", **formulas.torch_arrays())
    network = module.read_weights(tmp_path / "vgg16.npz")
    before = [np.asarray(x) for x in jax.tree.leaves(network)]
    result = module.main(network, steps=20, side=SIDE, batch=2)
    assert_learned(result, 0.95)
    assert result["evaluation"].keys() == {"dists", "ssim"}
    assert all(0 < value < 1 for value in result["evaluation"].values())
    for x, y in zip(before, jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train_nnx", "train_linen", "train_jax"])
def test_as_a_script(name):
    command = [sys.executable, EXAMPLES / f"{name}.py", "--steps", "2", "--side", str(SIDE)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "loss" in process.stdout
    assert "nan" not in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "shape", "lines"),
    [
        ("npy", (181, 203, 2), 32),  # odd at some scale along both axes
        ("tif", (176, 177), 48),  # grey, and strips shorter than a window at coarser scales
        ("npy", (163, 161, 1), 512),  # one strip
    ],
)
def test_strips_of_an_image_on_disk(kind, shape, lines, tmp_path):
    images = [np.round(255 * x.clip(0, 1)).astype(np.uint8) for x in random_pair(shape)]
    files = [tmp_path / f"{name}.{kind}" for name in "ab"]
    for image, file in zip(images, files, strict=True):
        np.save(file, image) if kind == "npy" else tifffile.imwrite(file, image)
    command = [sys.executable, EXAMPLES / "strips.py", *files, "--lines", str(lines)]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = jax_msssim.ms_ssim(*(x.reshape(*x.shape[:2], -1) for x in images))
    # Six digits are printed; the means of strips and of whole images differ by float32 sums.
    assert abs(float(process.stdout.split()[1]) - expected) < 1e-6
