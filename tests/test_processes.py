"""Two real processes on the loopback interface find what one finds."""

import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("orbax.checkpoint")

ROOT = Path(__file__).parents[1]
# Float32 sums over devices and over processes take another order: an ulp, and what two steps of Adam make of that.
SUMS = {"rtol": 1e-6}


def run(count, folder):
    """What each of some processes finds."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    commands = [
        [sys.executable, "-m", "tests.process", *map(str, (rank, count, port, folder))] for rank in range(count)
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    processes = [subprocess.Popen(command, cwd=ROOT, **pipes) for command in commands]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * count, "\n".join(outputs)
    return [dict(np.load(folder / f"{count}.{rank}.npz")) for rank in range(count)]


@pytest.mark.slow
def test_two_processes_find_what_one_finds(tmp_path):
    both = run(2, tmp_path)  # which leave checkpoints for the one
    (one,) = run(1, tmp_path)
    for kind in ("Auto", "Explicit"):
        check_batch(both, one, kind)
    check_lines(both, one)
    check_metrics_of_their_own(both, one)
    check_checkpoints(both, one)


def check_batch(both, one, kind):
    """Values, the losses of a training step, and a metric whose last batch was filled up."""
    values = one[f"values, {kind}"].astype(np.float64)
    np.testing.assert_array_equal(np.concatenate([each[f"values, {kind}"] for each in both]), values)
    np.testing.assert_allclose(one[f"metric, {kind}"], np.concatenate([values, values[:3]]).mean(), **SUMS)
    for each in both:
        np.testing.assert_allclose(each[f"losses, {kind}"], one[f"losses, {kind}"], **SUMS)
        np.testing.assert_allclose(each[f"metric, {kind}"], one[f"metric, {kind}"], **SUMS)
        assert each[f"count, {kind}"] == 7
    assert both[0][f"metric, {kind}"] == both[1][f"metric, {kind}"]


def check_lines(both, one):
    """Value and gradient of images whose lines lie over the processes."""
    together = np.concatenate([each["gradient by lines"] for each in both], 1)
    np.testing.assert_allclose(together, one["gradient by lines"], rtol=0, atol=1e-5 * np.abs(together).max())
    for each in both:
        np.testing.assert_allclose(each["loss by lines"], one["loss by lines"], **SUMS)


def check_metrics_of_their_own(both, one):
    """A metric in each process, merged at the end; one of all processes refuses images of one."""
    for each in both:
        assert "has the images of all processes, and these are those of this process alone" in str(each["refused"])
        np.testing.assert_allclose(each["merged"], one["merged"], **SUMS)
    np.testing.assert_allclose(one["merged"], one["values, Auto"].mean(), **SUMS)


def check_checkpoints(both, one):
    """What two processes saved, of a metric with images and of a new one, restored in one."""
    before, after = one["restored metric"]
    assert before == both[0]["metric, Auto"]
    np.testing.assert_allclose(after, (7 * before + 4 * one["merged"]) / 11, **SUMS)
    before, after = one["restored new"]
    assert np.isnan(before)
    np.testing.assert_allclose(after, one["merged"], **SUMS)
