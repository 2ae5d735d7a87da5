"""The command ``jax-msssim``: compares two image files, or two folders of them."""

import argparse
import gc
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

from jax_msssim import __version__, conventions

_FAILED, _INTERRUPTED = 2, 130
_REQUIREMENTS = ("PIL", "imagecodecs", "matplotlib", "platformdirs", "rich", "tifffile")
_OF_DISTS = ("flax", "safetensors")
_EPILOG = """\
examples:
  jax-msssim original.png decoded.jpg
  jax-msssim original.png decoded.jpg --map differences.png
  jax-msssim originals/ decoded/ --csv values.csv
  jax-msssim originals/ decoded/ --luma --convention PYTORCH_MSSSIM --json -

Files are PNG, JPEG, JPEG 2000, TIFF, WebP, BMP, GIF, PBM, PGM or PPM.
Those of two folders are paired by name, sub-folders included: x/a.png with
x/a.png, or else with x/a.jpg.
Exit status: 0, or 2 if anything could not be read, compared or written.
"""


class _CommandError(Exception):
    """What cannot be done, in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
      arguments: those of the command line, by default the process's own.

    Returns:
      The exit status: 0, 2 if anything failed, 130 if interrupted.
    """
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files that its encoding lacks are escaped, as on stderr
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(options)
    except _CommandError as error:
        _complain(error)
        return _FAILED
    except OSError as error:  # of stdout; what happens to files is told where it happens
        _complain(f"cannot write: {error.strerror}")
        return _FAILED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _REQUIREMENTS + _OF_DISTS:
            raise
        extras = "cli,dists" if package in _OF_DISTS else "cli"
        _complain(f'{package} is not installed: pip install "jax_msssim[{extras}]"')
        return _FAILED
    except KeyboardInterrupt:
        return _INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jax-msssim",
        description="PSNR, SSIM, MS-SSIM and D-SSIM of two images, or of two folders of images.",
        epilog=_EPILOG,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, width=80),
        allow_abbrev=False,
    )
    parser.add_argument("reference", metavar="REF", type=Path, help="image, or folder of images")
    parser.add_argument("test", metavar="TEST", type=Path, help="image, or folder of images, to compare with it")
    parser.add_argument("--map", metavar="FILE.png", type=_png, help="save a picture of where two images differ")
    parser.add_argument("--csv", metavar="FILE", help="save the values of each pair as CSV; - for stdout")
    parser.add_argument("--json", metavar="FILE", help="the same as JSON, with mean, median and failures")
    parser.add_argument("--luma", action="store_true", help="compare BT.601 luma instead of each colour channel")
    parser.add_argument(
        "--convention",
        metavar="NAME",
        type=_convention,
        default=conventions.MATLAB,
        help=f"compute as another program does: {', '.join(conventions.ALL)} (default: MATLAB)",
    )
    parser.add_argument("--fit-scales", action="store_true", help="MS-SSIM of small images, with fewer scales")
    parser.add_argument(
        "--max-val",
        metavar="X",
        type=_positive,
        help="the value of white (default: 255 or 65535, as files have 8 or 16 bits; 1 for floating TIFF)",
    )
    parser.add_argument(
        "--dists",
        metavar="WEIGHTS",
        type=_weights,
        help="add DISTS, by the weights of torchvision's VGG16 in a .safetensors or .npz file",
    )
    parser.add_argument(
        "--no-cache", action="store_true", help="neither use nor keep compiled programs in the user's cache directory"
    )
    parser.add_argument("--version", action="version", version=f"jax_msssim {__version__}")
    return parser


def _convention(text: str) -> conventions.Convention:
    name = text.upper().replace("-", "_")
    if name not in conventions.ALL:
        raise argparse.ArgumentTypeError(f"unknown name {text!r}: use one of {', '.join(conventions.ALL)}")
    return conventions.ALL[name]


def _png(path: str) -> str:
    if not path.lower().endswith(".png"):
        raise argparse.ArgumentTypeError(f"the map is a PNG: its name must end in .png, not {path!r}")
    return path


def _weights(path: str) -> Path:
    if not path.endswith((".safetensors", ".npz")):
        raise argparse.ArgumentTypeError(f"the name of weights must end in .safetensors or .npz, not {path!r}")
    return Path(path)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1e-15 <= value <= 1e15:
        raise argparse.ArgumentTypeError(f"must be a number between 1e-15 and 1e15, not {text!r}")
    return value


