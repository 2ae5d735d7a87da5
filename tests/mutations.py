"""Plants faults in the library, one at a time, and asks the quicker tests to find each: ``python tests/mutations.py``.

A fault is a line changed in a copy of the package. What the tests let pass is listed at the end, with exit status 1.
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from rich.progress import track

ROOT = Path(__file__).parents[1]
# The quickest first: a fault that one of them finds takes seconds. All take minutes, for a fault that none finds.
TESTS = (
    "api",
    "definition",
    "golden",
    "checks",
    "numerics",
    "structure",
    "nnx",
    "masks",
    "transformations",
    "stress",
)


class Fault(NamedTuple):
    """A line of a file, and what it becomes."""

    file: str
    right: str
    wrong: str


FAULTS = [
    # Constants.
    Fault("_ms_ssim.py", "WANG2003 = (0.0448, 0.2856,", "WANG2003 = (0.0449, 0.2856,"),
    Fault("_ms_ssim.py", "SOFT_EPS = 1e-2", "SOFT_EPS = 2e-2"),
    Fault("_ssim.py", "(k * max_val) ** 2", "(k * max_val**2)"),
    Fault("_checks.py", "k2: float = 0.03", "k2: float = 0.3"),
    Fault("_checks.py", '"uint16": 65535.0', '"uint16": 65536.0'),
    Fault("_windows.py", "offsets = np.arange(size) - size // 2", "offsets = np.arange(size) - size / 2"),
    Fault("_windows.py", "np.exp(-0.5 *", "np.exp(-1.0 *"),
    Fault("_windows.py", "return weights / math.fsum(weights)", "return weights / weights.max()"),
    Fault("_single_resolution.py", "SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)", "SIGMAS = (0.5, 1.0, 2.0, 4.0, 4.0)"),
    # Terms.
    Fault("_terms.py", "return 2 * variances.difference, contrast", "return variances.difference, contrast"),
    Fault("_terms.py", "mean.difference**2 + 2 * c1\n", "mean.difference**2 + c1\n"),
    Fault("_terms.py", "+ 2 * c2  # 2 (Va", "+ c2  # 2 (Va"),
    Fault("_terms.py", "+ 2 * c2  # 2 (2 Cab", "+ c2  # 2 (2 Cab"),
    Fault("_terms.py", "_common(variances, c2) * _ratio(*luminance)", "_contrast(variances, c2) * _ratio(*luminance)"),
    Fault("_terms.py", "_ratio(2 * mean.a * mean.b + c1,", "_ratio(2 * mean.a * mean.b,"),
    Fault("_terms.py", "(d_part - value * d_whole) * reciprocal", "d_part * reciprocal"),
    Fault("_ms_ssim.py", "means[-1] = _pyramid.with_value(means[-1], product)", "pass"),
    # Local moments and their derivative.
    Fault("_windows.py", "math.fsum(self.taps[i + 1 :])", "math.fsum(self.taps[i:])"),
    Fault("_stencil.py", "squares(deviations)) - lax.square(new_mean)", "squares(deviations))"),
    Fault("_stencil.py", "return [v if x is None else lax.add(x, v)", "return [v if x is None else x"),
    Fault("_stencil.py", "[lax.neg(e) for e in", "[e for e in"),
    Fault("_stencil.py", "new_mean += samples(mean)[window.pivot]", "pass"),
    Fault("_stencil.py", "offsets = [*[pivot] * n, i", "offsets = [*[0] * n, i"),
    Fault("_stencil.py", "x + (pair[-1] - pair[0])", "x"),
    Fault("_stencil.py", "samples(x, ahead) - samples(x, 0)", "samples(x, ahead) - samples(x, ahead)"),
    Fault("_stencil.py", "taps=self.window.taps[::-1]", "taps=self.window.taps"),
    Fault("_stencil.py", "return (*((axis, 1) for", "return (*((axis, self.channels) for"),
    Fault("_stencil.py", "-2 * (pivot_s + local.mean_sum)", "-(pivot_s + local.mean_sum)"),
    Fault("_stencil.py", "(by_part, -out * by_part)", "(by_part, out * by_part)"),
    Fault("_stencil.py", "by_s, by_d = 2 * s * variance_s", "by_s, by_d = s * variance_s"),
    Fault("_stencil.py", '"b": by_s - by_d}', '"b": by_s + by_d}'),
    Fault("_stencil.py", "2 * (by_square - (pivot + mean) * by_mean)", "2 * by_square"),
    Fault("_stencil.py", "images[name] * (pixels / along_row)", "images[name] * (1 / along_row)"),
    # Blocks.
    Fault("_stencil.py", "(positions >= i * size) &", "(positions >= 0) &"),
    Fault("_stencil.py", "& (positions < (i + 1) * size)", "& (positions >= 0)"),
    Fault("_stencil.py", "jnp.minimum(i * size, pixels - size)", "jnp.minimum(i * size, pixels - size - halo)"),
    Fault("_stencil.py", "jnp.clip(i * size - overlap, 0,", "jnp.clip(i * size, 0,"),
    Fault("_stencil.py", "first[0] - start[0])\n", "0)\n"),
    Fault("_stencil.py", "left, width = (first[1] - start[1]) * channels", "left, width = 0"),
    Fault("_stencil.py", "kept = (below[0] - start[0]) * step", "kept = 0"),
    Fault("_stencil.py", "size < most + 2 * halo", "size < most"),
    Fault("_stencil.py", "// 2 for x, y in zip(first, start,", "* 0 for x, y in zip(first, start,"),
    Fault("_stencil.py", "first = [x // 2 for x in first]", "first = [x for x in first]"),
    Fault("_stencil.py", "tuple(x / 2 for x in steps)", "tuple(x for x in steps)"),
    Fault("_stencil.py", "(x + (y + step)) / 2 for", "(x + y) / 2 for"),
    Fault("_stencil.py", "(2 * start[1] + half[-1])", "(2 * start[1])"),
    Fault("_stencil.py", "if not isinstance(x, jax.custom_derivatives.SymbolicZero)]", "if x is not None]"),
    # Moments under a mask, and sums.
    Fault("_stencil.py", "new_mean = share * _weighted_sum", "new_mean = _weighted_sum"),
    Fault("_stencil.py", "(missing <= 1 - stencil.window.min_coverage)", "(missing < 1 - stencil.window.min_coverage)"),
    Fault("_pyramid.py", "line = lax.stop_gradient(", "line = 0 * lax.stop_gradient("),
    Fault("_pyramid.py", "(line + (x - line)", "((x - line)"),
    Fault("_pyramid.py", "lax.min(middle, last)", "last"),
    Fault("_conv.py", "window.covariance_scale * jnp.maximum", "jnp.maximum"),
    Fault("_conv.py", "sum=(typical_a + typical_b) + mean_s", "sum=mean_s"),
    # The pyramid.
    Fault("_stencil.py", "above = tuple((x + y) / 2 for", "above = tuple((x + y) for"),
    Fault("_stencil.py", "(v * x + w * y) / _or_one(v + w)", "(v * x + w * y)"),
    Fault("_stencil.py", "second = tuple(map(lax.add, second, change(pixels, others)))", "pass"),
    Fault("_stencil.py", "x = _split(x, axis).mean(axis)", "x = _split(x, axis).sum(axis)"),
    Fault("_conv.py", '"VALID") / 2**spatial_ndim', '"VALID") / 4'),
    Fault(
        "_pyramid.py",
        "return change_a + change_b, change_a - change_b",
        "return change_a + change_b, change_b - change_a",
    ),
    Fault("_pyramid.py", "zip((a + b, a - b), above", "zip((a + b, a + b), above"),
    Fault("_pyramid.py", "constant_values=1 if x.dtype == bool else 0", "constant_values=0"),
    Fault("_pyramid.py", "lax.slice_in_dim(x, size - 1, size, axis=axis)", "lax.slice_in_dim(x, 0, 1, axis=axis)"),
    Fault("_pyramid.py", "[(1, 0) if axis in odd", "[(0, 1) if axis in odd"),
    Fault("_pyramid.py", 'skipped=1 if padding == "reflect"', 'skipped=0 if padding == "reflect"'),
    Fault("_pyramid.py", 'share == 1 if rule == "floor" else share > 0', "share > 0"),
    Fault("_pyramid.py", "size * 2**times if rule", "size * 2**times - 1 if rule"),
    # MS-SSIM and the losses.
    Fault("_ms_ssim.py", 'if pyramid.luminance == "all"', 'if pyramid.luminance == "last"'),
    Fault("_ms_ssim.py", 'if pyramid.channel_mean == "before"', 'if pyramid.channel_mean == "after"'),
    Fault("_ms_ssim.py", "return -jnp.expm1(log_ms_ssim(", "return 1 - jnp.exp(log_ms_ssim("),
    Fault("_pyramid.py", "paddings[int(j == last)]", "paddings[0]"),
    Fault("_ms_ssim.py", "jnp.minimum(x, SOFT_EPS)", "x"),
    Fault("_ms_ssim.py", "dead = x <= 0", "dead = x < -2"),
    Fault("_losses.py", "return mean_dissimilarity(images, options) / 2", "return mean_dissimilarity(images, options)"),
    Fault("_losses.py", "return mean / images.max_val", "return mean"),
    Fault(
        "_losses.py", "(1 - weight) * mean_l1(images, options) + weight", "weight * mean_l1(images, options) + weight"
    ),
    Fault("_checks.py", 'dtype = "float64" if', 'dtype = "float32" if'),
    Fault("nnx.py", "return total, a_rest + b_rest + rest", "return total, a_rest + b_rest"),
]


def caught(fault: Fault) -> bool:
    """Whether a test fails in a copy of the project that has the fault."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("jax_msssim", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, copy)
        source = copy / "jax_msssim" / fault.file
        text = source.read_text()
        if fault.right not in text:
            raise ValueError(f"{fault.file} has no {fault.right!r}: the list of faults is out of date.")
        source.write_text(text.replace(fault.right, fault.wrong, 1))
        # From the copy: Python looks there first, and only then where the package is installed.
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not slow", "-p", "no:cacheprovider"]
        run = subprocess.run(
            [*command, *(f"tests/test_{name}.py" for name in TESTS)], cwd=copy, capture_output=True, text=True
        )
        if run.returncode not in (0, 1):
            raise RuntimeError(run.stdout + run.stderr)
        return run.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose file or line has this text")
    options = parser.parse_args()
    if caught(Fault("_terms.py", "", "")):
        sys.exit("The tests fail without a fault.")
    faults = [fault for fault in FAULTS if options.only in " ".join(fault)]
    passed = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, found in zip(faults, track(pool.map(caught, faults), "planting faults", len(faults)), strict=True):
            if not found:
                passed += 1
                print(f"not found: {fault.file}: {fault.right!r} -> {fault.wrong!r}", flush=True)
    print(f"{len(faults) - passed} of {len(faults)} faults found")
    sys.exit(passed > 0)


if __name__ == "__main__":
    main()
