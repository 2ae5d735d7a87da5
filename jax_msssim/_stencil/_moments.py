"""Local means and variances, one axis after another, and their derivatives.

Each window is measured from the sample under its largest tap, the pivot ``p``. Along an axis, with ``e = x - p`` for
each sample ``x`` of the window,

    m = p + sum g e                      the mean
    v = sum g (u + e^2) - (m - p)^2      the variance; u is that of each sample, from the axis before

and the means are the samples of the next axis (the law of total variance). With a mask the same passes carry the
window's mass, the sum of the taps on valid pixels.

Samples ``s`` and ``d`` are one array ``[2, ...]``. Moments are a stack of two such arrays, means and variances. What is
1 where a pixel is valid is ``[1, ...]``.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jax_msssim._means import or_one, stacked
from jax_msssim._stencil._layout import Axis, Layout, Stack, stage, unstacked, weighted_sum
from jax_msssim._stencil._platforms import per_platform


class Moments(NamedTuple):
    """Moments by their names."""

    mean_s: jax.Array
    mean_d: jax.Array
    variance_s: jax.Array
    variance_d: jax.Array

    @classmethod
    def of(cls, moments: Stack) -> "Moments":
        """From a stack."""
        return cls(*(x for kind in unstacked(moments) for x in unstacked(kind)))


def along(layout: Layout, moments: Stack, mass: jax.Array | None, axis: Axis) -> tuple[Stack, jax.Array | None]:
    """The moments along one more axis, of samples alone or of moments, and the mass where pixels are masked."""
    inside = len(moments) == 2  # the samples have a variance
    if not layout.window.halo:
        return (moments if inside else layout.stack(moments[0], jnp.zeros_like(moments[0]))), mass
    pivot, taps = layout.window.pivot, np.asarray(layout.window.taps, moments[0].dtype)
    samples = layout.shifted(moments, axis, 0)
    above = [None if k == pivot else lax.sub(x, samples[pivot]) for k, x in enumerate(samples)]
    within = layout.shifted(moments, axis, 1) if inside else [None] * len(above)

    def squares(above):
        both = ((None if e is None else lax.square(e), u) for e, u in zip(above, within, strict=True))
        return [u if e is None else e if u is None else lax.add(e, u) for e, u in both]

    if mass is None:
        m = weighted_sum(taps, above)
        v = weighted_sum(taps, squares(above)) - lax.square(m)
    else:
        weights = list(map(lax.mul, taps, layout.shifted(jnp.broadcast_to(mass, moments[0].shape), axis)))
        total = functools.reduce(lax.add, weights)
        mass, share = total[:1], 1 / or_one(total)
        m = share * weighted_sum(weights, above)
        # A masked pivot may be far from the valid pixels, and the square of the mean most of that of the samples.
        v = share * weighted_sum(weights, squares([(0 if e is None else e) - m for e in above]))
    if layout.platform not in ("cpu", None):
        # XLA makes one kernel of the two, and two where the mean is needed elsewhere.
        m, v = lax.optimization_barrier((m, v))
    return layout.stack(samples[pivot] + m, v), mass


_along = stage(3)(along)


def passes(layout: Layout, samples: jax.Array, valid: jax.Array | None, axes: tuple[Axis, ...]):
    """The moments along some axes and the mass, a stage for each axis."""
    moments, mass = (samples,), valid
    for axis in axes:
        moments, mass = layout.stage(_along, moments, mass, axis)
    return moments, mass


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def moments(layout: Layout, samples: jax.Array, valid: jax.Array | None) -> Stack:
    """The moments in every window."""
    if layout.platform is not None:
        return passes(layout, samples, valid, layout.axes)[0]
    # As arrays with nothing before the batch, where vmap adds an axis.
    arrays = per_platform(_moments_on, _outline, layout, unstacked(samples), None if valid is None else valid[0])
    return layout.stack(stacked(*arrays[:2]), stacked(*arrays[2:]))


def _moments_on(platform, layout: Layout, samples, valid):
    valid = None if valid is None else stacked(valid)
    return Moments.of(moments(layout._replace(platform=platform), stacked(*samples), valid))


def _outline(_, layout: Layout, samples, valid):
    del valid
    return [functools.reduce(lambda x, axis: layout.shifted(x, axis)[0], layout.axes, samples[0])] * 4


@moments.defjvp
def _moments_jvp(layout: Layout, primals, tangents):
    # dM = G dx, dV = 2 (G (x dx) - M G dx), G being the blur. Differentiating the passes compiles for a minute.
    (x, valid), (dx, _) = primals, tangents
    dx = dx if valid is None else valid * dx
    mass = 1 if valid is None else lax.expand_dims(coverage(layout, valid)[0], (0,))
    by_mean, by_square = (functools.reduce(layout.blur, layout.axes, y) / mass for y in (dx, x * dx))
    value = moments(layout, x, valid)
    return value, layout.stack(by_mean, 2 * (by_square - value[0] * by_mean))


def coverage(layout: Layout, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The window's mass (1 where there is none, to divide by), and which positions count."""
    mass, missing = unstacked(_blurred(layout, lax.concatenate([valid, 1 - valid], 0)))
    # Nothing missing is exactly 0, in any precision, so full coverage can be asked for.
    return or_one(mass), (mass > 0) & (missing <= 1 - layout.window.min_coverage)


