"""Measure this library and the others, print tables, and write a report.

``python benchmarks/run.py`` takes about a quarter of an hour on two CPU cores; ``--quick`` does the same with small
images in less than a minute. Libraries that are not installed are named and left out.
"""

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

# Before JAX is imported: PyTorch, and processes of their own, need room on a GPU too.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import comparison
import jax
import ours
import report
from peers import NATIVE, OURS, PEERS, Library, Torch, on_gpu
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from works import FULL, QUICK, Plan

FRAMEWORKS = ("jax", "jaxlib", "flax", "numpy", "scipy", "torch", "torchvision")


def installed(libraries: tuple[Library, ...]) -> tuple[list[Library], list[dict]]:
    """The libraries that are, and what to say of each."""
    found, records = [], []
    for library in libraries:
        missing = reason_missing(library)
        records.append({"library": library.name, "version": None if missing else library.version, "missing": missing})
        if not missing:
            found.append(library)
    return found, records


def reason_missing(library: Library) -> str | None:
    try:
        library.functions  # noqa: B018
    except ImportError as error:
        return str(error)
    return "runs on the CPU" if on_gpu() and library.runtime.device() == "cpu" else None


def frameworks() -> list[dict]:
    versions = []
    for name in FRAMEWORKS:
        try:
            versions.append({"library": name, "version": importlib.metadata.version(name), "missing": None})
        except importlib.metadata.PackageNotFoundError:
            versions.append({"library": name, "version": None, "missing": "not installed"})
    return versions


def machine() -> dict[str, str]:
    return {
        "date": time.strftime("%Y-%m-%d"),
        "system": platform.platform(),
        "Python": platform.python_version(),
        "CPU": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "JAX runs on": f"{jax.default_backend()} ({jax.devices()[0].device_kind})",
        "PyTorch runs on": Torch().device() if importlib.util.find_spec("torch") else "nothing: not installed",
    }


def cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def sections(plan: Plan, peers: list[Library], native: list[Library]) -> dict[str, Callable[[], Iterator[dict]]]:
    """What there is to measure, in order."""
    return {
        "check": lambda: comparison.check(peers, plan.checked),
        "compare": lambda: comparison.compare(peers, plan.compared, plan.rounds),
        "first_calls": lambda: comparison.first_calls([OURS, *peers][: plan.launched], plan.in_own_process),
        "test_set": lambda: comparison.test_set([OURS, *peers][: plan.launched], plan.evaluated),
        "native": lambda: comparison.native(native, plan.native, plan.rounds),
        "compilation": lambda: ours.compilation(plan.compiled, plan.processes),
        "temporaries": lambda: ours.temporaries(plan.temporaries),
        "scaling": lambda: ours.scaling(plan.scaled, plan.rounds),
        "largest": lambda: ours.largest(plan.largest),
        "batching": lambda: ours.batching(plan.batched, plan.rounds),
        "implementations": lambda: ours.implementations(plan.implemented, plan.rounds),
        "training": lambda: ours.training(plan.trained, plan.rounds),
    }


def collect(name: str, records: Iterator[dict], console: Console) -> list[dict]:
    """All the records of a section, with the last one shown while the next is made."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn()
    collected = []
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        for record in records:
            collected.append(record)
            done = [str(record[key]) for key in ("work", "shape", "pass", "library", "how") if key in record]
            progress.update(task, advance=1, description=f"{name}: done {', '.join(done)}")
    return collected


def chosen_works(plan: Plan, names: list[str]) -> Plan:
    """The plan with those works whose names contain one of these, where libraries are compared."""
    fields = ("compared", "in_own_process", "native", "temporaries", "implemented")
    kept = {f: tuple(w for w in getattr(plan, f) if any(name in w.name for name in names)) for f in fields}
    return plan._replace(**kept)


def parse(names: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small images and two rounds: to see that it works")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results", help="folder for the report")
    parser.add_argument("--works", nargs="+", default=[""], metavar="TEXT", help="only works so named, as 'MS-SSIM 8x'")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"samples of each time, at most: {FULL.rounds}")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    return parser.parse_args()


def main() -> None:
    arguments = parse(list(sections(FULL, [], [])))
    warnings.filterwarnings("ignore")  # of the other libraries, about each other
    console = Console(width=None if sys.stdout.isatty() else 120)
    plan = chosen_works(QUICK if arguments.quick else FULL, arguments.works)
    plan = plan._replace(rounds=arguments.rounds or plan.rounds)
    peers, records = installed(PEERS)
    native, more_records = installed(NATIVE)
    _, own = installed((OURS,))
    results = {"machine": machine(), "libraries": own + records + more_records + frameworks()}
    console.print(*(f"{key}: {value}" for key, value in results["machine"].items()), "", sep="\n")
    report.show("libraries", results["libraries"], console)

    written = []
    for name, section in sections(plan, peers, native).items():
        if name not in arguments.only:
            continue
        start = time.perf_counter()
        collected = collect(name, section(), console)
        if collected:
            results[name] = collected
            report.show(name, collected, console)
            written = report.write(results, arguments.output)  # so that a run that is interrupted leaves a report
        console.print(f"{name}: {time.perf_counter() - start:.0f} s\n")
        if name == "check" and not all(record["agrees"] for record in collected):
            sys.exit("The libraries do not agree, see the table: comparing their speed would mean nothing.")

    console.print("Written:", *written)


if __name__ == "__main__":
    main()
