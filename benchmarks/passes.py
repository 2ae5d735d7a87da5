"""A test set of many sizes, by one library in a process of its own: SSIM and MS-SSIM of each pair, twice.

``python benchmarks/passes.py pytorch-msssim "loop over the pairs" PAIRS.npz STARTED`` prints, as JSON, what the first
pass takes from the start of the process, when ``time.monotonic()`` was STARTED, and what the second one takes.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import numpy as np  # and no library: what it takes to import one is part of its first pass

Pairs = Sequence[tuple[np.ndarray, np.ndarray]]
Values = Sequence[Sequence[float]] | np.ndarray  # of SSIM, of MS-SSIM


def _evaluate(pairs: Pairs) -> Values:
    from jax_msssim import evaluate, ms_ssim, ssim

    return [evaluate(function, pairs) for function in (ssim, ms_ssim)]


def _jax_msssim(pairs: Pairs) -> Values:
    from jax_msssim import ms_ssim, ssim

    return [[float(function(a, b)) for a, b in pairs] for function in (ssim, ms_ssim)]


def _pytorch_msssim(pairs: Pairs) -> Values:
    from pytorch_msssim import ms_ssim, ssim

    return _loop_of_torch(pairs, ssim, ms_ssim, data_range=255)


def _torchmetrics(pairs: Pairs) -> Values:
    from torchmetrics.functional.image import (
        multiscale_structural_similarity_index_measure,
        structural_similarity_index_measure,
    )

    functions = structural_similarity_index_measure, multiscale_structural_similarity_index_measure
    return _loop_of_torch(pairs, *functions, data_range=255.0)


def _piq(pairs: Pairs) -> Values:
    import piq

    def ssim(a, b, data_range):
        return piq.ssim(a, b, data_range=data_range, downsample=False)

    return _loop_of_torch(pairs, ssim, piq.multi_scale_ssim, data_range=255)


def _loop_of_torch(pairs: Pairs, *functions: Callable, data_range: float) -> Values:
    import torch

    def tensor(image):
        return torch.from_numpy(np.moveaxis(image, -1, 0).copy())[None].float()

    values = []
    with torch.no_grad():
        for a, b in pairs:
            a, b = tensor(a), tensor(b)
            values.append([float(function(a, b, data_range=data_range)) for function in functions])
    return np.transpose(values)


LOOP = "loop over the pairs"
CALLS: Mapping[tuple[str, str], Callable[[Pairs], Values]] = {
    ("jax_msssim", "evaluate"): _evaluate,
    ("jax_msssim", LOOP): _jax_msssim,
    ("pytorch-msssim", LOOP): _pytorch_msssim,
    ("torchmetrics", LOOP): _torchmetrics,
    ("piq", LOOP): _piq,
}
"""By library and how it is called."""


def passes(call: Callable[[Pairs], Values], pairs: Pairs, started: float) -> dict:
    """Seconds of the first pass and of the second, by the clock and of the processors, and the mean values."""
    clocks = [(0.0, started)]
    for _ in ("first", "second"):
        means = np.mean(call(pairs), axis=1)
        clocks.append((time.process_time(), time.monotonic()))
    (first_processor, first), (second_processor, second) = np.diff(clocks, axis=0).tolist()
    return {
        "first_processor_seconds": first_processor,
        "first_seconds": first,
        "second_processor_seconds": second_processor,
        "second_seconds": second,
        "ssim": float(means[0]),
        "ms_ssim": float(means[1]),
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    library, how, path, started = sys.argv[1:]
    images = list(np.load(path).values())
    print(json.dumps(passes(CALLS[library, how], list(zip(images[::2], images[1::2], strict=True)), float(started))))