def spread(images: tuple[str, ...], moments: Moments, by: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
    """What :func:`adjoint` blurs, from partial derivatives by the moments, by name; there may be none by the means."""
    by_s, by_d = -2 * moments.mean_s * by["variance_s"], -2 * moments.mean_d * by["variance_d"]
    if "mean_s" in by:
        by_s, by_d = by_s + by["mean_s"], by_d + by["mean_d"]
    means = (by_s, by_d) if len(images) == 2 else (by_s + by_d if images == ("a",) else by_s - by_d,)
    return (*means, by["variance_s"], by["variance_d"])


def adjoint(layout: Layout, images: tuple[str, ...], stack: Stack, first: int, samples: jax.Array, valid):
    """The derivative turned round: gradient images for ``"a"``, ``"b"`` or both, in three linear blurs or four.

    What :func:`spread` gives lies in a stack, from a ``first`` array on.
    """
    turned = layout._replace(window=layout.window._replace(taps=layout.window.taps[::-1]))
    blurred = _blurred(turned, turned.stage(_with_margins, stack, first))
    return turned.stage(_gradients, images, blurred, samples, valid)


@stage(2)
def _with_margins(layout: Layout, stack, first: int):
    # A stage of its own: fused into the one before or after, it makes scalar code of that.
    def pad(x):
        margins = [(0, 0, 0)] * x.ndim
        for place, step in layout.axes:
            margins[place] = (layout.window.halo * step, layout.window.halo * step, 0)
        return lax.pad(x, lax.full((), 0, x.dtype), margins)

    return jax.tree.map(pad, stack[first:])


@stage(1)
def _gradients(layout: Layout, images, blurred, samples, valid):
    del layout
    (s, d), (*means, variance_s, variance_d) = unstacked(samples), unstacked(blurred)
    by_s, by_d = 2 * s * variance_s, 2 * d * variance_d
    if len(means) == 2:
        by_s, by_d = by_s + means[0], by_d + means[1]
    gradients, rest = {"a": by_s + by_d, "b": by_s - by_d}, means[0] if len(means) == 1 else 0
    return {name: (1 if valid is None else valid[0]) * (gradients[name] + rest) for name in images}


def _blurred(layout: Layout, stack: Stack) -> Stack:
    """Blurred along all axes, a stage for each."""
    return functools.reduce(functools.partial(layout.stage, _blur), layout.axes, stack)


@stage(2)
def _blur(layout: Layout, stack, axis: Axis):
    return jax.tree.map(lambda x: layout.blur(x, axis), stack)
