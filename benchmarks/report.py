"""What was measured, as tables on the console and in Markdown, as JSON, and as a plot."""

import json
import math
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import rich.table
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console

OURS = "jax_msssim"
MIB, GIB = 2**20, 2**30

Records = Sequence[dict[str, Any]]


class Table(NamedTuple):
    """Cells of text under headings; the notes come below."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def print(self, console: Console) -> None:
        table = rich.table.Table(*self.headings, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        console.print(table, *self.notes, "", sep="\n")

    def markdown(self, level: int = 2) -> str:
        lines = [self.headings, ["---"] * len(self.headings), *self.rows]
        return "\n".join(
            [f"{'#' * level} {self.title}", "", *(f"| {' | '.join(line)} |" for line in lines), "", *self.notes, ""]
        )


def libraries(records: Records) -> Table:
    rows = [(r["library"], r["version"] or f"not measured: {r['missing']}") for r in records]
    return Table("Versions", ("library", "version"), rows)


def check(records: Records) -> Table:
    rows = [
        (
            r["work"],
            r["library"],
            f"{r['value']:.7f}",
            f"`{r['convention']}`",
            f"{r['difference']:+.0e}" if r["agrees"] else f"{r['difference']:+.0e}, TOO LARGE",
            f"{r['gradient_error']:.0e}",
            f"{r['difference_from_defaults']:+.0e}",
        )
        for r in records
    ]
    headings = ("work", "library", "value", "our convention", "difference", "of gradient", "from our defaults")
    notes = [
        "Differences are theirs minus ours under their convention, in float32; that of the gradient is relative, by "
        "norms. The last column is what the conventions differ by.",
        *dict.fromkeys(r["gradient_note"] for r in records if r["gradient_note"]),
    ]
    return Table("The same numbers", headings, rows, notes)


def ratios(records: Records) -> Table:
    """The figure most people look for."""
    rows = [
        (
            work,
            which,
            milliseconds(times[OURS]["median"]),
            _ratio(times, [name for name, r in times.items() if r["framework"] == "PyTorch"]),
            _ratio(times, [name for name in times if name == "dm_pix"]),
            _ratio(times, [name for name in times if name != OURS]),
        )
        for work, which, times in _races(records)
    ]
    headings = ("work", "pass", f"{OURS}, ms", "fastest PyTorch library", "dm_pix", "fastest of all others")
    return Table("How many times as long the others take", headings, rows)


def compare(records: Records) -> Table:
    rows = [
        (
            work,
            which,
            name,
            milliseconds(r["median"]),
            _quartiles(r),
            str(r["rounds"]),
            f"{r['median'] / times[OURS]['median']:.1f}x",
        )
        for work, which, times in _races(records)
        for name, r in sorted(times.items(), key=lambda item: item[1]["median"])
    ]
    headings = ("work", "pass", "library", "median, ms", "quartiles, ms", "rounds", "ours")
    return Table("Time", headings, rows)


def first_calls(records: Records) -> Table:
    rows = [
        (r["work"], r["pass"], r["library"], f"{r['growth_bytes'] / MIB:,.0f}", f"{r['first_result_seconds']:.2f}")
        for r in records
    ]
    notes = ["Each in a process of its own. The memory is what the first call adds at its peak, compilation included."]
    headings = ("work", "pass", "library", "memory, MiB", "first result, s")
    return Table("Memory and the first result", headings, rows, notes)


def test_set(records: Records) -> Table:
    rows = [
        (
            r["library"],
            r["how"],
            *(f"{r[f'{nth}{of}_seconds']:.2f}" for nth in ("first", "second") for of in ("_processor", "")),
            f"{r['ssim']:.4f}",
            f"{r['ms_ssim']:.4f}",
        )
        for r in records
    ]
    notes = [
        f"SSIM and MS-SSIM of {records[0]['work']}: crops of photographs and the same with noise, uint8. Each library "
        "in a process of its own, on the CPU. The first pass counts from the start of the process, imports and "
        "compilation included; the second is the same again in that process. Values are means, with each one's own "
        "conventions."
    ]
    passes = [f"{nth} pass, {of}s" for nth in ("first", "second") for of in ("processor ", "")]
    return Table("A test set of many sizes", ("library", "how", *passes, "SSIM", "MS-SSIM"), rows, notes)


def native(records: Records) -> Table:
    rows = []
    for work, group in groupby(records, key=lambda r: r["work"]):
        times = {r["library"]: r for r in group}
        for name, r in times.items():
            ratio = f"{r['median'] / times[OURS]['median']:.2f}x"
            rows.append((work, name, milliseconds(r["median"]), _quartiles(r), ratio, f"{r['value']:.6f}"))
    notes = [
        "Processor time of all threads after the first call, forward, from uint8 images. SSIM is that of "
        "`conventions.SKIMAGE`, fast-ssim's number. MS-SSIM is that of luma, for which blazediff-ssim has a convention "
        "of its own: it reflects at borders, and its 2x2 means begin one pixel early."
    ]
    headings = ("work", "library", "processor, ms", "quartiles, ms", "ours", "value")
    return Table("Native programs", headings, rows, notes)


def compilation(records: Records) -> Table:
    seconds = sorted(r["first_result_seconds"] for r in records)
    row = (records[0]["work"], f"{seconds[0]:.2f}", ", ".join(f"{s:.2f}" for s in seconds))
    return Table("Compilation", ("first value_and_grad of", "best, s", "all, s"), [row])


def temporaries(records: Records) -> Table:
    rows = [
        (
            r["work"],
            r["pass"],
            *(("not known", "") if r["temp_bytes"] is None else _memory(r["temp_bytes"], r["input_bytes"])),
        )
        for r in records
    ]
    headings = ("work", "pass", "temporary, MiB", "of both images")
    return Table("Temporary memory of the compiled program", headings, rows)


def scaling(records: Records) -> Table:
    rows = [
        (r["work"], r["pass"], milliseconds(r["median"]), _quartiles(r), f"{1e9 * r['median'] / r['pixels']:.1f}")
        for r in records
    ]
    notes = []
    for which, group in groupby(records, key=lambda r: r["pass"]):
        costs = [r["median"] / r["pixels"] for r in group]
        notes.append(f"{which}: the dearest pixel costs {max(costs) / min(costs):.2f} times the cheapest.")
    return Table("Cost per pixel", ("work", "pass", "median, ms", "quartiles, ms", "ns per pixel"), rows, notes)


def largest(records: Records) -> Table:
    rows = [(r["work"], r["pass"], f"{r['peak_bytes'] / GIB:.2f}", f"{r['first_result_seconds']:.1f}") for r in records]
    headings = ("work", "pass", "peak of the whole process, GiB", "first result, s")
    return Table("The largest images", headings, rows)


def batching(records: Records) -> Table:
    rows = []
    for which, group in groupby(records, key=lambda r: r["pass"]):
        times = {r["how"]: r for r in group}
        batched = times["batched"]
        for how, r in times.items():
            share = batched["median"] / (batched["batch"] if how == "batch of one" else 1)
            rows.append((which, how, milliseconds(r["median"]), _quartiles(r), f"{r['median'] / share:.2f}x"))
    headings = ("pass", "how", "median, ms", "quartiles, ms", "of its share of the batched call")
    return Table(f"Batches: {records[0]['work']}", headings, rows)


def implementations(records: Records) -> Table:
    copies = [r for r in records if r["implementation"] == "copy"]
    rows = []
    for r in records:
        row = [r.get("work", "1 GiB"), r.get("pass", ""), r["implementation"], milliseconds(r["median"]), _quartiles(r)]
        if copies:
            bandwidth, best = (x["bytes"] / x["median"] for x in (r, copies[0]))
            row += [f"{bandwidth / 1e9:,.0f}", f"{100 * bandwidth / best:.1f} %"]
        rows.append(row)
    headings = ["work", "pass", "implementation", "median, ms", "quartiles, ms"]
    notes = []
    if copies:
        headings += ["GB/s", "of a copy"]
        notes = ["Bandwidth counts the bytes that must move, the images in and the gradient out, whatever moved."]
    return Table("Implementations", headings, rows, notes)


def training(records: Records) -> Table:
    rows = []
    for shape, group in groupby(records, key=lambda r: r["shape"]):
        group = list(group)
        with_loss, with_l2 = (r["median"] for r in group)
        for r in group:
            share = f"{100 * (1 - with_l2 / with_loss):.1f} %" if r is group[0] else ""
            rows.append((shape, r["loss"], milliseconds(r["median"]), _quartiles(r), share))
    headings = ("batch", "loss", "step, ms", "quartiles, ms", "more than L2 takes, of the step")
    return Table("A step of training the demonstration's network", headings, rows)


TABLES = {
    "libraries": [libraries],
    "check": [check],
    "compare": [ratios, compare],
    "first_calls": [first_calls],
    "test_set": [test_set],
    "native": [native],
    "compilation": [compilation],
    "temporaries": [temporaries],
    "scaling": [scaling],
    "largest": [largest],
    "batching": [batching],
    "implementations": [implementations],
    "training": [training],
}


def show(section: str, records: Records, console: Console) -> None:
    for table in TABLES[section]:
        table(records).print(console)


def write(results: dict[str, Any], folder: Path) -> list[Path]:
    """The report, the data and the plot, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "results.json", folder / "report.md"]
    paths[0].write_text(json.dumps(results, indent=1) + "\n")
    sections = [
        table(results[name]).markdown() for name, tables in TABLES.items() if name in results for table in tables
    ]
    machine = ["# Benchmark", "", *(f"- {key}: {value}" for key, value in results["machine"].items()), ""]
    paths[1].write_text("\n".join([*machine, *sections]))
    if "compare" in results:
        paths.append(folder / "plot.png")
        plot(results["compare"], paths[-1])
    return paths


