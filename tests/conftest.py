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
OPTIMISED = {"definition", "determinism", "numerics", "stress", "structure", "gpu_programs"}


@pytest.fixture(autouse=True)
def quick_to_compile(request, monkeypatch):
    """LLVM's optimisations take half the time of a test: those about formulas do without, in float64 and slow ones.

    The quick tests in float32, which cover every function, keep them. Processes that a test starts do as it does.
    """
    slow = request.node.get_closest_marker("slow") and request.path.stem.removeprefix("test_") not in OPTIMISED
    formula = "x64" in request.fixturenames
    without = bool(slow or formula)
    jax.config.update("jax_disable_most_optimizations", without)
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", str(without))


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
