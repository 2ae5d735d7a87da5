"""Writes the table of docs/conventions.md: each program, its convention, and the largest difference seen.

Run it with ``make conventions``: it needs the other programs.
"""

import importlib.metadata
import sys
from pathlib import Path

import numpy as np
from rich.progress import track

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import peers  # noqa: E402
from test_conventions import PAIRS  # noqa: E402

import jax_msssim  # noqa: E402
from jax_msssim import conventions  # noqa: E402

PACKAGES = {
    "piq": "piq",
    "pytorch_msssim": "pytorch-msssim",
    "tensorflow": "tensorflow-cpu",
    "skimage": "scikit-image",
    "dm_pix": "dm-pix",
    "metrax": "google-metrax",
}
BEGIN, END = "<!-- table -->\n", "<!-- end of table -->"


def largest_difference(peer: peers.Peer) -> float:
    """Over the pairs of images and both implementations."""
    arguments = getattr(conventions.ALL[peer.convention], peer.metric)
    ours = getattr(jax_msssim, peer.metric)
    differences = []
    for make in PAIRS.values():
        a, b = (x.astype(np.float32) for x in make())
        theirs = peers.value(peer, a, b)
        differences += [abs(float(ours(a, b, implementation=i, **arguments)) - theirs) for i in ("stencil", "conv")]
    return max(differences)


def row(peer: peers.Peer) -> str:
    """One line of the table."""
    arguments = getattr(conventions.ALL[peer.convention], peer.metric)
    options = ", ".join(f"`{name}={shown(value)}`" for name, value in arguments.items()) or "defaults"
    try:
        difference = f"{largest_difference(peer):.1e}"
        version = " " + importlib.metadata.version(PACKAGES.get(peer.module, peer.module))
    except ImportError:
        difference, version = "not installed", ""
    return f"| {peer.name}{version} | `{peer.metric}` | `{peer.convention}` | {options} | {difference} |"


def shown(value) -> str:
    """An argument as it is written in a call."""
    if isinstance(value, tuple) and isinstance(value[0], float):
        return f"uniform_window({len(value)})"
    return repr(value)


def main() -> None:
    """Replace the table in the page."""
    page = HERE / "conventions.md"
    before, rest = page.read_text().split(BEGIN)
    _, after = rest.split(END)
    head = "| program | metric | convention | options | largest difference |\n|---|---|---|---|---|\n"
    rows = [row(peer) for peer in track(peers.PEERS, description="programs")]
    page.write_text(before + BEGIN + head + "\n".join(rows) + "\n" + END + after)


if __name__ == "__main__":
    main()
