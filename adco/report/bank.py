"""The adversaries under the microscope: pure functions of arrays, beside those of pretrain/monitor.

Columns are unit rows [K, D]. Nothing here holds a matrix of K times K.
"""

import numpy as np
from scipy.special import softmax
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors


def nearest(rows: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n, k] and positions [n, k] of the others [m, D] nearest to each of the rows [n, D],
    the nearest first; of fewer than k others, all of them.
    """
    neighbours = NearestNeighbors(n_neighbors=min(k, len(others)), metric="cosine").fit(others)
    with config_context(working_memory=64):  # MB
        distance, place = neighbours.kneighbors(rows)
    return 1 - distance, place


def attention(
    queries: np.ndarray, keys: np.ndarray, columns: np.ndarray, tau: float, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """What columns [K, D] take of the softmax of queries [n, D] over keys [n, D] and columns.

    Their sums over the queries [K]; and of each query [n] the column that is nearest, or -1 where
    its own key is nearer: the others are fooled.  weight: of a column in the softmax.
    """
    cosine = queries @ columns.T
    logits = np.hstack([cosine / tau + np.log(weight), queries @ keys.T / tau])
    total = softmax(logits, axis=1)[:, : len(columns)].sum(axis=0)
    nearer = cosine.max(axis=1) > (queries * keys).sum(axis=1)
    return total, np.where(nearer, cosine.argmax(axis=1), -1)


def shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among the labels [n]."""
    return np.bincount(labels, minlength=num_classes) / max(1, len(labels))
