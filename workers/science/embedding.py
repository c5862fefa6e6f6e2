"""Two-dimensional pictures of features by t-SNE: van der Maaten and Hinton, JMLR 2008; KDEP, CVPR 2022, fig. 4.

N samples, D channels.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from backend.domain.errors import BadInput


def embed(features: ArrayLike, *, perplexity: float = 30.0, seed: int = 0, pca: int = 50) -> NDArray[np.float64]:
    """Embed [N, D] features in the plane: [N, 2], centred.

    Features are first projected on at most `pca` principal components; the perplexity is lowered to (N − 1) / 3 where
    there are few samples. Distances between far clusters, and their sizes, mean nothing in such a picture.

    Raises:
        BadInput: fewer than 4 samples, or features that are not finite.
    """
    f = np.asarray(features, dtype=np.float64)
    if f.ndim != 2 or f.shape[0] < 4:
        raise BadInput("features", f.shape, "expected [N, D] with at least 4 samples")
    if not np.isfinite(f).all():
        raise BadInput("features", "NaN or infinity", "expected finite features")
    if not perplexity > 0:
        raise BadInput("perplexity", perplexity, "expected a number above 0")
    components = min(pca, *f.shape)
    if components < f.shape[1]:
        f = PCA(components, svd_solver="full").fit_transform(f)
    effective = min(perplexity, (f.shape[0] - 1) / 3)
    method = "exact" if f.shape[0] < 100 else "barnes_hut"
    tsne = TSNE(2, perplexity=effective, init="pca", random_state=seed, method=method)
    points: NDArray[np.float64] = np.asarray(tsne.fit_transform(f), dtype=np.float64)
    centred: NDArray[np.float64] = points - points.mean(axis=0)
    return centred
