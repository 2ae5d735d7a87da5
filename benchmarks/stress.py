"""Writes the tables of docs/stress.md: this library and others on pairs of images that are hard to compare.

Run it with ``make stress``: it needs the other programs. It fails where this library does.
"""

import functools
import importlib.metadata
import math
import platform
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import dm_pix
import jax
import kornia.metrics
import monai.metrics.regression as monai
import numpy as np
import piq
import pytorch_msssim
import skimage.metrics
import torch
import torchmetrics.functional.image as torchmetrics
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from report import Table
from rich.console import Console
from rich.progress import track

import jax_msssim
from jax_msssim import conventions

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tests"))

from hard_pairs import HardPair, hard_pairs  # noqa: E402

PAGE, PICTURE = ROOT / "docs" / "stress.md", ROOT / "docs" / "images" / "stress.png"
BEGIN, END = "<!-- tables -->\n", "<!-- end of tables -->"
METRICS = {"ssim": "SSIM", "ms_ssim": "MS-SSIM"}
PAIRS = hard_pairs()
BOUND = 5e-6  # of our error
BEYOND = 1e-6  # what rounding may add to the range [-1, 1]
DISTRIBUTIONS = (
    *("jax_msssim", "pytorch-msssim", "torchmetrics", "piq", "monai", "kornia", "dm-pix", "scikit-image"),
    *("jax", "torch", "numpy"),
)

# --- programs -----------------------------------------------------------------------------------------------


class Program(NamedTuple):
    """``run(function, pair)`` gives the value of a function and its gradient for the first image."""

    run: Callable[[Callable, HardPair], tuple[Any, Any]]
    convention: str
    functions: Mapping[str, Callable]  # by metric; of two images and the largest value a pixel can have


def in_jax(function, pair):
    return _value_and_grad(function)(*pair[:3])


@functools.cache
def _value_and_grad(function):
    return jax.jit(jax.value_and_grad(function))


def in_torch(function, pair):
    # PyTorch does not read NumPy's bfloat16; by way of float32 nothing is lost.
    dtype = getattr(torch, pair.a.dtype.name)
    a, b = (torch.from_numpy(x[None, None, ..., 0].astype(np.float32)).to(dtype) for x in (pair.a, pair.b))
    value = function(a.requires_grad_(), b, pair.max_val)
    return value.item(), torch.autograd.grad(value, a)[0].float().numpy()


def in_numpy(function, pair):
    return function(*pair[:3])


@functools.cache
def ours(metric, **options):
    return lambda a, b, max_val: getattr(jax_msssim, metric)(a, b, max_val=max_val, **options)


def with_data_range(function, **options):
    return lambda a, b, max_val: function(a, b, data_range=max_val, **options)


def scikit_image(a, b, max_val):
    # Its gradient is that for the second image.
    wang = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return skimage.metrics.structural_similarity(b, a, data_range=max_val, channel_axis=-1, gradient=True, **wang)


DEFAULT, CONV = "jax_msssim", 'jax_msssim, "conv"'
IMPLEMENTATIONS = {DEFAULT: "stencil", CONV: "conv"}
PROGRAMS = {
    DEFAULT: Program(in_jax, "MATLAB", {metric: ours(metric) for metric in METRICS}),
    CONV: Program(in_jax, "MATLAB", {metric: ours(metric, implementation="conv") for metric in METRICS}),
    "pytorch-msssim": Program(
        in_torch,
        "PYTORCH_MSSSIM",
        {"ssim": with_data_range(pytorch_msssim.ssim), "ms_ssim": with_data_range(pytorch_msssim.ms_ssim)},
    ),
    "torchmetrics": Program(
        in_torch,
        "TORCHMETRICS",
        {
            "ssim": with_data_range(torchmetrics.structural_similarity_index_measure),
            "ms_ssim": with_data_range(torchmetrics.multiscale_structural_similarity_index_measure),
        },
    ),
    "piq": Program(
        in_torch,
        "PIQ",
        {"ssim": with_data_range(piq.ssim, downsample=False), "ms_ssim": with_data_range(piq.multi_scale_ssim)},
    ),
    "MONAI": Program(
        in_torch,
        "MONAI",
        {
            "ssim": lambda *pair: monai.compute_ssim_and_cs(*pair[:2], 2, [11, 11], [1.5, 1.5], pair[2])[0].mean(),
            "ms_ssim": lambda a, b, max_val: monai.compute_ms_ssim(a, b, 2, max_val).mean(),
        },
    ),
    "kornia": Program(
        in_torch, "KORNIA", {"ssim": lambda a, b, max_val: kornia.metrics.ssim(a, b, 11, max_val, eps=0.0).mean()}
    ),
    "dm_pix": Program(in_jax, "DM_PIX", {"ssim": lambda a, b, max_val: dm_pix.ssim(a, b, max_val=max_val)}),
    "scikit-image": Program(in_numpy, "SKIMAGE_WANG", {"ssim": scikit_image}),
}


