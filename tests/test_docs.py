"""The documentation: an entry and an example for every public name, code blocks that run, links that lead somewhere."""

import ast
import contextlib
import doctest
import importlib
import inspect
import io
import itertools
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


def nnx_metrics() -> dict:
    pytest.importorskip("flax")
    nnx = importlib.import_module("jax_msssim.nnx")
    return {name: getattr(nnx, name) for name in nnx.__all__}


@contextlib.contextmanager
def as_users_have_it():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# --- the reference --------------------------------------------------------------------------------------------


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
    of_package = {f"jax_msssim.{name}" for name in jax_msssim.__all__}
    of_conventions = {f"jax_msssim.conventions.{name}" for name in (*conventions.ALL, "ALL", "Convention")}
    of_nnx = {"jax_msssim.nnx"} | {f"jax_msssim.nnx.{name}" for name in nnx_metrics()}
    assert entries() == of_package | of_conventions | of_nnx


def test_every_convention_says_what_it_is():
    body = ast.parse(inspect.getsource(conventions)).body
    described = {
        statement.targets[0].id
        for statement, following in itertools.pairwise(body)
        if isinstance(statement, ast.Assign)
        and isinstance(following, ast.Expr)
        and isinstance(following.value, ast.Constant)
    }
    assert described >= set(conventions.ALL)


def test_docstrings_of_metrics():
    for metric in nnx_metrics().values():
        text = inspect.getdoc(metric)
        assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["Args", "Raises", "Examples", "References"]
        assert "https://" in text.split("\nReferences:")[1]
        assert "[..., H, W, C]" in inspect.getdoc(metric.update)
        assert "\nReturns:\n" in inspect.getdoc(metric.compute)


def test_signatures_of_metrics():
    page = (DOCS / "api" / "nnx.md").read_text()
    for name, metric in nnx_metrics().items():
        _, *parameters = inspect.signature(metric.__init__).parameters.values()
        bare = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
        assert f".. autoclass:: {name}{bare}\n" in page


def examples() -> dict[str, doctest.DocTest]:
    """What doctest finds in the docstring of every public function, metric and module."""
    public = {name: getattr(jax_msssim, name) for name in jax_msssim.__all__ if name not in ("WANG2003", "MSSSIMTerms")}
    public |= {f"nnx.{name}": metric for name, metric in nnx_metrics().items()}
    parser = doctest.DocTestParser()
    return {
        name: parser.get_doctest(value.__doc__, dict(vars(inspect.getmodule(value))), name, None, None)
        for name, value in public.items()
    }


def test_everything_public_has_an_example():  # which `make doctest` runs
    assert [name for name, example in examples().items() if not example.examples] == []


# --- the pages ------------------------------------------------------------------------------------------------

SLOW_PAGES = [pytest.param(page, marks=pytest.mark.slow) for page in ("index.md", "guide.md", "numerics.md")]


@pytest.mark.parametrize("page", ["definition.md", *SLOW_PAGES])
def test_code_blocks(page):
    """From top to bottom in one namespace; every print says what the comment behind it does."""
    blocks = python_blocks(page)
    assert blocks
    if "import optax" in "".join(blocks):
        pytest.importorskip("optax")
    namespace, printed = {}, io.StringIO()
    with contextlib.redirect_stdout(printed), as_users_have_it():
        for block in blocks:
            exec(compile(block, page, "exec"), namespace)
    promised = re.findall(r"^ *print\(.*\)  # (.*)$", "\n".join(blocks), flags=re.MULTILINE)
    assert len(promised) == "\n".join(blocks).count("print(")
    assert printed.getvalue().splitlines() == promised


IMAGES, TENSORS, *CALLS = python_blocks("migration.md")
PAIRS = list(zip(CALLS[::2], CALLS[1::2], strict=True))
# The order of float32 sums, and the float32 window of some; 1e-5 as in docs/conventions.md.
BOUND = 1e-5


def value_of(*blocks):
    """``value`` after the blocks; ImportError where a block needs what is not installed."""
    namespace = {}
    with as_users_have_it():
        for block in blocks:
            exec(compile(block, "migration.md", "exec"), namespace)
    value = namespace["value"]
    return np.asarray(value.detach() if hasattr(value, "detach") else value)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # a peer's own
@pytest.mark.parametrize(("theirs", "ours"), PAIRS, ids=[theirs.splitlines()[0] for theirs, _ in PAIRS])
def test_migration(theirs, ours):
    """What the page puts side by side has one value; ours runs in any case."""
    if "nnx" in ours:
        pytest.importorskip("flax")
    value = value_of(IMAGES, ours)
    assert np.isfinite(value).all()
    try:
        expected = value_of(IMAGES, *[TENSORS] * ("(x, y" in theirs), theirs)
    except ImportError as missing:
        pytest.skip(str(missing))
    assert value.shape == expected.shape
    np.testing.assert_allclose(value, expected, rtol=0, atol=BOUND)


def test_every_call_of_the_migration_page_stands_in_a_pair():
    assert len(PAIRS) == (DOCS / "migration.md").read_text().count("::::{grid}")
    for theirs, ours in PAIRS:
        assert "jax_msssim" in ours
        assert "jax_msssim" not in theirs


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links(page):
    assert [target for target in targets(page) if not exists(page, target)] == []


def test_links_are_seen():
    found = [target for page in PAGES for target in targets(page)]
    assert {"images/demo.png", "guide.md", "notebooks/01_quickstart", "../benchmarks/results.md"} <= set(found)


@pytest.mark.slow
def test_build_without_warnings(tmp_path):
    for module in ("sphinx", "myst_nb", "sphinx_book_theme", "sphinx_design", "flax"):
        pytest.importorskip(module)
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-d", tmp_path / "doctrees", DOCS, tmp_path]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    for page in PAGES:
        assert (tmp_path / page.relative_to(DOCS)).with_suffix(".html").is_file()
