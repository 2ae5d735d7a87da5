"""Local means and variances, one axis after another, and their derivatives.

Each window is measured from the sample under its largest tap, the pivot ``p``. Along an axis, with ``e = x - p`` for
each sample ``x`` of the window,

    m = p + sum g e                      the mean
    v = sum g (u + e^2) - (m - p)^2      the variance; u is that of each sample, from the axis before

and the means are the samples of the next axis (the law of total variance). With a mask the same passes carry the
window's mass, the sum of the taps on valid pixels.

Bytes under a window of equal taps need no pivot on the way: sums of theirs and of their squares are whole numbers that
float32 holds exactly. At the end they are taken about a whole number near the mean, which is exact as well.

Samples ``s`` and ``d`` are one array ``[2, ...]``. Moments are a stack of two such arrays, means and variances. What is
1 where a pixel is valid is ``[1, ...]``.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._means import or_one, stacked, unstacked
from jax_msssim._scales import Pair, Scale
from jax_msssim._stencil._layout import Axis, Layout, stage, weighted_sum
from jax_msssim._stencil._platforms import on_any_platform
from jax_msssim._terms import Means, Variances
from jax_msssim._windows import Window


class Moments(NamedTuple):
    """Moments by their names."""

    mean_s: jax.Array
    mean_d: jax.Array
    variance_s: jax.Array
    variance_d: jax.Array

    @classmethod
    def of(cls, layout: Layout, moments: jax.Array) -> "Moments":
        """From a stack."""
        if layout.sums:
            moments = _from_sums(math.prod(map(len, layout.window.taps)), *unstacked(moments))
        return cls(*(x for kind in unstacked(moments) for x in unstacked(kind)))

    def statistics(self, centres: Pair) -> tuple[Means, Variances]:
        """What terms are made of."""
        return Means.of(self.mean_s, self.mean_d, *centres), Variances(self.variance_s, self.variance_d)


def along(layout: Layout, moments: jax.Array, mass: jax.Array | None, axis: Axis) -> tuple[jax.Array, jax.Array | None]:
    """The moments along one more axis, of samples if it is the first, and the mass where pixels are masked."""
    if layout.sums:
        return _summed(layout, moments, axis), mass
    inside = axis != layout.axes[0]  # the samples have a variance
    window, (place, _) = layout.window, axis
    if not window.halo[place]:
        return (moments if inside else stacked(moments, jnp.zeros_like(moments))), mass
    pivot, taps = window.pivot[place], np.asarray(window.taps[place], moments.dtype)
    samples = layout.shifted(moments, axis, 0 if inside else None)
    above = [None if k == pivot else lax.sub(x, samples[pivot]) for k, x in enumerate(samples)]
    within = layout.shifted(moments, axis, 1) if inside else [None] * len(above)

    def squares(above):
        both = ((None if e is None else lax.square(e), u) for e, u in zip(above, within, strict=True))
        return [u if e is None else e if u is None else lax.add(e, u) for e, u in both]

    if mass is None:
        m = weighted_sum(taps, above)
        v = weighted_sum(taps, squares(above)) - lax.square(m)
    else:
        shape = (moments[0] if inside else moments).shape
        weights = list(map(lax.mul, taps, layout.shifted(jnp.broadcast_to(mass, shape), axis)))
        total = functools.reduce(lax.add, weights)
        mass, share = total[:1], 1 / or_one(total)
        m = share * weighted_sum(weights, above)
        # A masked pivot may be far from the valid pixels, and the square of the mean most of that of the samples.
        v = share * weighted_sum(weights, squares([(0 if e is None else e) - m for e in above]))
    return stacked(samples[pivot] + m, v), mass


_along = stage(3)(along)


def sums_are_exact(window: Window, scale: Scale) -> bool:
    """Whether sums over a window are integers below 2^24, of which float32 holds every one."""
    if scale.valid is not None or scale.centred or any(x.dtype not in ("uint8", "int8") for x in scale.images):
        return False
    largest = 510**2 * math.prod(map(len, window.taps))  # samples are the sum of two bytes less another such sum
    return largest < 2**24 and all(len({*taps}) == 1 for taps in window.taps)


def _summed(layout: Layout, sums: jax.Array, axis: Axis) -> jax.Array:
    """Sums of samples and of their squares along one more axis; those of samples alone if it is the first."""
    if axis == layout.axes[0]:
        samples = layout.shifted(sums, axis)
        squares = [lax.square(x) for x in samples]
    else:
        samples, squares = (layout.shifted(sums, axis, which) for which in range(2))
    return stacked(*(functools.reduce(lax.add, parts) for parts in (samples, squares)))


def _from_sums(n: int, total: jax.Array, squares: jax.Array) -> jax.Array:
    """Means and variances from sums of ``n`` samples."""
    pivot = lax.round(total * (1 / n), lax.RoundingMethod.TO_NEAREST_EVEN)
    rest = total - n * pivot
    squares = squares - pivot * (total + rest)  # of what samples are above the pivot: no product reaches 2^24
    above = rest * (1 / n)
    return stacked(pivot + above, squares * (1 / n) - lax.square(above))


def passes(layout: Layout, samples: jax.Array, valid: jax.Array | None, axes: tuple[Axis, ...]):
    """The moments along some axes and the mass, a stage for each axis."""
    moments, mass = samples, valid
    for axis in axes:
        moments, mass = _along(layout, moments, mass, axis)
    return moments, mass


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def moments(layout: Layout, samples: jax.Array, valid: jax.Array | None) -> jax.Array:
    """The moments in every window."""
    if layout.platform is None:
        return on_any_platform(lambda name, *x: moments(layout._replace(platform=name), *x), samples, valid)
    return passes(layout, samples, valid, layout.axes)[0]


@moments.defjvp
def _moments_jvp(layout: Layout, primals, tangents):
    # dM = G dx, dV = 2 (G (x dx) - M G dx), G being the blur. Differentiating the passes compiles for a minute.
    (x, valid), (dx, _) = primals, tangents
    dx = dx if valid is None else valid * dx
    mass = 1 if valid is None else lax.expand_dims(coverage(layout, valid)[0], (0,))
    by_mean, by_square = (functools.reduce(layout.blur, layout.axes, y) / mass for y in (dx, x * dx))
    value = moments(layout, x, valid)
    return value, stacked(by_mean, 2 * (by_square - value[0] * by_mean))


def coverage(layout: Layout, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The window's mass (1 where there is none, to divide by), and which positions count."""
    mass, missing = unstacked(_blurred(layout, lax.concatenate([valid, 1 - valid], 0)))
    # Nothing missing is exactly 0, in any precision, so full coverage can be asked for.
    return or_one(mass), (mass > 0) & (missing <= 1 - layout.window.min_coverage)


