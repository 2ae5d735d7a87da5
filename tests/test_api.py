"""The public surface: names, and the keywords of every function with their defaults."""

import inspect

import pytest

import jax_msssim
from jax_msssim import WANG2003

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
    "sizes": None,
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
HELPERS = {
    "evaluate": (["function", "pairs"], {"batch_size": 16, "progress": False}),
    "pad_images": (["images"], {"multiple": 128}),
    "gaussian_window": (["size", "sigma"], {}),
    "uniform_window": (["size"], {}),
    "fit_power_factors": (["spatial_shape"], {"filter_size": 11, "downsample": "edge", "power_factors": WANG2003}),
}


def parameters(function) -> tuple[list, dict]:
    """What a signature says: the names of positional arguments, keywords and their defaults; there is nothing else."""
    of = inspect.signature(function).parameters.values()
    kinds = {inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY}
    if function is jax_msssim.evaluate:  # it hands options on, to any function
        kinds.add(inspect.Parameter.VAR_KEYWORD)
    assert {p.kind for p in of} <= kinds
    positional = [p for p in of if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert all(p.default is p.empty for p in positional)
    return [p.name for p in positional], {p.name: p.default for p in of if p.kind is p.KEYWORD_ONLY}


def test_everything_public_is_there():
    assert sorted(jax_msssim.__all__) == sorted(set(jax_msssim.__all__))
    assert sorted(KEYWORDS | HELPERS) == FUNCTIONS
    public = {name for name, value in vars(jax_msssim).items() if name[0] != "_" and not inspect.ismodule(value)}
    assert public | {"conventions"} == set(jax_msssim.__all__)
    assert jax_msssim.MSSSIMTerms._fields == ("luminance", "contrast_structure", "similarity")
    assert jax_msssim.PaddedImages._fields == ("batch", "sizes")
    assert jax_msssim.WANG2003 == (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature(name):
    images = ["predictions", "targets"] if name.endswith("loss") else ["a", "b"]
    expected = HELPERS[name] if name in HELPERS else (images, KEYWORDS[name])
    assert parameters(getattr(jax_msssim, name)) == expected
