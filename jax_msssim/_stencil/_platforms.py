"""What depends on the platform: an operation that is traced when it is lowered, and stages that XLA does not fuse."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# The platforms that have a program of their own, and what it is called; None stands for all others. A kernel for one
# more platform begins here.
PLATFORMS = {"cpu": "cpu", "tpu": "tpu", None: "default"}


def keep_apart(platform: str | None, stage: Callable[..., Any], *args: Any) -> Any:
    """Calls a jitted function so that XLA does not fuse it with others, once the platform is decided.

    On a CPU XLA fuses a pass over an axis into the next one, and computes it again for each tap of that.
    """
    if platform == "cpu":
        with set_xla_metadata(inlineable="false"):  # a barrier is gone before XLA fuses on a CPU
            return stage(*args)
    return stage(*args) if platform is None else lax.optimization_barrier(stage(*args))


def per_platform(program: Callable, outline: Callable, static: Any, *arrays: Any) -> list[jax.Array]:
    """``program(platform, static, *arrays)``, a sequence of arrays.

    Whatever transforms this sees one operation. ``program`` is traced when it is lowered, for one platform. Before that
    ``outline``, called alike, is traced for the shapes and types of its results. ``static`` is hashable.
    """
    leaves, tree = jax.tree.flatten(arrays)
    return _operation.bind(*leaves, program=program, outline=outline, static=static, tree=tree)


def _call(platform, *leaves, program, outline, static, tree):
    del outline
    return list(program(platform, static, *tree.unflatten(leaves)))


def _types(*leaves, program, **params):
    del program
    return jax.make_jaxpr(lambda *x: _call(None, *x, program=params["outline"], **params))(*leaves).out_avals


def _on_any_platform(*leaves, **params):
    programs = {key or "default": lambda *x, name=name: _call(name, *x, **params) for key, name in PLATFORMS.items()}
    return lax.platform_dependent(*leaves, **programs)


def _jvp(primals, tangents, **params):
    # Of second derivatives: callers have a rule of their own for the first.
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(lambda *leaves: _on_any_platform(*leaves, **params), primals, tangents)


def _batched(batch, leaves, axes, **params):
    if all(axis is None for axis in axes):
        results = _operation.bind(*leaves, **params)
        return results, [None] * len(results)
    # To a batch axis like any other, so that blocks are cut to its size.
    in_front = functools.partial(batching.bdim_at_front, size=batch.size, mesh_axis=batch.explicit_mesh_axis)
    results = _operation.bind(*map(in_front, leaves, axes), **params)
    return results, [0] * len(results)


def _lower(primitive: Primitive, function: Callable[..., Any]) -> None:
    """Lowers a primitive as ``function(platform, *operands)``, traced for the platform of the program alone."""
    for platform in PLATFORMS:
        rule = lambda *x, key=platform, **params: function(PLATFORMS[key], *x, **params)  # noqa: E731
        mlir.register_lowering(primitive, mlir.lower_fun(rule, primitive.multiple_results), platform=platform)


_operation = Primitive("jax_msssim_stencil")
_operation.multiple_results = True
_operation.def_abstract_eval(_types)
_operation.def_impl(_on_any_platform)
_lower(_operation, _call)
ad.primitive_jvps[_operation] = _jvp
batching.fancy_primitive_batchers[_operation] = _batched


@jax.jit
def _with_axis(x):
    return lax.expand_dims(x, (0,))  # a call that returns its argument is dropped


# The same array, which XLA does not fuse with what it is used for.
_apart = Primitive("jax_msssim_apart")
apart = _apart.bind
_apart.def_abstract_eval(lambda x: x)
_apart.def_impl(lambda x: x)
_lower(_apart, lambda platform, x: lax.squeeze(keep_apart(platform, _with_axis, x), (0,)))
ad.deflinear2(_apart, lambda cotangent, _: [apart(cotangent)])
batching.defvectorized(_apart)