def adjoint(layout: Layout, images: tuple[str, ...], stack: jax.Array, samples: jax.Array, valid):
    """The derivative turned round: gradient images for ``"a"``, ``"b"`` or both, in three linear blurs or four.

    In the stack lies, after something else, for each image what its own means bring, and then the derivatives by the
    variances: of ``V = G x^2 - M^2`` comes ``G (2 x dV)``, and ``-2 M dV`` with the means.
    """
    turned = layout._replace(window=layout.window._replace(taps=tuple(taps[::-1] for taps in layout.window.taps)))
    blurred = _blurred(turned, _with_margins(turned, stack))
    return _gradients(turned, images, blurred, samples, valid)


@stage()
def _with_margins(layout: Layout, stack):
    # A stage of its own: fused into the one before or after, it makes scalar code of that.
    margins = [(0, 0, 0)] * stack.ndim
    for place, step in layout.axes:
        margins[place] = (layout.window.halo[place] * step, layout.window.halo[place] * step, 0)
    return lax.pad(stack[1:], lax.full((), 0, stack.dtype), margins)


@stage(1)
def _gradients(layout: Layout, images, blurred, samples, valid) -> dict[str, jax.Array]:
    del layout
    (s, d), (*by_means, variance_s, variance_d) = unstacked(samples), unstacked(blurred)
    by_s, by_d = 2 * s * variance_s, 2 * d * variance_d
    by_variances = {"a": by_s + by_d, "b": by_s - by_d}
    weight = 1 if valid is None else valid[0]
    return {name: weight * (by_variances[name] + x) for name, x in zip(images, by_means, strict=True)}


def _blurred(layout: Layout, stack: jax.Array) -> jax.Array:
    """Blurred along all axes, a stage for each."""
    return functools.reduce(functools.partial(_blur, layout), layout.axes, stack)


@stage(2)
def _blur(layout: Layout, stack, axis: Axis):
    return layout.blur(stack, axis)
