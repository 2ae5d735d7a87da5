"""The values of all pairs as tables, as CSV and as JSON."""

import csv
import io
import json
import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple, TextIO

from jax_msssim._command_line.compare import Failure, Result, Settings

_TITLES = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "ms_ssim": "MS-SSIM",
    "ms_ssim_db": "MS-SSIM (dB)",
    "dssim": "D-SSIM",
    "dists": "DISTS",
}
_WORST = 5


class _Row(NamedTuple):
    """A line of the summary: ``mean``, ``median``, or ``worst`` and a pair."""

    kind: str
    pair: str
    values: dict[str, float | None]


def print_pair(result: Result, settings: Settings, stream: TextIO) -> None:
    """One metric a line."""
    values = result.values._asdict()
    if not stream.isatty():
        for name in _columns(settings):
            print(name, _exact(values[name]), sep="\t", file=stream)
        if result.transparent.files:
            for name, text in _transparency(result).items():
                print(name, text, sep="\t", file=stream)
        return
    from rich.console import Console  # for a person, who does not mind that it takes a while
    from rich.table import Table

    table = Table("metric", "value")
    table.columns[1].justify = "right"
    for name in _metrics(settings):
        scales = values["scales"] if name.startswith("ms") else None
        title = _TITLES[name] if scales in (None, 5) else f"{_TITLES[name]}, {scales} scales"
        table.add_row(title, _rounded(name, values[name]))
    if result.transparent.files:
        table.caption = "{transparent} laid over {ground}".format(**_transparency(result))
    Console(file=stream).print(table)


def print_summary(results: Sequence[Result], settings: Settings, stream: TextIO) -> None:
    """Mean and median of each metric, and the worst few pairs."""
    names, rows = _metrics(settings), _summary(results, settings)
    if not stream.isatty():
        print("row", "pair", *names, sep="\t", file=stream)
        for row in rows:
            print(row.kind, row.pair, *(_exact(row.values[name]) for name in names), sep="\t", file=stream)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    title = f"{len(results)} pairs, the worst by {_TITLES[_ranked_by(results)]}"
    transparent = sum(bool(result.transparent.files) for result in results)
    caption = f"{transparent} with transparent images, laid over white or black" if transparent else None
    table = Table("", *(_TITLES[name] for name in names), title=title, caption=caption)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(Text(row.pair or row.kind), *(_rounded(name, row.values[name]) for name in names))
        if row.kind == "median":
            table.add_section()
    Console(file=stream).print(table)


def to_csv(results: Sequence[Result], settings: Settings) -> bytes:
    """A line for each pair; empty for what a pair does not have."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = _columns(settings)
    writer.writerow(["reference", "test", *names, "transparent", "ground"])
    for result in results:
        cells = ["" if cell is None else _exact(cell) for cell in (getattr(result.values, name) for name in names)]
        writer.writerow([result.pair.reference, result.pair.test, *cells, *_transparency(result).values()])
    return text.getvalue().encode(errors="surrogateescape")


def to_json(results: Sequence[Result], failures: Sequence[Failure], settings: Settings) -> bytes:
    """All pairs, those that failed and why, and the summary; null for what does not exist or is infinite."""

    def number(value):
        if value is None or not math.isfinite(value):
            return None
        return value if isinstance(value, int) else float(_exact(value))

    def finite(values, names):
        return {name: number(values[name]) for name in names}

    def line(result):
        files = {"reference": str(result.pair.reference), "test": str(result.pair.test)}
        return files | finite(result.values._asdict(), _columns(settings)) | _transparency(result)

    rows = _summary(results, settings)
    content = {
        "pairs": [line(result) for result in results],
        "failed": [{"pair": failure.name, "error": failure.reason} for failure in failures],
        "mean": finite(rows[0].values, _metrics(settings)),
        "median": finite(rows[1].values, _metrics(settings)),
        "worst": [row.pair for row in rows[2:]],
    }
    return (json.dumps(content, indent=2, allow_nan=False) + "\n").encode()


def _metrics(settings: Settings) -> list[str]:
    without = ["ms_ssim", "ms_ssim_db"] * (not settings.convention.ms_ssim) + ["dists"] * (settings.network is None)
    return [name for name in _TITLES if name not in without]


def _columns(settings: Settings) -> list[str]:
    return _metrics(settings) + ["scales"] * bool(settings.convention.ms_ssim)


def _transparency(result: Result) -> dict[str, str]:
    """Which of the two files was transparent, and what it was laid over."""
    pair, (files, ground) = result.pair, result.transparent
    if not files:
        return {"transparent": "none", "ground": "none"}
    which = "both" if len(files) == 2 else "reference" if files == [pair.reference] else "test"
    return {"transparent": which, "ground": str(ground)}


def _summary(results: Sequence[Result], settings: Settings) -> list[_Row]:
    columns = {
        name: [value for result in results if (value := getattr(result.values, name)) is not None]
        for name in _metrics(settings)
    }
    averages = [
        _Row(kind, "", {name: average(column) if column else None for name, column in columns.items()})
        for kind, average in (("mean", statistics.fmean), ("median", statistics.median))
    ]
    worst = sorted(results, key=lambda result: getattr(result.values, _ranked_by(results)))[:_WORST]
    return averages + [_Row("worst", result.pair.name, result.values._asdict()) for result in worst]


def _ranked_by(results: Sequence[Result]) -> str:
    return "ssim" if any(result.values.ms_ssim is None for result in results) else "ms_ssim"


def _rounded(name: str, value: float | None) -> str:
    decimals = 2 if _TITLES[name].endswith("(dB)") else 5
    return "n/a" if value is None else f"{value:.{decimals}f}"


def _exact(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.7g}"
