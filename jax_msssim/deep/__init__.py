"""Deep structural similarity: DISTS, SSIM's two terms on the feature maps of VGG16, or of any other network.

It needs Flax: ``pip install "jax_msssim[flax]"``. The weights of VGG16 are yours to bring: nothing is downloaded. Those
of the channels, alpha and beta, are here (MIT licence, Copyright (c) 2020 Keyan Ding; the file LICENSE beside them).

>>> import jax_msssim.deep
>>> sum(len(alpha) for alpha in jax_msssim.deep.DISTS_WEIGHTS.alpha)
1475
"""

from jax_msssim.deep._dists import DISTS_WEIGHTS, FeatureTerms, dists_from_features, dists_loss, feature_terms
from jax_msssim.deep._vgg16 import VGG16

__all__ = ["DISTS_WEIGHTS", "VGG16", "FeatureTerms", "dists_from_features", "dists_loss", "feature_terms"]
