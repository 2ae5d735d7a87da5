"""Each convention gives its program's number: golden values, and the program where it is installed."""

import jax
import numpy as np
import peers
import pytest
from images import p2d, photographs, random_pair

import jax_msssim
from jax_msssim import conventions

# Sizes that halve evenly, and sizes that are odd at several scales, one side or both.
PAIRS = {
    "noise 176x192x3": lambda: random_pair((176, 192, 3)),
    "noise 181x187x1": lambda: random_pair((181, 187, 1)),
    "astronaut 177x184x3": lambda: photographs("astronaut", 177, 184),
    "camera 180x201x1": lambda: photographs("camera", 180, 201),
}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: f"{peer.name} {peer.metric} {peer.convention}")
def test_program(peer, pair):
    a, b = (x.astype(np.float32) for x in PAIRS[pair]())
    try:
        theirs = peers.value(peer, a, b)
    except ImportError as missing:
        pytest.skip(str(missing))
    convention = conventions.ALL[peer.convention]
    for implementation in ("stencil", "conv"):
        arguments = getattr(convention, peer.metric) | {"implementation": implementation}
        ours = getattr(jax_msssim, peer.metric)(a, b, **arguments)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=peer.bound)


GOLDEN = {  # float64, of the pair P2D
    ("MATLAB", "ssim"): 0.9736344192,
    ("MATLAB", "ms_ssim"): 0.9166501795,
    ("TENSORFLOW", "ms_ssim"): 0.9166501795,
    ("PYTORCH_MSSSIM", "ssim"): 0.9736344192,
    ("PYTORCH_MSSSIM", "ms_ssim"): 0.9147992077,
    ("TORCHMETRICS", "ssim"): 0.9736515845,
    ("TORCHMETRICS", "ms_ssim"): 0.9165088969,
    ("TORCHMETRICS_SIMPLE", "ms_ssim"): 0.9587452773,
    ("PIQ", "ssim"): 0.9736344192,
    ("PIQ", "ms_ssim"): 0.9162704790,
    ("MONAI", "ms_ssim"): 0.9168578060,
    ("KORNIA", "ssim"): 0.9736515845,
    ("SKIMAGE", "ssim"): 0.9732096036,
    ("SKIMAGE_WANG", "ssim"): 0.9736344192,
    ("FUSED_SSIM", "ssim"): 0.9742312577,
}


@pytest.mark.parametrize(("name", "metric"), GOLDEN)
def test_golden(name, metric, implementation, x64):
    arguments = getattr(conventions.ALL[name], metric) | {"implementation": implementation}
    value = getattr(jax_msssim, metric)(*p2d(), **arguments)
    np.testing.assert_allclose(value, GOLDEN[name, metric], rtol=1e-9)  # the figures have ten digits


def test_other_options_golden(implementation, x64):
    a, b = p2d()
    options = {"implementation": implementation}
    np.testing.assert_allclose(jax_msssim.ssim(a, b, padding="symmetric", **options), 0.9736488441, rtol=1e-9)
    window = jax_msssim.uniform_window(7)
    np.testing.assert_allclose(jax_msssim.ssim(a, b, window=window, **options), 0.9732130139, rtol=1e-9)


@pytest.mark.parametrize("name", conventions.ALL)
def test_presets_are_plain_arguments(name):
    convention = conventions.ALL[name]
    assert convention is getattr(conventions, name)
    for arguments in [mapping for mapping in convention if mapping is not None]:
        hash(tuple(arguments.items()))
        with pytest.raises(TypeError):
            arguments["k1"] = 0.02


def test_a_pair_of_paddings_is_for_ms_ssim():
    a = np.zeros((20, 20, 1), np.float32)
    with pytest.raises(ValueError, match="padding must be one of"):
        jax_msssim.ssim(a, a, padding=("valid", "reflect"))
    with pytest.raises(ValueError, match="padding must be one of"):
        jax_msssim.ms_ssim(a, a, padding=("valid", "wrap"), power_factors=(1,))
    with pytest.raises(ValueError, match='covariance="sample" needs'):
        jax_msssim.ssim(a, a, filter_size=1, covariance="sample")
    with pytest.raises(ValueError, match="at least 6"):  # a window of 11 is mirrored 5 pixels beyond the border
        jax_msssim.ssim(a[:5], a[:5], padding="reflect")


VOLUMES = {
    "pytorch_msssim": (
        "PYTORCH_MSSSIM",
        lambda module, a, b: module.ms_ssim(a, b, data_range=1.0, win_size=5, weights=[0.5, 0.5]),
    ),
    "torchmetrics": (
        "TORCHMETRICS",
        lambda module, a, b: module.functional.image.multiscale_structural_similarity_index_measure(
            a, b, data_range=1.0, betas=(0.5, 0.5), sigma=0.5, kernel_size=5
        ),
    ),
    "monai": (
        "MONAI",
        lambda module, a, b: module.metrics.MultiScaleSSIMMetric(
            spatial_dims=3, data_range=1.0, kernel_size=5, weights=(0.5, 0.5)
        )(a, b),
    ),
}


@pytest.mark.parametrize("module", VOLUMES)
def test_volumes(module, implementation):
    peer = pytest.importorskip(module)
    if module == "monai":
        pytest.importorskip("monai.metrics")
    name, function = VOLUMES[module]
    a, b = (
        (x.astype(np.float32) for x in random_pair((81, 82, 83, 1)))
        if module == "pytorch_msssim"
        else (x.astype(np.float32) for x in random_pair((21, 24, 26, 1)))
    )
    theirs = float(function(peer, *(peers.channels_first(x) for x in (a, b))))
    window = {"filter_sigma": 0.5} if module == "torchmetrics" else {}
    ours = jax_msssim.ms_ssim(
        a,
        b,
        **conventions.ALL[name].ms_ssim,
        **window,
        filter_size=5,
        spatial_ndim=3,
        power_factors=(0.5, 0.5),
        implementation=implementation,
    )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_nothing_is_differentiated_away(implementation, x64):
    # The paddings and pooling rules are linear: their derivatives against central differences.
    a, b = random_pair((17, 19, 1))
    direction = np.random.default_rng(1).standard_normal(a.shape)
    for downsample, padding in (("zero", "same"), ("edge_start", "reflect"), ("edge", ("valid", "symmetric"))):
        options = {"downsample": downsample, "padding": padding, "implementation": implementation}

        def function(x, options=options):
            return jax_msssim.ms_ssim(x, b, filter_size=5, power_factors=(0.5, 0.5), covariance="sample", **options)

        # Off by 1e-16 / 1e-6 of a value of order 1, the slope being of order 1e-2 or more.
        slope = (function(a + 1e-6 * direction) - function(a - 1e-6 * direction)) / 2e-6
        np.testing.assert_allclose((jax.grad(function)(a) * direction).sum(), slope, rtol=1e-6)
