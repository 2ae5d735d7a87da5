"""Execute the notebooks from top to bottom and write them back with their outputs, free of traces of the machine.

``python notebooks/execute.py`` takes all of them, ``python notebooks/execute.py notebooks/01_quickstart.ipynb`` one.
"""

import argparse
import os
import re
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from rich.progress import track

FOLDER = Path(__file__).parent
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
TIMEOUT = 600  # seconds for one cell


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook, executed in a fresh kernel; of its metadata, what renders it is left."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, kernel_name="python3", timeout=TIMEOUT, record_timing=False).execute()
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.tags} if "tags" in cell.metadata else {}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", type=Path, nargs="*", help="the notebooks to execute, by default all")
    parser.add_argument("--quick", action="store_true", help="at reduced size, and write nothing")
    arguments = parser.parse_args()

    if arguments.quick:
        os.environ["JAX_MSSSIM_QUICK"] = "1"
    else:
        os.environ.pop("JAX_MSSSIM_QUICK", None)
    paths = arguments.notebooks or sorted(FOLDER.glob("*.ipynb"))
    for path in track(paths, description="notebooks"):
        print(path.stem, flush=True)
        try:
            notebook = execute(path)
        except (CellExecutionError, CellTimeoutError) as error:
            sys.exit(re.sub(r"\x1b\[[\d;]*m", "", f"{path}: {error}"))
        if not arguments.quick:
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