def _run(options: argparse.Namespace) -> int:
    gc.freeze()  # the imports so far, which the collections of those to come need not look through
    # Imported here, so that --help does not wait for them, nor need them.
    from jax_msssim._command_line import compare as _compare
    from jax_msssim._command_line import folders as _folders
    from jax_msssim._command_line import images as _images
    from jax_msssim._command_line import programs as _programs
    from jax_msssim._command_line import report as _report

    folders = _check(options)
    cache = None if options.no_cache else _programs.cache_folder()
    network = None
    if options.dists:
        from jax_msssim._command_line import network as _network

        try:
            network = _network.read_network(options.dists)
        except _network.WeightsError as error:
            raise _CommandError(error) from None
    settings = _compare.Settings(options.convention, options.luma, options.fit_scales, options.max_val, cache, network)
    if folders:
        pairs, failures, alone = _folders.pair_folders(options.reference, options.test)
        if not pairs and not failures:
            if alone:
                both = f"{options.reference} and {options.test}"
                raise _CommandError(f"{both}: no image of one has the name of one of the other, {alone[0]} say")
            raise _CommandError(f"{options.reference} and {options.test}: no {_images.KINDS} images")
        for failure in failures:
            _complain(failure.reason)
        _note("without a counterpart", alone)
    else:
        pairs, failures = [_compare.Pair(str(options.test), options.reference, options.test)], []

    results = []
    for outcome in _with_progress(_compare.compare(pairs, settings), len(pairs), visible=folders):
        if isinstance(outcome, _compare.Failure):
            _complain(outcome.reason)
            failures.append(outcome)
        else:
            results.append(outcome)
    results.sort()
    for ground in ("white", "black"):
        transparent = [result.transparent.files for result in results if result.transparent.ground == ground]
        _note(f"transparent, compared over {ground}", [path for files in transparent for path in files])
    if options.convention.ms_ssim:
        side = _compare.smallest_side(options.convention)
        what = "MS-SSIM has fewer scales" if options.fit_scales else "no MS-SSIM (--fit-scales takes fewer scales)"
        small = [result.pair.test for result in results if result.values.scales != 5]
        _note(f"less than {side} pixels a side: {what}", small)
    if folders and failures:
        _complain(f"{len(failures)} of {len(failures) + len(results)} pairs failed")
    if not results:
        return _FAILED

    def table(stream: TextIO) -> None:
        if folders:
            _report.print_summary(results, settings, stream)
        else:
            _report.print_pair(results[0], settings, stream)

    def error_map() -> bytes:
        from jax_msssim._command_line import error_map as _error_map

        return _error_map.error_map(_compare.load(pairs[0], settings), settings)

    contents: list[tuple[str | None, Callable[[], bytes]]] = [
        (options.map, error_map),
        (options.csv, lambda: _report.to_csv(results, settings)),
        (options.json, lambda: _report.to_json(results, failures, settings)),
    ]
    status = _FAILED if failures else 0
    for path, content in contents:
        if path not in (None, "-"):
            try:
                _write_whole(path, content())
            except OSError as error:
                _complain(f"{path}: cannot be written: {error.strerror}")
                status = _FAILED
    # Last, as whoever reads stdout may leave before the end.
    for path, content in contents:
        if path == "-":
            table(sys.stderr)
            _print(lambda content=content: sys.stdout.buffer.write(content()))
            break
    else:
        _print(lambda: table(sys.stdout))
    return status


def _check(options: argparse.Namespace) -> bool:
    """Finds out before the work what would fail after it; True for folders, False for images."""
    for path in (options.reference, options.test):
        if not os.path.exists(path):
            raise _CommandError(f"{path}: no such file or folder")
    folders = options.reference.is_dir() and options.test.is_dir()
    if not folders and (options.reference.is_dir() or options.test.is_dir()):
        raise _CommandError(f"{options.reference} and {options.test}: one is a folder, the other is not")
    if folders and options.map:
        raise _CommandError("--map takes two files, not two folders")
    if options.csv == options.json == "-":
        raise _CommandError("--csv and --json cannot both go to stdout")
    if options.fit_scales and not options.convention.ms_ssim:
        raise _CommandError("--fit-scales: this convention has no MS-SSIM")
    for path in (options.map, options.csv, options.json):
        if path in (None, "-"):
            continue
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise _CommandError(f"{path}: cannot be written: it is not a file")
        if not os.access(target.parent, os.W_OK):
            why = "its folder takes no files" if target.parent.is_dir() else "there is no such folder"
            raise _CommandError(f"{path}: cannot be written: {why}")
    return folders


def _with_progress(outcomes: Iterable, total: int, visible: bool) -> Iterator:
    """The outcomes, with a bar on stderr that counts them."""
    if not visible:  # one that is disabled ends with an empty line all the same, before rich 15
        yield from outcomes
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("pairs"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        yield from progress.track(outcomes, total=total)


def _write_whole(path: str, content: bytes) -> None:
    """Writes a file beside its place and moves it there, so that there is never a part of one."""
    target = Path(os.path.realpath(path))
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        part.write_bytes(content)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _print(write: Callable[[], object]) -> None:
    """Writes to stdout, and is quiet where its reader has left."""
    try:
        write()
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is flushed on exit


def _note(what: str, paths: Sequence[Path]) -> None:
    if paths:
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        _complain(f"{paths[0]}{more}: {what}")


def _complain(line: object) -> None:
    print(f"jax-msssim: {line}", file=sys.stderr)