def plot(records: Records, path: Path) -> None:
    """Time of every library, a panel for each pass, a group of points for each work."""
    works = list(dict.fromkeys(r["work"] for r in records))
    names = list(dict.fromkeys(r["library"] for r in records))
    passes = list(dict.fromkeys(r["pass"] for r in records))
    figure = Figure(figsize=(11, 0.8 * len(works) + 1.6), layout="constrained")
    axes = figure.subplots(1, len(passes), sharey=True, squeeze=False)[0]
    for axis, which in zip(axes, passes, strict=True):
        for i, name in enumerate(names):
            chosen = [r for r in records if r["library"] == name and r["pass"] == which]
            height = [works.index(r["work"]) + 0.7 * (i / max(1, len(names) - 1) - 0.5) for r in chosen]
            middle = [1e3 * r["median"] for r in chosen]
            spread = [
                [1e3 * (r["median"] - r["first_quartile"]) for r in chosen],
                [1e3 * (r["third_quartile"] - r["median"]) for r in chosen],
            ]
            style = {"marker": "D", "color": "black"} if name == OURS else {"marker": "o"}
            axis.errorbar(middle, height, xerr=spread, linestyle="", label=name, **style)
        axis.set(title=which, xscale="log", xlabel="milliseconds, median and quartiles")
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(works)), works)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names), frameon=False)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=120)


def milliseconds(seconds: float) -> str:
    """Three digits, never in powers of ten."""
    value = 1e3 * seconds
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def _quartiles(record: dict) -> str:
    return f"{milliseconds(record['first_quartile'])} to {milliseconds(record['third_quartile'])}"


def _memory(temp_bytes: int, input_bytes: int) -> tuple[str, str]:
    return f"{temp_bytes / MIB:,.1f}", f"{temp_bytes / input_bytes:.2f}x"


def _races(records: Records) -> Iterable[tuple[str, str, dict[str, dict]]]:
    """Work, pass, and the records of one race by library."""
    for (work, which), group in groupby(records, key=lambda r: (r["work"], r["pass"])):
        yield work, which, {r["library"]: r for r in group}


def _ratio(times: dict[str, dict], names: Sequence[str]) -> str:
    if not names:
        return ""
    fastest = min(names, key=lambda name: times[name]["median"])
    ratio = times[fastest]["median"] / times[OURS]["median"]
    return f"{ratio:.1f}x" if len(names) == 1 else f"{ratio:.1f}x ({fastest})"
