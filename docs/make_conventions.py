"""Writes the table of docs/conventions.md: each program, its convention, how it was checked, and the difference seen.

Run it with ``make conventions``: it needs the other programs, but for those whose numbers are recorded.
"""

import importlib.metadata
import sys
from pathlib import Path

from rich.progress import track

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))

import peers  # noqa: E402
import recorded  # noqa: E402

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
    return max(max(peers.differences(peer, *make()).values()) for make in peers.PAIRS.values())


def row(peer: peers.Peer) -> str:
    """One line of the table."""
    try:
        difference = f"{largest_difference(peer):.1e}"
        version = " " + importlib.metadata.version(PACKAGES.get(peer.module, peer.module))
    except ImportError:
        difference, version = "not installed", ""
    convention, options = f"`{peer.convention}`", shown_all(peer.arguments())
    return f"| {peer.name}{version} | `{peer.metric}` | {convention} | {options} | installed | {difference} |"


def row_of_recorded(of: recorded.Recorded) -> str:
    """The same of a program whose numbers are kept."""
    difference = max(map(of.difference, of.values))
    if of.convention is None:
        which = f"| `ssim` | recipe | `{of.metric}`, below |"
    else:
        options = shown_all(getattr(conventions.ALL[of.convention], of.metric))
        which = f"| `{of.metric}` | `{of.convention}` | {options} |"
    return f"| {of.program} {which} {of.how} | {difference:.1e} |"


def shown_all(arguments) -> str:
    """Arguments as they are written in a call."""
    return ", ".join(f"`{name}={shown(value)}`" for name, value in arguments.items()) or "defaults"


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
    head = "| program | metric | convention | options | checked | largest difference |\n|---|---|---|---|---|---|\n"
    rows = [row(peer) for peer in track(peers.PEERS, description="programs")]
    rows += map(row_of_recorded, recorded.RECORDED)
    page.write_text(before + BEGIN + head + "\n".join(rows) + "\n" + END + after)


if __name__ == "__main__":
    main()
