"""What depends on the platform: an operation that is traced when it is lowered."""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

# The platforms that have a program of their own, and what it is called; None stands for all others. A kernel for one
# more platform begins here.
PLATFORMS = {"cpu": "cpu", None: "default"}


def per_platform(program: Callable, outline: Callable, static: Any, *arrays: Any) -> list[jax.Array]:
    """``program(platform, static, *arrays)``, a sequence of arrays.

    Whatever transforms this sees one operation. ``program`` is traced when it is lowered, for one platform. Before that
    ``outline``, called alike, is traced for the shapes and types of its results. ``static`` is hashable.
    """
    leaves, tree = jax.tree.flatten(arrays)
    return _operation.bind(*leaves, program=program, outline=outline, static=static, tree=tree)


def on_any_platform(program: Callable, *arrays: Any) -> Any:
    """``program(platform, *arrays)``, traced for every platform: what transforms this sees all that it does."""
    programs = {key or "default": functools.partial(program, name) for key, name in PLATFORMS.items()}
    return lax.platform_dependent(*arrays, **programs)


def _call(platform, *leaves, program, outline, static, tree):
    chosen = outline if platform is None else program
    return list(chosen(platform, static, *tree.unflatten(leaves)))


def _traced(*leaves, **params):
    return on_any_platform(functools.partial(_call, **params), *leaves)


def _jvp(primals, tangents, **params):
    # Of second derivatives: callers have a rule of their own for the first.
    return jax.jvp(functools.partial(_traced, **params), primals, tuple(map(ad.instantiate_zeros, tangents)))


def _batched(batch, leaves, axes, **params):
    # To a batch axis like any other, so that blocks are cut to its size.
    in_front = functools.partial(batching.bdim_at_front, size=batch.size, mesh_axis=batch.explicit_mesh_axis)
    results = _operation.bind(*map(in_front, leaves, axes), **params)
    return results, [0] * len(results)


_operation = Primitive("jax_msssim_stencil")
_operation.multiple_results = True
_operation.def_abstract_eval(lambda *x, **args: jax.make_jaxpr(functools.partial(_call, None, **args))(*x).out_avals)
_operation.def_impl(_traced)
ad.primitive_jvps[_operation] = _jvp
batching.fancy_primitive_batchers[_operation] = _batched
for _platform, _name in PLATFORMS.items():
    mlir.register_lowering(_operation, mlir.lower_fun(functools.partial(_call, _name)), platform=_platform)
