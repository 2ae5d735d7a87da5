"""Plants faults in the library, one at a time, and asks the quicker tests to find each: ``python tests/mutations.py``.

A fault is a line changed in a copy of the package. What the tests let pass is listed at the end, with exit status 1.
"""

import argparse
import functools
import os
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
    "cuda",
    "numerics",
    "structure",
    "nnx",
    "masks",
    "sizes",
    "evaluate",
    "other_platforms",
    "transformations",
    "stress",
    "shards",
)


class Fault(NamedTuple):
    """A line of a file, and what it becomes."""

    file: str
    right: str
    wrong: str


FAULTS = [
    # Constants.
    Fault("_options.py", "WANG2003 = (0.0448, 0.2856,", "WANG2003 = (0.0449, 0.2856,"),
    Fault("_ms_ssim.py", "SOFT_EPS = 1e-2", "SOFT_EPS = 2e-2"),
    Fault("_ssim.py", "(k * max_val) ** 2", "(k * max_val**2)"),
    Fault("_options.py", "k2: float = 0.03", "k2: float = 0.3"),
    Fault("_checks.py", '"uint16": 65535.0', '"uint16": 65536.0'),
    Fault("_windows.py", "np.arange(size) - (size - 1) / 2", "np.arange(size) - size / 2"),
    Fault("_windows.py", "np.exp(-0.5 *", "np.exp(-1.0 *"),
    Fault("_windows.py", "return weights / math.fsum(weights)", "return weights / weights.max()"),
    Fault("_single_resolution.py", "SIGMAS = (0.5, 1.0, 2.0, 4.0, 8.0)", "SIGMAS = (0.5, 1.0, 2.0, 4.0, 4.0)"),
    # Terms.
    Fault("_terms.py", "return 2 * variances.difference, contrast", "return variances.difference, contrast"),
    Fault("_terms.py", "means.difference**2 + 2 * c1\n", "means.difference**2 + c1\n"),
    Fault("_terms.py", "+ 2 * c2  # 2 (Va", "+ c2  # 2 (Va"),
    Fault("_terms.py", "+ 2 * c2  # 2 (2 Cab", "+ c2  # 2 (2 Cab"),
    Fault("_terms.py", "_common(variances, c2) * _ratio(*luminance)", "_contrast(variances, c2) * _ratio(*luminance)"),
    Fault("_terms.py", "_ratio(2 * means.a * means.b + c1,", "_ratio(2 * means.a * means.b,"),
    Fault("_terms.py", "(d_part - value * d_whole) * reciprocal", "d_part * reciprocal"),
    Fault("_terms.py", "(centre_a - centre_b) + d", "d"),
    Fault("_ms_ssim.py", "product[..., None, :]]", "1 - dissimilarities[..., -1:, :]]"),
    # Local moments and their derivative.
    Fault("_stencil/_moments.py", "squares(above)) - lax.square(m)", "squares(above))"),
    Fault("_stencil/_moments.py", "else e if u is None else lax.add(e, u)", "else e"),
    Fault("_stencil/_moments.py", "stacked(samples[pivot] + m, v)", "stacked(m, v)"),
    Fault("_stencil/_moments.py", "2 * (by_square - value[0] * by_mean)", "2 * by_square"),
    Fault("_stencil/_moments.py", "taps[::-1] for taps in", "taps for taps in"),
    Fault("_stencil/_blocks.py", "by_s, by_d = -2 * local.mean_s", "by_s, by_d = -local.mean_s"),
    Fault("_stencil/_moments.py", "by_s, by_d = 2 * s * variance_s", "by_s, by_d = s * variance_s"),
    Fault(
        "_stencil/_blocks.py",
        'by_mean = {"a": by_s + by_d, "b": by_s - by_d}',
        'by_mean = {"a": by_s + by_d, "b": by_s + by_d}',
    ),
    Fault("_stencil/_layout.py", "return (*((place, 1) for", "return (*((place, self.channels) for"),
    Fault("_stencil/_layout.py", "begin[0], end[0] = which, which + 1", "begin[0], end[0] = 0, 1"),
    Fault("_stencil/_blocks.py", "(by_part, -out * by_part)", "(by_part, out * by_part)"),
    Fault("_options.py", "math.prod(map(len, taps)))", "len(taps[0]))"),
    Fault("_stencil/_term_means.py", "layout.unfold(image) * factor", "layout.unfold(image)"),
    Fault("_stencil/_term_means.py", "if not isinstance(dx, SymbolicZero)", "if name in IMAGES"),
    # Blocks.
    Fault("_stencil/_blocks.py", "(blocks.lines * blocks.rows / blocks.total)", "1.0"),
    Fault("_stencil/_layout.py", "(rows + self.window.halo[place]) * step", "rows * step"),
    Fault("_stencil/_blocks.py", ">= before)", ">= 0"),
    Fault("_stencil/_blocks.py", "layout.block(x, i) + gradients[name]", "gradients[name]"),
    Fault(
        "_stencil/_blocks.py",
        "number = blocks.number\n",
        "number = blocks.number - 1\n",
    ),
    Fault("_stencil/_blocks.py", "+ (blocks.rows - 1), np.int32", "+ 0, np.int32"),
    Fault("_stencil/_blocks.py", "[x + lax.dynamic_index_in_dim(whole, line, 0, False)", "[x"),
    Fault("_stencil/_blocks.py", 'if layout.platform != "cpu" or not', "if True or not"),
    # The kernel.
    Fault("_cuda/scale.cu", "float value = 2 * variance_d", "float value = variance_d"),
    Fault("_cuda/scale.cu", "(2 - dark - value) * reciprocal;", "(1 - dark - value) * reciprocal;"),
    Fault("_cuda/_launch.py", '-1 if names == ("b",) else 1', "1"),
    Fault("_cuda/_launch.py", "/ counts.sum()", "/ counts.size"),
    Fault("_cuda/_everywhere.py", "not set(static[1]) <= set(IMAGES)", "False"),
    # Moments under a mask, and sums.
    Fault("_stencil/_moments.py", "m = share * weighted_sum", "m = weighted_sum"),
    Fault("_stencil/_moments.py", "missing <= 1 - layout.window", "missing < 1 - layout.window"),
    Fault("_stencil/_blocks.py", "by_moments = {name: x / mass for", "by_moments = {name: x for"),
    Fault("_stencil/_term_means.py", "jnp.where(share > 0, 0, jnp.nan)", "0.0"),
    Fault("_stencil/_blocks.py", "mean_of_map(x, range(1)) if len(x) > 1 else x[0]", "x[0]"),
    Fault("_stencil/_blocks.py", "lax.pad(above / size,", "lax.pad(above / longest,"),
    Fault(
        "_means.py",
        "return lax.stop_gradient(lax.min(middle, last))",
        "return 0 * lax.stop_gradient(lax.min(middle, last))",
    ),
    Fault("_means.py", "(line + (x - line)", "((x - line)"),
    Fault("_means.py", "lax.min(middle, last)", "last"),
    Fault("_linear.py", "weights * (x - least)", "(x - least)"),
    Fault("_linear.py", "counted & (weights > 0)", "counted & (weights >= 0)"),
    # The pyramid.
    Fault("_scales.py", "return above_a + above_b, lax.select(", "return above_a + above_b, -lax.select("),
    Fault("_scales.py", "lax.select(alike, (a - b) - apart, above_a - above_b)", "above_a - above_b"),
    Fault("_scales.py", "[x / or_one(share) for x in means]", "means"),
    Fault("_scales.py", "stacked(-(a + b), b - a)", "stacked(-(a + b), a - b)"),
    Fault("_stencil/_term_means.py", "return x / 2**layout.window.spatial_ndim", "return x / 4"),
    Fault("_stencil/_term_means.py", "x = _split(x, axis).mean(axis)", "x = _split(x, axis).sum(axis)"),
    Fault("_linear.py", '"VALID") / 2**spatial_ndim', '"VALID") / 4'),
    Fault("_linear.py", "_banded((0.5, 0.5), 2,", "_banded((0.6, 0.4), 2,"),
    Fault("_default.py", '"b": pixels * (s - d)', '"b": pixels * (s + d)'),
    Fault("_scales.py", "function(scale.valid, True)", "function(scale.valid, False)"),
    Fault("_scales.py", "lax.slice_in_dim(x, side - 1, side, axis=axis)", "lax.slice_in_dim(x, 0, 1, axis=axis)"),
    Fault("_scales.py", "else jnp.concatenate([line, x], axis)", "else jnp.concatenate([x, line], axis)"),
    Fault("_scales.py", '"reflect": range(1, margin + 1)', '"reflect": range(margin)'),
    Fault("_scales.py", '"edge": (0,) * margin', '"edge": range(margin)'),
    Fault("_scales.py", "return [True] * len(sides)", "return [side % 2 == 1 for side in sides]"),
    Fault("_windows.py", "(len(taps) // 2, (len(taps) - 1) // 2)", "((len(taps) - 1) // 2, len(taps) // 2)"),
    Fault("_stencil/_moments.py", "pivot * (total + rest)", "pivot * total"),
    Fault("_scales.py", 'share == 1 if self.downsample == "floor" else share > 0', "share > 0"),
    Fault("_scales.py", "size * 2**times if rule", "size * 2**times - 1 if rule"),
    Fault("_scales.py", "padded(last, at_last, self.window)", "padded(last, before, self.window)"),
    # MS-SSIM and the losses.
    Fault("_ms_ssim.py", 'if options.luminance == "all"', 'if options.luminance == "last"'),
    Fault("_ms_ssim.py", 'if options.channel_mean == "before"', 'if options.channel_mean == "after"'),
    Fault("_ms_ssim.py", "return -jnp.expm1(log_ms_ssim(", "return 1 - jnp.exp(log_ms_ssim("),
    Fault("_ms_ssim.py", "SOFT_EPS**2 / (2 * SOFT_EPS - x)", "SOFT_EPS"),
    Fault("_ms_ssim.py", "x, 2 * SOFT_EPS - x) if", "x, SOFT_EPS - x) if"),
    Fault("_ms_ssim.py", "lax.select(x <= 0, lax.full_like", "lax.select(x < -2, lax.full_like"),
    Fault("_losses.py", "return dissimilarity(options, images) / 2", "return dissimilarity(options, images)"),
    Fault("_losses.py", "return mean / images.max_val", "return mean"),
    Fault("_losses.py", "(1 - weight) * mean_l1(options, images)", "weight * mean_l1(options, images)"),
    # Arguments and metrics.
    Fault("_options.py", 'return "float64" if', 'return "float32" if'),
    Fault("_checks.py", "if a.shape != b.shape:", "if a.ndim != b.ndim:"),
    Fault("_signatures.py", "if not options.keys() <= known:", "if False:"),
    # Sizes.
    Fault("_scales.py", "2 * places(x.shape, axis) + 1 == size", "2 * places(x.shape, axis) == size"),
    Fault("_scales.py", 'more = 0 if self.downsample == "floor" else 1', "more = 1"),
    Fault("_scales.py", "map(operator.add, scale.sizes, map(sum, margins))", "scale.sizes"),
    Fault("_scales.py", "places(x.shape, axis) == size - 1 - source", "places(x.shape, axis) == size - source"),
    Fault("_scales.py", "jnp.where(where, begun, ", "jnp.where(~where, begun, "),
    Fault("_means.py", "return places(shape, first) < limit", "return places(shape, first) <= limit"),
    Fault("_stencil/_layout.py", "lax.min(i * rows, np.int32(total - rows))", "(i * rows)"),
    Fault("_stencil/_blocks.py", "if sizes:  # there may be NaN", "if False:  # there may be NaN"),
    Fault(
        "_stencil/_term_means.py", "selected(layout.inside(list(map(fold, first.sizes)), folded, 0), folded)", "folded"
    ),
    Fault("_stencil/_term_means.py", "functools.reduce(lax.mul, unstacked(windows))[", "windows[0]["),
    Fault("_linear.py", "weights = weights * windows_inside.astype(weights.dtype)", "pass"),
    Fault("_single_resolution.py", "(at >= begin) & (at < size)", "(at >= begin)"),
    Fault("_checks.py", "(each < least) | (each > sides)", "(each > sides)"),
    # Test sets.
    Fault("_canvases.py", "if saved.max() <= SAMPLES_TO_COMPILE:", "if True:"),
    Fault("_canvases.py", "sizes = [pair.shape for", "sizes = [pair.shape[::-1] for"),
    Fault("_canvases.py", "np.swapaxes(x, 0, 1) if turn", "np.flip(x) if turn"),
    Fault("_evaluate.py", "values[i] for i in range(len(values))", "values[i] for i in values"),
    Fault("nnx.py", "rest = a_rest + b_rest + rest", "rest = a_rest + b_rest"),
    Fault("nnx.py", "return whole, rest - (whole - total)", "return total, rest"),
    # Images that are cut over devices.
    Fault("_shards.py", "pairs = [(source, source - away)", "pairs = [(source, source + away)"),
    Fault("_shards.py", "return lax.pmean(x, over) if over else x", "return x"),
    Fault("_shards.py", "lax.select(first, x, lax.psum(selected(first, x), over))", "x"),
    Fault("_options.py", "first - first_line(window.cut_over, lines)", "first"),
]


