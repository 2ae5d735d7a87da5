"""The package as it is shipped: the wheel in an empty environment, versions and tools that must agree."""

import os
import re
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Without Flax and Optax the library imports and computes.
USE = """
import importlib.util, numpy as np
assert not any(importlib.util.find_spec(name) for name in ("flax", "optax", "matplotlib", "PIL", "rich"))
import jax_msssim
print(jax_msssim.__version__, jax_msssim.__file__)
a = np.linspace(0, 1, 176 * 176, dtype=np.float32).reshape(176, 176, 1)
print(jax_msssim.ms_ssim(a, a), jax_msssim.ms_ssim_loss(a, a))
"""


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(tmp_path):
    run = {"check": True, "capture_output": True, "text": True, "timeout": 600}
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode:
        pytest.skip("the environment has no pip")
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)], **run)
    (wheel,) = tmp_path.glob("jax_msssim-*.whl")
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([*pip, "--python", str(python), "install", str(wheel)], **run)
    out = subprocess.run([python, "-c", USE], cwd=tmp_path, **run).stdout.splitlines()
    version, path = out[0].split(" ", 1)
    assert version == PROJECT["project"]["version"]
    assert str(tmp_path) in path
    assert (Path(path).parent / "py.typed").exists()
    assert len([*Path(path).parent.glob("_cuda/ptx/*.ptx.gz")]) == 6
    assert [float(value) for value in out[1].split()] == [1, 0]


def test_versions_agree():
    version = PROJECT["project"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## {version} " in (ROOT / "CHANGELOG.md").read_text()
    ruff = next(x for x in PROJECT["dependency-groups"]["lint"] if x.startswith("ruff"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==[\d.]+", hooks)) == {ruff.replace(" ", "")}


def test_the_oldest_releases_are_those_declared():
    def releases(requirements, relation):
        found = (re.match(rf"([\w-]+) {relation} ([\d.]+)", x) for x in requirements)
        return {match[1]: match[2] for match in found if match}

    declared = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["cli"]
    assert releases(declared, ">=") == releases(PROJECT["dependency-groups"]["oldest"], "==")
