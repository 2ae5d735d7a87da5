"""Keywords that one function takes from another: its signature shows them, and a wrong one is refused in its name."""

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

# What other libraries call it, and what it is here.
ELSEWHERE = {
    **dict.fromkeys(("data_range", "val_range", "dynamic_range"), "max_val"),
    **dict.fromkeys(("win_size", "window_size", "kernel_size"), "filter_size"),
    **dict.fromkeys(("win_sigma", "sigma"), "filter_sigma"),
    **dict.fromkeys(("weights", "betas"), "power_factors"),
    "mask": "where",
}
REMEDIES = {
    "K": "Pass k1 and k2",
    **dict.fromkeys(("size_average", "reduction"), "Nothing is reduced, there is one value per image: take its mean()"),
    **dict.fromkeys(("return_map", "full", "return_full_image"), "The map is what ssim_map returns"),
    "channel_axis": "The last axis holds the channels: use jnp.moveaxis(image, axis, -1)",
}


def takes(
    source: Callable, but: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorates a function whose ``**options`` are the keywords of ``source``, but for some, each with a remedy."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        taken = inspect.signature(source).parameters.values()
        given = {p.name for p in own} | but.keys()
        parameters = [*own, *(p for p in taken if p.kind is p.KEYWORD_ONLY and p.name not in given)]
        positional = [p.name for p in own if p.kind is not p.KEYWORD_ONLY]
        keywords = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
        known = {*positional, *keywords}
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def checked(*args: P.args, **options: P.kwargs) -> R:
            if not options.keys() <= known:
                unknown = next(option for option in options if option not in known)
                remedy = but.get(unknown) or _remedy(unknown, keywords)
                raise TypeError(f"{name}() got an unexpected keyword argument {unknown!r}. {remedy}.")
            if len(args) > len(positional):
                own, given = (len(x) - ("self" in positional) for x in (positional, args))
                raise TypeError(
                    f"{name}() takes {own} positional arguments, but got {given}. Options are passed by name, such as "
                    "max_val=..."
                )
            return function(*args, **options)

        checked.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        return checked

    return decorate


def _remedy(unknown: str, keywords: list[str]) -> str:
    if unknown in REMEDIES:
        return REMEDIES[unknown]
    meant = ELSEWHERE.get(unknown) or next(iter(difflib.get_close_matches(unknown, keywords, 1, 0.75)), unknown)
    return f"Pass {meant}" if meant in keywords else f"It takes {', '.join(keywords)}"
