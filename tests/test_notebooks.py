"""The notebooks run from top to bottom, and are kept with the outputs of a whole run and no trace of the machine."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
# Absolute paths, and addresses in memory: they differ from run to run.
OF_A_MACHINE = re.compile(r"(?<![\w.])/(?:home|root|tmp|work)\b| at 0x[0-9a-f]+")

every_notebook = pytest.mark.parametrize("path", sorted(FOLDER.glob("*.ipynb")), ids=lambda path: path.stem)


@every_notebook
def test_kept_as_executed(path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    assert not [kind for output in outputs for kind in output.get("data", {}) if "widget" in kind]
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for output in outputs:  # what is left is text
        output["data"] = {kind: x for kind, x in output.get("data", {}).items() if not kind.startswith("image/")}
    assert OF_A_MACHINE.findall(json.dumps(notebook)) == []


@pytest.mark.slow
@every_notebook
def test_runs(path):
    for module in ("ipykernel", "matplotlib", "nbclient", "rich"):
        pytest.importorskip(module)
    runner = [sys.executable, str(FOLDER / "execute.py"), "--quick", str(path)]
    run = subprocess.run(runner, capture_output=True, text=True, check=False)
    if run.returncode:
        pytest.fail(f"{run.stdout}\n{run.stderr}", pytrace=False)
