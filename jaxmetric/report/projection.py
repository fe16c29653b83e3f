"""Projects embeddings to the plane, for the map of the report."""

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

FEWEST_FOR_TSNE = 30


def project(embeddings: np.ndarray) -> np.ndarray:
    """Project embeddings to the plane with t-SNE initialized by PCA, or with PCA alone for fewer than 30 of them.

    Args:
        embeddings: float [N, D], finite.

    Returns:
        float [N, 2], with the direction of largest variance along the first axis, scaled to fit into [0, 1] x [0, 1]
        with the same unit on both axes.
    """
    plane = _neighbor_map(np.asarray(embeddings, np.float64))
    plane = plane - plane.min(0)
    return plane / max(plane.max(), np.finfo(float).tiny)


def _neighbor_map(embeddings: np.ndarray) -> np.ndarray:
    from sklearn.manifold import TSNE  # takes a second, so it is not imported when training starts

    # t-SNE of a few hundred points is seven times slower with threads that wait for a busy core. The limit applies to
    # libraries that are loaded by now.
    with threadpool_limits(1):
        plane = _principal_plane(embeddings)
        spread = plane[:, 0].std()
        if len(plane) < FEWEST_FOR_TSNE or spread == 0:
            return plane
        # scikit-learn's own "pca" initialization refuses one dimension; the scale is the one that it uses.
        start = (plane / spread * 1e-4).astype(np.float32)
        tsne = TSNE(perplexity=min(30.0, (len(plane) - 1) / 3), init=start, random_state=0)
        return _principal_plane(tsne.fit_transform(embeddings).astype(np.float64))


def _principal_plane(points: np.ndarray) -> np.ndarray:
    centered = points - points.mean(0)
    left, singular, _ = np.linalg.svd(centered, full_matrices=False)
    plane = (left * singular)[:, :2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))
