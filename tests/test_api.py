"""The public surface: names, keywords, defaults and docstrings, and that defaults are said once."""

import inspect
import re
import typing

import pytest

import jax_msssim
from jax_msssim import _checks, _ms_ssim
from jax_msssim._ms_ssim import WANG2003

FUNCTIONS = sorted(name for name in jax_msssim.__all__ if inspect.isfunction(getattr(jax_msssim, name)))
LOCAL = {
    "max_val": None,
    "filter_size": 11,
    "filter_sigma": 1.5,
    "window": None,
    "k1": 0.01,
    "k2": 0.03,
    "covariance": "population",
    "where": None,
    "min_coverage": 1.0,
    "spatial_ndim": 2,
    "implementation": None,
}
SSIM = LOCAL | {"padding": "valid"}
MS_SSIM = SSIM | {"power_factors": WANG2003, "downsample": "edge", "luminance": "last", "channel_mean": "after"}
KEYWORDS = {
    "ssim": SSIM,
    "ssim_map": SSIM,
    "ms_ssim": MS_SSIM | {"negative": "relu"},
    "ms_ssim_db": MS_SSIM | {"negative": "relu"},
    "ms_ssim_terms": SSIM | {"scales": 5, "downsample": "edge"},
    "ssim_loss": SSIM,
    "dssim_loss": SSIM,
    "ms_ssim_loss": MS_SSIM | {"negative": "soft"},
    "log_ms_ssim_loss": MS_SSIM | {"negative": "soft"},
    "ssim_l1_loss": LOCAL | {"padding": "same", "weight": 0.2},
    "ms_ssim_l1_loss": MS_SSIM | {"negative": "soft", "alpha": 0.84, "form": "pyramid"},
}


def defaults(function, kind=inspect.Parameter.KEYWORD_ONLY) -> dict:
    return {name: p.default for name, p in inspect.signature(function).parameters.items() if p.kind is kind}


# What a function that passes **options on does with those it is not given.
FORWARDED = defaults(_ms_ssim.prepare_ms_ssim) | defaults(_checks.prepare)


def keywords(function) -> dict:
    """Every keyword a function takes and what it is by default, seen through ``**options``."""
    found = defaults(function)
    if defaults(function, inspect.Parameter.VAR_KEYWORD):
        (options,) = typing.get_args(typing.get_type_hints(function)["options"])
        found = {name: FORWARDED[name] for name in typing.get_type_hints(options)} | found
    return found


def test_everything_public_is_there():
    assert sorted(jax_msssim.__all__) == sorted(set(jax_msssim.__all__))
    assert set(KEYWORDS) | {"gaussian_window", "uniform_window", "fit_power_factors"} == set(FUNCTIONS)
    public = {name for name, value in vars(jax_msssim).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public | {"conventions"} == set(jax_msssim.__all__)
    assert jax_msssim.MSSSIMTerms._fields == ("luminance", "contrast_structure", "similarity")
    assert jax_msssim.WANG2003 == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_docstring(function):
    text = inspect.getdoc(getattr(jax_msssim, function))
    assert re.findall(r"^(\w+):$", text, re.MULTILINE) == ["Args", "Returns", "Raises", "Examples", "References"]
    arguments = text.split("\nArgs:\n")[1].split("\nReturns:")[0]
    described = ", ".join(re.findall(r"^  (\S[\w*, ]*):", arguments, re.MULTILINE)).replace("*", "").split(", ")
    assert sorted(described) == sorted(inspect.signature(getattr(jax_msssim, function)).parameters)
    assert ">>>" in text
    assert "https://" in text.split("\nReferences:")[1]


@pytest.mark.parametrize("function", KEYWORDS)
def test_keywords_and_their_defaults(function):
    signature = inspect.signature(getattr(jax_msssim, function))
    first = ["predictions", "targets"] if function.endswith("loss") else ["a", "b"]
    positional = [p.name for p in signature.parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == first
    assert keywords(getattr(jax_msssim, function)) == KEYWORDS[function]


def test_helpers():
    assert defaults(jax_msssim.fit_power_factors) == {
        "filter_size": 11,
        "downsample": "edge",
        "power_factors": WANG2003,
    }
    assert str(inspect.signature(jax_msssim.gaussian_window)).startswith("(size: int, sigma: float)")
    assert str(inspect.signature(jax_msssim.uniform_window)).startswith("(size: int)")


def test_defaults_are_the_same_where_they_are_repeated():
    prepared = defaults(_checks.prepare)
    assert prepared.items() >= defaults(jax_msssim.ssim).items()
    prepared |= defaults(_ms_ssim.prepare_ms_ssim)
    assert prepared.items() >= defaults(jax_msssim.ms_ssim).items()
