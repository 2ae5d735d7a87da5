"""The documentation: an entry and an example for every public name, code blocks that run, links that lead somewhere."""

import contextlib
import doctest
import importlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_msssim
from jax_msssim import conventions

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts)


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(), flags=re.DOTALL)


def run(name: str, *blocks: str) -> tuple[dict, list[str]]:
    """The names that the blocks leave, run one after the other as users would, and the lines that they print."""
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed), jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for block in blocks:
            exec(compile(block, name, "exec"), namespace)
    return namespace, printed.getvalue().splitlines()


# --- the reference --------------------------------------------------------------------------------------------


def public() -> dict:
    """Everything public but the conventions, by its full name."""
    modules = jax_msssim, *(importlib.import_module(f"jax_msssim.{name}") for name in ("nnx", "deep"))
    found = {f"{module.__name__}.{name}": getattr(module, name) for module in modules for name in module.__all__}
    return found | {module.__name__: module for module in modules[1:]}


def entries() -> set[str]:
    """The full names that the reference pages document."""
    found = set()
    for page in (DOCS / "api").glob("*.md"):
        module = ""
        for kind, name in re.findall(r"^\.\. (\w+):: ([\w.]+)", page.read_text(), flags=re.MULTILINE):
            if kind in ("currentmodule", "automodule"):
                module = name
            if kind != "currentmodule":
                found.add(name if kind == "automodule" else f"{module}.{name}")
    return found


def test_everything_public_has_an_entry_and_nothing_else():
    of_conventions = {f"jax_msssim.conventions.{name}" for name in (*conventions.ALL, "ALL", "Convention")}
    assert entries() == public().keys() | of_conventions


def test_everything_public_has_an_example():  # which `make doctest` runs
    values = {name: x for name, x in public().items() if callable(x) or inspect.ismodule(x)}
    for name in ("MSSSIMTerms", "PaddedImages", "deep.FeatureTerms"):  # have that of the function that returns them
        del values[f"jax_msssim.{name}"]
    assert [name for name, x in values.items() if not doctest.DocTestParser().get_examples(x.__doc__)] == []


# --- the pages ------------------------------------------------------------------------------------------------

SLOW_PAGES = [
    pytest.param(page, marks=pytest.mark.slow)
    for page in ("index.md", "guide.md", "training.md", "numerics.md", "deep.md")
]


@pytest.mark.parametrize("page", ["definition.md", *SLOW_PAGES])
def test_code_blocks(page):
    """From top to bottom in one namespace; every print says what the comment behind it does."""
    blocks = python_blocks(page)
    assert blocks
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(blocks), flags=re.MULTILINE)
    assert len(promised) == "\n".join(blocks).count("print(")
    assert run(page, *blocks)[1] == promised


README_BLOCKS = python_blocks(ROOT / "README.md")


@pytest.mark.slow
@pytest.mark.parametrize("block", README_BLOCKS, ids=range(len(README_BLOCKS)))
def test_readme(block):
    """Each block runs alone, and shows something."""
    printed = " ".join(run("README.md", block)[1])
    assert re.search(r"\d", printed)
    assert "nan" not in printed


IMAGES, TENSORS, *CALLS = python_blocks("migration.md")
CALLS_OF_OTHERS = re.findall(r"^### (.*)$", (DOCS / "migration.md").read_text(), flags=re.MULTILINE)
PAIRS = list(zip(CALLS[::2], CALLS[1::2], strict=True))


def value_of(*blocks):
    """``value`` after the blocks; ImportError where a block needs what is not installed."""
    value = run("migration.md", *blocks)[0]["value"]
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a peer's own
@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=CALLS_OF_OTHERS)
def test_migration(theirs, ours):
    """What the page puts side by side has one value; ours runs in any case."""
    assert ("jax_msssim" in theirs, "jax_msssim" in ours) == (False, True)
    value = value_of(IMAGES, ours)
    assert np.isfinite(value).all()
    try:
        expected = value_of(IMAGES, *[TENSORS] * ("(x, y" in theirs), theirs)
    except ImportError as missing:
        pytest.skip(str(missing))
    assert value.shape == expected.shape
    # The order of float32 sums, and the float32 window of some; 1e-5 as in docs/conventions.md.
    np.testing.assert_allclose(value, expected, rtol=0, atol=1e-5)


def targets(page: Path) -> list[str]:
    """What a page links to, shows or includes in this repository."""
    text = page.read_text()
    text_without_code = re.sub(r"```(?!\{).*?```", "", text, flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", text_without_code)
    found += re.findall(r"^```\{(?:include|literalinclude)\} (\S+)$", text, flags=re.MULTILINE)
    for tree in re.findall(r"```\{toctree\}\n(.*?)```", text, flags=re.DOTALL):
        found += [line for line in tree.splitlines() if line and not line.startswith(":")]
    return [target for target in found if not target.startswith(("https://", "http://"))]


def exists(page: Path, target: str) -> bool:
    name, _, anchor = target.partition("#")
    file = page if not name else page.parent / name
    if file.parent == DOCS / "notebooks":  # copied there from the root when the pages are built
        file = ROOT / "notebooks" / file.name
    choices = [file, file.with_name(file.name + ".md"), file.with_name(file.name + ".ipynb")]
    found = next((choice for choice in choices if choice.is_file()), None)
    if found is None or not anchor:
        return found is not None
    headings = re.findall(r"^#+ (.*)$", found.read_text(), flags=re.MULTILINE)
    return anchor in [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]


def test_links():
    links = [(page, target) for page in PAGES for target in targets(page)]
    assert {"images/demo.png", "guide.md", "notebooks/01_quickstart"} <= {target for _, target in links}  # of each kind
    assert [(str(page), target) for page, target in links if not exists(page, target)] == []


@pytest.mark.slow
def test_build_without_warnings(tmp_path):
    for module in ("sphinx", "myst_nb", "sphinx_book_theme", "ziamath"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "doctrees", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        html = (tmp_path / page.relative_to(DOCS)).with_suffix(".html").read_text()
        assert re.findall(r'<(?:script|link|img)\b[^>]*(?:src|href)="(?:https?:)?//[^"]*', html) == []  # no other host