def programs_with(metric: str) -> list[str]:
    return [name for name, program in PROGRAMS.items() if metric in program.functions]


# --- results ------------------------------------------------------------------------------------------------


class Cell(NamedTuple):
    """The value, its error and the largest absolute gradient, or why there are none."""

    value: float = math.nan
    error: float = math.nan
    gradient: float = math.nan
    refusal: str = ""
    exempt: bool = False

    @property
    def inaccurate(self) -> bool:
        return self.error > BOUND and not self.exempt

    @property
    def out_of_range(self) -> bool:
        return abs(self.value) > 1 + BEYOND

    @property
    def not_finite(self) -> bool:
        return not self.refusal and not (math.isfinite(self.value) and math.isfinite(self.gradient))

    @property
    def fails(self) -> bool:
        return self.inaccurate or self.out_of_range or self.not_finite


Results = dict[str, dict[str, dict[str, Cell]]]  # by metric, pair and program


def measure(metric: str, program: str, pair: str) -> Cell:
    run, convention, functions = PROGRAMS[program]
    try:
        value, gradient = run(functions[metric], PAIRS[pair])
    except Exception as error:  # whatever it says no with
        return Cell(refusal=f"{type(error).__name__}: {str(error).splitlines()[0]}")
    exact_value, _ = exact(metric, convention, pair)
    exempt = program in IMPLEMENTATIONS and PAIRS[pair].exempt(IMPLEMENTATIONS[program])
    return Cell(float(value), abs(float(value) - exact_value), largest(gradient), exempt=exempt)


@functools.cache
def exact(metric: str, convention: str, pair: str) -> tuple[float, float]:
    """Our value and largest gradient in float64, in a program's convention."""
    a, b, max_val = PAIRS[pair][:3]
    with jax.enable_x64(True):
        function = ours(metric, **getattr(conventions.ALL[convention], metric))
        value, gradient = in_jax(function, HardPair(a.astype(np.float64), b.astype(np.float64), max_val))
        return float(value), largest(gradient)


def largest(gradient) -> float:
    return float(np.abs(np.asarray(gradient, np.float64)).max())


def failures(results: Results) -> Iterator[str]:
    """What must not be: cells of ours."""
    for metric, cells in results.items():
        for pair, row in cells.items():
            for program in (DEFAULT, CONV):
                if row[program].fails or row[program].refusal:
                    yield f"{METRICS[metric]} of {pair}, {program}: {row[program]}"


# --- tables -------------------------------------------------------------------------------------------------


def versions() -> str:
    names = [f"{name} {importlib.metadata.version(name)}" for name in DISTRIBUTIONS]
    return f"Made with {', '.join(names)} and Python {platform.python_version()}, on a CPU.\n"


def summary(results: Results) -> Table:
    rows, refusals = [], {}
    for metric, cells in results.items():
        for program in programs_with(metric):
            column = {pair: row[program] for pair, row in cells.items()}
            faults = ("inaccurate", "out_of_range", "not_finite", "exempt")
            inaccurate, *counts, exempt = (sum(getattr(c, fault) for c in column.values()) for fault in faults)
            refused = [pair for pair, cell in column.items() if cell.refusal]
            most = max(cell.error for cell in column.values() if math.isfinite(cell.error))
            first = f"{inaccurate}, and {exempt} exempt" if exempt else str(inaccurate)
            rows.append((METRICS[metric], program, first, *map(str, [*counts, len(refused)]), short(most)))
            if refused:
                refusals[program] = f'{program} refuses "{refused[0]}", for example: {column[refused[0]].refusal}.'
    headings = ("metric", "program", "error above 5e-6", "outside [-1, 1]", "not finite", "refused", "largest error")
    return Table(f"How many of {len(PAIRS)} pairs fail", headings, rows, list(refusals.values()))


