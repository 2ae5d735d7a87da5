"""The same numbers as other programs, where they are installed, and what a convention is."""

import numpy as np
import peers
import pytest
import skimage.metrics
from images import photographs, random_pair

import jax_msssim
from jax_msssim import conventions


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
def test_presets_are_plain_arguments(name):
    convention = conventions.ALL[name]
    assert convention is getattr(conventions, name)
    for arguments in [mapping for mapping in convention if mapping is not None]:
        hash(tuple(arguments.items()))
        with pytest.raises(TypeError):
            arguments["k1"] = 0.02
