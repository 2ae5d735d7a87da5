"""The package as it is shipped: the wheel in an empty environment, versions and tools that must agree."""

import email
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import jax_msssim

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


RUN = {"check": True, "capture_output": True, "text": True, "timeout": 600}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], **RUN)
    return *folder.glob("jax_msssim-*.tar.gz"), *folder.glob("jax_msssim-*.whl")


@pytest.mark.slow
def test_what_an_index_shows(distributions):
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", *map(str, distributions)], **RUN)
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(wheel.read(name))
    page = metadata.get_payload()
    assert metadata["Author"] == "The jax_msssim authors"
    assert re.findall(r"\]\((?!https://)", page) == []  # there are no files to link to
    links = r"\]\((https://[^)]+)\)"
    assert re.findall(links, page) == re.findall(links, (ROOT / "README.md").read_text())


@pytest.mark.slow
def test_the_sdist(distributions):
    with tarfile.open(distributions[0]) as file:
        paths = {path.partition("/")[2] for path in file.getnames()}
    assert {"README.md", "LICENSE", "pyproject.toml", "Makefile", "tests/conftest.py", "tests/README.md"} <= paths
    assert all((ROOT / path).is_file() for path in paths - {"PKG-INFO"})
    assert not [path for path in paths if re.search(r"\.git(/|$)|\.venv|__pycache__|\.pyc$|_build|_cache", path)]


@pytest.mark.slow
def test_the_wheel_in_an_empty_environment(distributions, tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([*pip, "--python", str(python), "install", str(distributions[1])], **RUN)
    out = subprocess.run([python, "-I", "-c", USE], cwd=tmp_path, **RUN).stdout.splitlines()
    version, path = out[0].split(" ", 1)
    assert version == jax_msssim.__version__
    assert str(tmp_path) in path
    assert (Path(path).parent / "py.typed").exists()
    assert len([*Path(path).parent.glob("_cuda/ptx/*.ptx.gz")]) == 6
    assert [float(value) for value in out[1].split()] == [1, 0]


def test_versions_agree():
    assert f"\n## {jax_msssim.__version__} " in (ROOT / "CHANGELOG.md").read_text()
    ruff = next(x for x in PROJECT["dependency-groups"]["lint"] if x.startswith("ruff"))
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert set(re.findall(r"ruff==[\d.]+", hooks)) == {ruff.replace(" ", "")}


def test_the_oldest_releases_are_those_declared():
    def releases(requirements, relation):
        found = (re.match(rf"([\w-]+) {relation} ([\d.]+)", x) for x in requirements)
        return {match[1]: match[2] for match in found if match}

    declared = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["cli"]
    assert releases(declared, ">=") == releases(PROJECT["dependency-groups"]["oldest"], "==")


def test_the_workflow_runs_what_ci_runs():
    script, workflow = (ROOT / ".ci" / "run").read_text(), (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    # Each environment of the script is a runner of the workflow.
    steps = re.sub(r' VENV=\S+| "\$\{newest\[@\]\}"', "", "\n".join(re.findall(r"step make (.*)", script))).splitlines()
    assert len(steps) == 7
    jobs = [job.replace("\\", "") for job in re.findall(r'make: "(.*)" }', workflow)]
    assert sorted(job.replace('"', "") for job in jobs) == sorted(step.replace('"', "") for step in steps)
