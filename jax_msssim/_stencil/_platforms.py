"""What depends on the platform: an operation that is traced when it is lowered."""

import contextvars
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import ClosedJaxpr, Primitive
from jax.interpreters import ad, batching, mlir

# The platforms that have a program of their own, and what it is called; None stands for all others. "cuda" has one of
# its own where that is a kernel.
PLATFORMS = {"cpu": "cpu", "cuda": "cuda", "tpu": "tpu", None: "default"}

# Whether an operation is being lowered for one device, which can look at all images together without a collective.
on_one_device = contextvars.ContextVar("on_one_device", default=False)


class Program(NamedTuple):
    """What an operation is lowered to: ``function``, called with the platform first; for ``only`` one, or for all.

    ``like`` is a jaxpr with whatever the function does that JAX must know of before it is traced.
    """

    function: Callable[..., Any]
    only: str | None = None
    like: ClosedJaxpr | None = None


def per_platform(program: Program, outline: Callable, static: Any, *arrays: Any) -> list[jax.Array]:
    """``program.function(platform, static, *arrays)``, a sequence of arrays.

    Whatever transforms this sees one operation. ``program`` is traced when it is lowered, for one platform. Before that
    ``outline``, called alike, is traced for the shapes and types of its results. ``static`` is hashable.
    """
    leaves, tree = jax.tree.flatten(arrays)
    return _operation.bind(*leaves, program=program, outline=outline, static=static, tree=tree, like=program.like)


def on_any_platform(program: Callable, *arrays: Any) -> Any:
    """``program(platform, *arrays)``, traced for every platform: what transforms this sees all that it does.

    Kernels are not among it: they cannot be transformed.
    """
    names = {key or "default": name for key, name in PLATFORMS.items() if name != "cuda"}
    programs = {key: functools.partial(program, name) for key, name in names.items()}
    return lax.platform_dependent(*arrays, **programs)


def _call(platform, *leaves, program: Program, outline, static, tree, like):
    del like  # a parameter of its own, which JAX looks into
    chosen = outline if platform is None else program.function
    return list(chosen(platform, static, *tree.unflatten(leaves)))


def _traced(*leaves, **params):
    return on_any_platform(functools.partial(_call, **params), *leaves)


def _jvp(primals, tangents, **params):
    # Of second derivatives: callers have a rule of their own for the first.
    return jax.jvp(functools.partial(_traced, **params), primals, tuple(map(ad.instantiate_zeros, tangents)))


def _lowered(ctx, *operands, key, program: Program, **params):
    name, only, module = PLATFORMS[key], program.only, ctx.module_context
    if module.lowering_parameters.for_export:
        name = PLATFORMS[None] if name == "cuda" else name  # a saved program may hold no call that JAX does not know
    elif only not in (None, name):
        raise ValueError(
            f'implementation="{only}" is for programs on {only}, this one is for {", ".join(module.platforms)}; leave '
            "implementation out, which then takes another."
        )
    token = on_one_device.set(getattr(module.axis_context, "num_devices", None) == 1)
    try:
        return mlir.lower_fun(functools.partial(_call, name))(ctx, *operands, program=program, **params)
    finally:
        on_one_device.reset(token)


def _batched(batch, leaves, axes, **params):
    mapped = any(axis is not None for axis in axes)  # not where jacfwd computes the value
    if mapped:  # to a batch axis like any other, so that blocks are cut to its size
        in_front = functools.partial(batching.bdim_at_front, size=batch.size, mesh_axis=batch.explicit_mesh_axis)
        leaves = map(in_front, leaves, axes)
    results = _operation.bind(*leaves, **params)
    return results, [0 if mapped else None] * len(results)


_operation = Primitive("jax_msssim_stencil")
_operation.multiple_results = True
_operation.def_abstract_eval(lambda *x, **args: jax.make_jaxpr(functools.partial(_call, None, **args))(*x).out_avals)
_operation.def_impl(_traced)
ad.primitive_jvps[_operation] = _jvp
batching.fancy_primitive_batchers[_operation] = _batched
for _platform in PLATFORMS:
    mlir.register_lowering(_operation, functools.partial(_lowered, key=_platform), platform=_platform)
