"""The same numbers as other programs, where they are installed, and what a convention is."""

import copy
import dataclasses
import pickle

import jax
import numpy as np
import peers
import pytest
import recorded
import skimage.color
import skimage.metrics
from images import photographs, random_pair

import jax_msssim
from jax_msssim import conventions


@dataclasses.dataclass
class Configuration:
    """As people keep them."""

    convention: conventions.Convention


def check(peer, a, b):
    try:
        differences = peers.differences(peer, a, b)
    except ImportError as missing:
        pytest.skip(str(missing))
    assert max(differences.values()) <= peer.bound, differences


@pytest.mark.parametrize("pair", peers.PAIRS)
@pytest.mark.parametrize("peer", peers.PEERS, ids=lambda peer: f"{peer.name} {peer.metric} {peer.convention}")
def test_program(peer, pair):
    check(peer, *peers.PAIRS[pair]())


@pytest.mark.parametrize(
    ("program", "pair"),
    [
        pytest.param(of, pair, id=f"{of.program} {of.metric} {pair}", marks=[pytest.mark.slow] * (i > 0))
        for of in recorded.RECORDED
        for i, pair in enumerate(of.values)
    ],
)
def test_recorded(program, pair):
    assert program.difference(pair) <= program.bound


def test_luma_of_super_resolution():
    image, _ = recorded.bytes_of("astronaut", 20, 30)
    luma = recorded.recipes()["luma_of_super_resolution"](image.astype(np.float32))
    # Two orders of float32 sums of numbers up to 235.
    np.testing.assert_allclose(luma[..., 0], skimage.color.rgb2ycbcr(image)[..., 0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("peer", peers.WINDOW_PEERS, ids=lambda peer: peer.name)
def test_windows(peer):
    check(peer, *photographs("astronaut", 64, 71))


@pytest.mark.parametrize("peer", peers.VOLUME_PEERS, ids=lambda peer: peer.name)
def test_volumes(peer):
    # pytorch-msssim wants sides of more than 16 times 4, whatever the number of scales.
    check(peer, *random_pair((81, 82, 83, 1) if peer.name == "pytorch_msssim" else (21, 24, 26, 1)))


@pytest.mark.parametrize("peer", peers.LOSS_PEERS, ids=lambda peer: peer.name)
def test_loss(peer):
    check(peer, *photographs("astronaut", 64, 70))


def test_map_of_scikit_image(implementation, x64):
    # Its map is as large as the image, its mean is over the positions where the window fits.
    pair = photographs("coffee", 64, 80)
    _, theirs = skimage.metrics.structural_similarity(*pair, data_range=1, channel_axis=-1, full=True, **peers.WANG)
    ours = jax_msssim.ssim_map(*pair, implementation=implementation)
    np.testing.assert_allclose(ours, theirs[5:-5, 5:-5], rtol=0, atol=1e-11)  # it subtracts E[x]^2 from E[x^2]


@pytest.mark.parametrize("name", conventions.ALL)
def test_presets(name):
    convention = conventions.ALL[name]
    assert convention is getattr(conventions, name)
    for arguments in convention:
        with pytest.raises(TypeError):
            arguments["k1"] = 0.02
    # What a configuration does with its values.
    copies = pickle.loads(pickle.dumps(convention)), copy.deepcopy(convention)
    for other in (*copies, dataclasses.asdict(Configuration(convention))["convention"]):
        assert (other, hash(other), repr(other)) == (convention, hash(convention), repr(convention))
        assert dict(other.ssim) == dict(convention.ssim)
    image = np.ones((48, 48, 1), np.float32)
    with pytest.raises(TypeError, match=r"write ssim\(a, b, \*\*convention\.ssim\)"):
        jax_msssim.ssim(image, image, **convention)
    if not convention.ms_ssim:
        with pytest.raises(TypeError, match="this program has no MS-SSIM"):
            jax_msssim.ms_ssim(image, image, **convention.ms_ssim)


def test_conventions_are_static_arguments():
    image = np.linspace(0, 1, 576, dtype=np.float32).reshape(24, 24, 1)
    compiled = jax.jit(lambda a, b, convention: jax_msssim.ssim(a, b, **convention.ssim), static_argnums=2)
    values = {name: float(compiled(image, image**2, conventions.ALL[name])) for name in ("PIQ", "KORNIA", "SKIMAGE")}
    assert len(set(values.values())) == 3
    assert float(compiled(image, image**2, copy.deepcopy(conventions.PIQ))) == values["PIQ"]
    assert conventions.PIQ != conventions.KORNIA
    assert conventions.KORNIA.ssim | {"k1": 0.02} == {"padding": "reflect", "k1": 0.02}
