"""Which files of two folders belong together."""

import collections
import os
from pathlib import Path
from typing import NamedTuple

from jax_msssim._command_line.compare import Failure, Pair
from jax_msssim._command_line.images import SUFFIXES


class Pairing(NamedTuple):
    """The pairs, folders that cannot be read and names that are not clear, and the files in one folder alone."""

    pairs: list[Pair]
    failures: list[Failure]
    alone: list[Path]


def pair_folders(reference: Path, test: Path) -> Pairing:
    """Pairs files by their path inside the folders: ``x/a.png`` with ``x/a.png``, else with the only ``x/a.*``.

    Sub-folders are searched, linked ones too; names that begin with a dot, and files of other types, are passed over.
    """
    failures: list[Failure] = []
    here, there = _images(reference, failures), _images(test, failures)
    same = here & there
    pairs = [Pair(_printable(path), reference / path, test / path) for path in same]
    stems = collections.defaultdict(lambda: ([], []))
    for side, paths in enumerate((here, there)):
        for path in sorted(paths - same):
            stems[path.with_suffix("")][side].append(path)
    alone = []
    for stem, (ours, theirs) in stems.items():
        if not ours or not theirs:
            alone += [reference / path for path in ours] + [test / path for path in theirs]
        elif len(ours) == len(theirs) == 1:
            pairs.append(Pair(_printable(ours[0]), reference / ours[0], test / theirs[0]))
        else:
            files = " and ".join(", ".join(path.name for path in paths) for paths in (ours, theirs))
            failures.append(Failure(_printable(stem), f"{stem}: it is not clear which belong together of {files}"))
    return Pairing(sorted(pairs), failures, alone)


def _images(folder: Path, unread: list[Failure]) -> set[Path]:
    def leave_out(error: OSError) -> None:
        path = Path(error.filename)
        unread.append(Failure(_printable(path.relative_to(folder)), f"{path}: cannot be read: {error.strerror}"))

    found = set()
    for here, folders, files in os.walk(folder, onerror=leave_out, followlinks=True):
        inside = Path(here)
        # A link to a folder above it would have no end.
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_above(inside / name)]
        found |= {(inside / name).relative_to(folder) for name in files if not name.startswith(".")}
    return {path for path in found if path.suffix.lower() in SUFFIXES}


def _is_above(path: Path) -> bool:
    return path.is_symlink() and any(path.samefile(parent) for parent in path.parents)


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")
