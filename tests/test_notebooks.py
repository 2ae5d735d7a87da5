"""The notebooks run from top to bottom, and are kept with the outputs of a whole run and no trace of the machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = 'QUICK = bool(os.environ.get("JAX_MSSSIM_QUICK"))'
# Absolute paths, and addresses in memory: they differ from run to run.
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work)\b| at 0x[0-9a-f]+")

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def joined(text) -> str:
    """Text as a notebook keeps it, whole or by lines."""
    return "".join(text)


def texts(notebook):
    """Everything in it that is text: sources and outputs, but not the pictures."""
    for cell in notebook["cells"]:
        yield joined(cell["source"])
        for output in cell.get("outputs", ()):
            yield joined(output.get("text", ""))
            for kind, data in output.get("data", {}).items():
                if not kind.startswith("image/"):
                    yield data if isinstance(data, str) else json.dumps(data)


@every_notebook
def test_kept_as_executed(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = notebook["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]

    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in cells}) == len(cells)
    assert cells[0]["cell_type"] == "markdown"
    assert joined(cells[0]["source"]).startswith("# ")
    assert any(QUICK in joined(cell["source"]) for cell in code[:2])

    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]

    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"].keys() <= {"tags"} for cell in cells)
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert not [kind for kind in kinds if "widget" in kind]
    assert not [text for text in texts(notebook) if OF_A_MACHINE.search(text)]
    assert path.stat().st_size < 1.5e6


@pytest.mark.slow
@every_notebook
def test_runs(path):
    for module in ("ipykernel", "matplotlib", "nbclient", "rich"):
        pytest.importorskip(module)
    runner = [sys.executable, str(FOLDER / "execute.py"), "--quick", str(path)]
    run = subprocess.run(runner, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.fail(f"{run.stdout}\n{run.stderr}", pytrace=False)
