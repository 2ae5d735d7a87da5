"""Whole programs, compiled by XLA for one and for eight H100 without having one: ``make gpu-compile``."""

import functools
import importlib.util
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from functions import total
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from test_sharding import COLLECTIVES

from jax_msssim import _cuda, ms_ssim, ssim
from jax_msssim._cuda._launch import TARGET

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs jax[cuda13]"),
]

H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 cuda_compute_capability { major: 9 }
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84929347584
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 28 }
runtime_version { major: 13 minor: 0 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
NO_KERNEL = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast"}
PAIR = 2 * 4  # bytes


@pytest.fixture(autouse=True)
def release(monkeypatch):
    # Whatever is installed. Where these tests pass it may be added to the list.
    monkeypatch.setattr(_cuda, "has_device", lambda: True)
    monkeypatch.setattr(_cuda, "RELEASES", (jax.__version__,))


@functools.cache
def devices(number: int):
    return np.array(topologies.get_topology_desc("h100", "cuda", target_config=H100, topology=f"1x{number}x1").devices)


def compiled(function, shape, sharding):
    image = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)
    return jax.jit(function).lower(image, image).compile()


def launches(text: str) -> int:
    return text.count(f'custom_call_target="{TARGET}"')


def kernels(text: str) -> int:
    """Of the program's main computation."""
    (main,) = re.findall(r"^ENTRY .*?^}", text, re.M | re.S)
    return sum(name not in NO_KERNEL for name in re.findall(r" = (?:\(.*?\)|\S+) ([\w-]+)\(", main))


def value_and_gradients(function, **options):
    def mean(*images):
        return function(*images, **options).mean()

    return {"value": mean, "gradient": jax.value_and_grad(mean), "both gradients": jax.value_and_grad(mean, (0, 1))}


# Kernels of a program, and its temporary memory in pairs of images. The stencil has 74 and 3.3 of MS-SSIM's gradient.
@pytest.mark.parametrize(
    ("function", "what", "scales", "most", "memory"),
    [
        (ssim, "value", 1, 5, 0.1),
        (ssim, "gradient", 1, 8, 0.1),
        (ssim, "both gradients", 1, 8, 0.6),
        (ms_ssim, "value", 5, 14, 0.4),
        (ms_ssim, "gradient", 5, 22, 0.7),
        (ms_ssim, "both gradients", 5, 26, 0.7),
    ],
)
def test_one_gpu(function, what, scales, most, memory):
    shape, sharding = (8, 256, 256, 3), jax.sharding.SingleDeviceSharding(devices(1)[0])
    program = compiled(value_and_gradients(function)[what], shape, sharding)
    text = program.as_text()
    found = kernels(text), program.memory_analysis().temp_size_in_bytes / PAIR / np.prod(shape)
    print(function.__name__, what, found)
    assert launches(text) == scales
    assert found[0] <= most
    assert found[1] <= memory


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("transformation", [lambda f: f, jax.vmap])
def test_eight_gpus(kind, transformation):
    """Two images on each, which none of them moves."""
    mesh = Mesh(devices(8), ("batch",), axis_types=(kind,))

    def of(*images):
        return ms_ssim(*images), jax.grad(total(ms_ssim), (0, 1))(*images)

    text = compiled(transformation(of), (16, 256, 256, 3), NamedSharding(mesh, PartitionSpec("batch"))).as_text()
    assert launches(text) == 10  # of the value, and of both gradients
    assert set(COLLECTIVES.findall(text)) == set()
    assert "f32[2,256,256,3]" in text
    assert "f32[16,256,256,3]" not in text