def caught(fault: Fault, programs: str) -> bool:
    """Whether a test fails in a copy of the project that has the fault; ``programs`` is a folder that keeps them."""
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
        command += [f"tests/test_{name}.py" for name in TESTS]
        # Most programs do not have the fault, and need not be compiled again: that took three quarters of the time.
        cache = {
            "JAX_COMPILATION_CACHE_DIR": programs,
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
        }
        run = subprocess.run(command, cwd=copy, env=os.environ | cache, capture_output=True, text=True)
        if run.returncode not in (0, 1):
            raise RuntimeError(run.stdout + run.stderr)
        return run.returncode == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="faults at a time")
    parser.add_argument("--only", default="", metavar="TEXT", help="faults whose file or line has this text")
    options = parser.parse_args()
    faults = [fault for fault in FAULTS if options.only in " ".join(fault)]
    passed = 0
    with tempfile.TemporaryDirectory() as programs, ThreadPoolExecutor(options.jobs) as pool:
        find = functools.partial(caught, programs=programs)
        if find(Fault("_terms.py", "", "")):
            sys.exit("The tests fail without a fault.")
        for fault, found in zip(faults, track(pool.map(find, faults), "planting faults", len(faults)), strict=True):
            if not found:
                passed += 1
                print(f"not found: {fault.file}: {fault.right!r} -> {fault.wrong!r}", flush=True)
    print(f"{len(faults) - passed} of {len(faults)} faults found")
    sys.exit(passed > 0)


if __name__ == "__main__":
    main()
