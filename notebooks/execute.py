"""Execute the notebooks from top to bottom and write them back with their outputs, free of traces of the machine.

``python notebooks/execute.py`` takes all of them, ``python notebooks/execute.py notebooks/01_quickstart.ipynb`` one.
"""

import argparse
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

# Smaller sizes, after the first cell.
QUICK = {
    "01_quickstart": "BISECTIONS = 12",
    "02_train_with_ms_ssim": "STEPS, BATCH, EVALUATIONS = 12, 2, 2",
    "03_batch_metrics": "PICTURES, QUALITIES, BATCH = 9, (10, 80), 4",
    "04_tpu_and_sharding": "BATCH, STEPS, REPEATS, COUNTS = jax.device_count(), 3, 1, [1]",
    "05_restore_by_gradient": "SIDE, FRAMES = 161, (0, 5, 20, 60)",
    "06_dists": "SIDE = 128",
}
# What the text says of the numbers, at any size, after the last cell.
CLAIMS = {
    "01_quickstart": """
assert max(psnr.values()) - min(psnr.values()) < 0.1
for metric in (ssims, ms_ssims):
    assert min(metric, key=metric.get) == "noise"
    best = min(metric[name] for name in ("mean shift", "contrast", "moved"))
    assert best > max(metric[name] for name in ("noise", "salt and pepper", "JPEG", "blur"))
""",
    "05_restore_by_gradient": """
assert largest["relu"][negative] == 0 < largest["soft"].min()
assert (climbs["MS-SSIM, relu"][1][:, negative] == 0).all()
assert (climbs["MS-SSIM"][1][-1] > 0.5).all()
""",
    "06_dists": "assert (distance[:, 0] < distance[:, 1]).all()",
}
# And at full size.
CLAIMS_IN_FULL = {
    "02_train_with_ms_ssim": """
for with_ms_ssim in ("MS-SSIM", "MS-SSIM and L1"):
    for without in ("L2", "L1"):
        assert final[with_ms_ssim]["MS-SSIM"] > final[without]["MS-SSIM"] + 0.01
        assert final[with_ms_ssim]["PSNR"] < final[without]["PSNR"]
        assert final[with_ms_ssim]["colour error"] > 1.2 * final[without]["colour error"]
        assert ratio[with_ms_ssim] > 1.2 * ratio[without]
""",
    "05_restore_by_gradient": """
assert tint[2] > 0.05 > -0.05 > tint[0]
assert climbs["MS-SSIM"][1][step, negative] > 0.99
assert (errors["MS-SSIM"] > 5 * errors["MS-SSIM and L1"]).all()
""",
}


def execute(path: Path, quick: bool) -> nbformat.NotebookNode:
    """The notebook, executed in a fresh kernel; of its metadata, what renders it is left."""
    notebook = nbformat.read(path, as_version=4)
    claims = CLAIMS.get(path.stem, "") + (
        "" if quick else CLAIMS_IN_FULL.get(path.stem, "")
    )
    notebook.cells.append(nbformat.v4.new_code_cell(claims))
    if quick:
        first = next(cell for cell in notebook.cells if cell.cell_type == "code")
        first.source += f"\n{QUICK[path.stem]}"
    NotebookClient(
        notebook, kernel_name="python3", timeout=TIMEOUT, record_timing=False
    ).execute()
    del notebook.cells[-1]
    notebook.metadata = METADATA
    for cell in notebook.cells:
        cell.metadata = {}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks",
        type=Path,
        nargs="*",
        help="the notebooks to execute, by default all",
    )
    parser.add_argument(
        "--quick", action="store_true", help="at reduced size, and write nothing"
    )
    arguments = parser.parse_args()

    paths = arguments.notebooks or sorted(FOLDER.glob("*.ipynb"))
    for path in track(paths, description="notebooks"):
        print(path.stem, flush=True)
        try:
            notebook = execute(path, arguments.quick)
        except (CellExecutionError, CellTimeoutError) as error:
            sys.exit(re.sub(r"\x1b\[[\d;]*m", "", f"{path}: {error}"))
        if not arguments.quick:
            nbformat.write(notebook, path)


if __name__ == "__main__":
    main()
