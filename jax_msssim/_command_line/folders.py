"""Which files of two folders belong together."""

import collections
import os
from pathlib import Path
from typing import NamedTuple

from jax_msssim._command_line.compare import Failure, Pair
from jax_msssim._command_line.images import SUFFIXES


class Pairing(NamedTuple):
    """The pairs, the names that are not clear, and the files that are in one folder alone."""

    pairs: list[Pair]
    ambiguous: list[Failure]
    alone: list[Path]


def pair_folders(reference: Path, test: Path) -> Pairing:
    """Pairs files by their path inside the folders: ``x/a.png`` with ``x/a.png``, else with the only ``x/a.*``.

    Sub-folders are searched; names that begin with a dot, and files of other types, are passed over.
    """
    here, there = _images(reference), _images(test)
    same = here & there
    pairs = [Pair(_printable(path), reference / path, test / path) for path in same]
    stems = collections.defaultdict(lambda: ([], []))
    for side, paths in enumerate((here, there)):
        for path in sorted(paths - same):
            stems[path.with_suffix("")][side].append(path)
    ambiguous, alone = [], []
    for stem, (ours, theirs) in stems.items():
        if not ours or not theirs:
            alone += [reference / path for path in ours] + [test / path for path in theirs]
        elif len(ours) == len(theirs) == 1:
            pairs.append(Pair(_printable(ours[0]), reference / ours[0], test / theirs[0]))
        else:
            files = " and ".join(", ".join(path.name for path in paths) for paths in (ours, theirs))
            ambiguous.append(Failure(_printable(stem), f"{stem}: it is not clear which belong together of {files}"))
    return Pairing(sorted(pairs), ambiguous, alone)


def _images(folder: Path) -> set[Path]:
    paths = (path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path for path in paths if not any(part.startswith(".") for part in path.parts)}


def _printable(path: Path) -> str:
    return os.fsencode(path).decode(errors="replace")
