"""On a GPU: the kernel against the stencil in float64. ``python check.py small``: for compute-sanitizer, no more."""

import sys

import jax
import numpy as np

from jax_msssim import ms_ssim_loss, ssim_loss
from jax_msssim._cuda import _launch

POWERS = np.array([0.4, 0.6])
FUNCTIONS = {"ssim_loss": (ssim_loss, {}), "ms_ssim_loss": (ms_ssim_loss, {"power_factors": POWERS})}
CASES = [
    ("ssim_loss", (2, 64, 70, 3), 0),
    ("ms_ssim_loss", (2, 64, 70, 3), 5000),
    ("ssim_loss", (1, 200, 333, 1), 0),
    ("ssim_loss", (97, 211, 4), 500),
    ("ms_ssim_loss", (2, 3, 41, 333, 2), 0),
    ("ssim_loss", (11, 11, 2), 0),
    ("ms_ssim_loss", (8, 256, 256, 3), 0),
]
VALUE, GRADIENT = 1e-6, 2e-6  # as in the tests of the emulation: absolute, and relative to the norm


def photographs(shape):
    """Two images that resemble each other, in float32."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[: shape[-3], : shape[-2]]
    a = (0.5 + 0.3 * np.sin(x / 9 + y / 17) * np.cos(y / 5))[..., None] + 0.1 * rng.standard_normal(shape)
    return np.float32(a), np.float32(a + 0.05 * rng.standard_normal(shape))


def results(name, **chosen):
    """The value, the gradients by both images at once, and by each: by default with the kernel."""
    function, options = FUNCTIONS[name]

    def total(a, b):
        return function(a, b, **options, **chosen).sum()

    def of(a, b):
        gradients = [jax.grad(total, which)(a, b) for which in ((0, 1), 0, 1)]
        return function(a, b, **options, **chosen), *gradients[0], *gradients[1:]

    return jax.jit(of)


def in_float64(name, a, b):
    """The value and the gradients by both images, by the stencil."""
    function, options = FUNCTIONS[name]

    def total(a, b):
        value = function(a, b, implementation="stencil", **options)
        return value.sum(), value

    (_, value), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(np.float64(a), np.float64(b))
    return jax.device_get((value, *gradients))


def check() -> bool:
    fine = True
    for name, shape, offset in CASES:
        a, b = (x + np.float32(offset) for x in photographs(shape))
        program = results(name)
        launches = program.lower(a, b).as_text().count(_launch.TARGET)
        got, again, named = (jax.device_get(p(a, b)) for p in (program, program, results(name, implementation="cuda")))
        expected = in_float64(name, a, b)
        value = np.abs(got[0] - expected[0]).max()
        gradients = [np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in zip(got[1:], 2 * expected[1:], strict=True)]
        same = all(map(np.array_equal, got, again)) and all(map(np.array_equal, got, named))
        ok = bool(launches and same and value <= VALUE and max(gradients) <= GRADIENT)
        fine &= ok
        errors = " ".join(f"{x:.1e}" for x in gradients)
        print(
            f"{'ok' if ok else 'WRONG'} {name} {shape} + {offset}: {launches} launches, value {value:.1e}, "
            f"gradients {errors}, the same again and by name: {same}",
            flush=True,
        )
    a, _ = photographs((2, 64, 70, 3))
    alike = jax.device_get(jax.jit(lambda a: ssim_loss(a, a))(a))
    print("equal images:", alike)
    images, whole = photographs((2, 2, 30, 40, 3)), results("ssim_loss")
    mapped, whole = (jax.device_get(program(*images)) for program in (jax.jit(jax.vmap(whole)), whole))
    print("as under vmap:", same := all(map(np.array_equal, mapped, whole)))
    return fine and same and not alike.any()


if __name__ == "__main__":
    if "small" in sys.argv:
        for name in FUNCTIONS:
            print(jax.block_until_ready(results(name)(*photographs((2, 64, 70, 3))))[0])
        sys.exit()
    jax.config.update("jax_enable_x64", True)
    print(jax.__version__, jax.devices()[0].device_kind)
    sys.exit(not check())
