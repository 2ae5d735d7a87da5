"""What every test runs under: strict promotion, eight CPU devices, every implementation."""

import importlib.util

import jax
import pytest
from compat import enable_x64
from jax.sharding import AxisType

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_num_cpu_devices", 8)  # before anything asks for a device

# Parts of the library whose packages are not installed.
NEED = {
    "test_cli.py": "imagecodecs",
    "test_deep.py": "flax",
    "test_docs.py": "flax",
    "test_nnx.py": "flax",
    "test_examples.py": "flax",
}
collect_ignore = [file for file, package in NEED.items() if importlib.util.find_spec(package) is None]


# Of the linear blurs one is enough for what they share.
@pytest.fixture(params=["stencil", "conv", pytest.param("matmul", marks=pytest.mark.slow)])
def implementation(request):
    return request.param


# Whose slow tests compile as users do: they are about roundings, or about what XLA makes of a program.
OPTIMISED = {"test_definition.py", "test_numerics.py", "test_stress.py", "test_structure.py", "test_gpu_programs.py"}


@pytest.fixture(autouse=True)
def quick_to_compile(request):
    """LLVM's optimisations take half the time of a slow test; the quick ones, which cover every function, keep them."""
    slow = request.node.get_closest_marker("slow") and request.path.name not in OPTIMISED
    jax.config.update("jax_disable_most_optimizations", bool(slow))


@pytest.fixture
def x64():
    with enable_x64(True):
        yield


@pytest.fixture
def eight_devices():
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")


@pytest.fixture(params=[AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])
def mesh(request, eight_devices):
    """Eight devices, to lay a batch over."""
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(request.param,))
    with jax.set_mesh(mesh):
        yield mesh
