"""On a GPU: milliseconds of a call, stencil and kernel in turns."""

import statistics
import sys
import time

import jax
import jax.numpy as jnp

from jax_msssim import ms_ssim, ssim

WORK = [
    (ssim, (8, 1080, 1920, 3)),
    (ms_ssim, (8, 256, 256, 3)),
    (ssim, (8, 256, 256, 3)),
    (ms_ssim, (1, 1080, 1920, 3)),
]


def seconds(function, arguments, least=0.04):
    """Of one call, many started before the last is awaited."""
    jax.block_until_ready(function(*arguments))
    calls, spent, rate = 1, 0.0, 0.0
    while spent < least:
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        jax.block_until_ready(result)
        spent = time.perf_counter() - start
        rate, calls = spent / calls, 2 * calls
    return rate


def images(shape):
    return [jax.random.uniform(jax.random.key(i), shape) for i in (0, 1)]


def programs(function, implementation):
    """What is timed: the value alone, and with the gradient by one image and by both."""

    def mean(a, b):
        return function(a, b, implementation=implementation).mean()

    return {
        "value": jax.jit(mean),
        "gradient": jax.jit(jax.value_and_grad(mean)),
        "both gradients": jax.jit(jax.value_and_grad(mean, (0, 1))),
    }


def main() -> None:
    x = jnp.zeros(2**28)
    copy = jax.jit(lambda x: x + 1)
    rate = 2 * x.nbytes / min(seconds(copy, (x,)) for _ in range(3))
    print(f"{jax.devices()[0].device_kind}, JAX {jax.__version__}, a copy moves {rate / 1e12:.2f} TB/s", flush=True)
    del x
    for function, shape in WORK:
        arguments = images(shape)
        for what in ("value", "gradient", "both gradients"):
            compiled, described = {}, {}
            for name, implementation in {"stencil": "stencil", "kernel": None}.items():
                start = time.perf_counter()
                compiled[name] = programs(function, implementation)[what].lower(*arguments).compile()
                jax.block_until_ready(compiled[name](*arguments))
                spent = time.perf_counter() - start
                memory = compiled[name].memory_analysis().temp_size_in_bytes / arguments[0].nbytes / 2
                described[name] = f"compiled in {spent:.1f} s, {memory:.2f} pairs of memory"
            times = {name: [] for name in compiled}
            for _ in range(5):
                for name, program in compiled.items():
                    times[name].append(seconds(program, arguments))
            median = {name: statistics.median(each) for name, each in times.items()}
            print(
                f"{function.__name__} {shape} {what}: "
                + "; ".join(f"{name} {x * 1e3:.4f} ms, {described[name]}" for name, x in median.items())
                + f": {median['stencil'] / median['kernel']:.2f} times as fast",
                flush=True,
            )


if __name__ == "__main__":
    if len(sys.argv) > 1:  # for ncu
        for _ in range(3):
            jax.block_until_ready(programs(ssim, None)[sys.argv[1]](*images((8, 1080, 1920, 3))))
    else:
        main()