def of_pair(pair: str, results: Results) -> Table:
    """What every program makes of a pair, after float64 in both paddings."""
    references = {"float64": "MATLAB", "float64, mirrored": "TORCHMETRICS"}
    rows = []
    for name, convention in references.items():
        values = (exact(metric, convention, pair) for metric in METRICS)
        rows.append((name, *(cell for value, gradient in values for cell in (f"{value:.6f}", short(gradient)))))
    for name in PROGRAMS:
        cells = (results[metric][pair].get(name) for metric in METRICS)
        rows.append((name, *(text for cell in cells for text in (shown(cell) if cell else ("", "")))))
    headings = ("program", *(text for name in METRICS.values() for text in (f"{name}, error", "largest gradient")))
    return Table(pair, headings, rows)


def shown(cell: Cell) -> tuple[str, str]:
    """Value and error, and the gradient."""
    if cell.refusal:
        return "refuses", ""
    marks = [
        f"{cell.value:.6f}, {short(cell.error)}" if math.isfinite(cell.value) else "not finite",
        "out of range" if cell.out_of_range else "",
        "gradient not finite" if cell.not_finite and math.isfinite(cell.value) else "",
        "exempt" if cell.exempt else "",
    ]
    text = ", ".join(filter(None, marks))
    return f"**{text}**" if cell.fails else text, short(cell.gradient)


def short(x: float) -> str:
    """One digit and a power of ten."""
    if x == 0 or not math.isfinite(x):
        return f"{x:.0f}"
    digit, exponent = f"{x:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


# --- picture ------------------------------------------------------------------------------------------------


def plot(results: Results, path: Path) -> None:
    """The errors, a panel for each metric, a line for each pair."""
    smallest, not_finite = 1e-9, 1e5  # where smaller errors go, and those that are none
    ticks = {1e-9: "$\\leq10^{-9}$"} | {10.0**n: f"$10^{{{n}}}$" for n in range(-7, 5, 2)} | {1e5: "not finite"}
    figure = Figure(figsize=(12, 0.24 * len(PAIRS) + 1.4), layout="constrained")
    panels = figure.subplots(1, len(results), sharey=True)
    for axis, (metric, cells) in zip(panels, results.items(), strict=True):
        axis.axvspan(smallest / 5, BOUND, color="tab:green", alpha=0.1, linewidth=0)
        axis.axvline(BOUND, color="tab:green")
        axis.hlines(np.arange(len(PAIRS) - 1) + 0.5, smallest / 5, 5 * not_finite, color="0.9", linewidth=0.8)
        for i, program in enumerate(PROGRAMS):
            if program not in programs_with(metric):
                continue
            column = [(y, row[program]) for y, row in enumerate(cells.values()) if not row[program].refusal]
            places = [y + 0.6 * (i / (len(PROGRAMS) - 1) - 0.5) for y, _ in column]
            drawn = [max(cell.error, smallest) if math.isfinite(cell.error) else not_finite for _, cell in column]
            style: dict[str, Any] = {"color": f"C{i}", "s": 16}
            if program in (DEFAULT, CONV):
                style = {"color": "black", "s": 24, "marker": "D"} | ({"facecolor": "none"} if program == CONV else {})
            axis.scatter(drawn, places, label=program, zorder=3, **style)
        axis.set(title=METRICS[metric], xscale="log", xlabel="error", xlim=(smallest / 5, 5 * not_finite))
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.minorticks_off()
        axis.grid(axis="x", alpha=0.3)
    panels[0].set_yticks(range(len(PAIRS)), list(PAIRS))
    panels[0].set_ylim(len(PAIRS) - 0.5, -0.5)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    warnings.filterwarnings("ignore")  # of the other libraries, about each other
    jax.config.update("jax_platforms", "cpu")
    torch.set_num_threads(1)  # sums in one order
    results = {
        metric: {
            pair: {program: measure(metric, program, pair) for program in programs_with(metric)}
            for pair in track(PAIRS, description=name)
        }
        for metric, name in METRICS.items()
    }
    first = summary(results)
    before, page = PAGE.read_text().split(BEGIN)
    _, after = page.split(END)
    pairs = [of_pair(pair, results).markdown(level=3) for pair in PAIRS]
    tables = "\n".join([versions(), first.markdown(), "## Pair by pair\n", *pairs])
    PAGE.write_text(before + BEGIN + tables + END + after)
    plot(results, PICTURE)
    first.print(Console())
    if failed := list(failures(results)):
        sys.exit("\n".join(["This library fails:", *failed]))


if __name__ == "__main__":
    main()
