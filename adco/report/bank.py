"""The adversaries under the microscope: pure functions of arrays, beside those of pretrain/monitor.

Columns are unit rows [K, D]. Nothing here holds a matrix of K times K.
"""

import numpy as np

CHUNK = 512  # rows that meet all others at a time


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows [n, d] at unit length; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(rows: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n, k] and positions [n, k] of the others [m, D] nearest to each of the rows [n, D],
    the nearest first; of fewer than k others, all of them.
    """
    found, k = [], min(k, len(others))
    for start in range(0, len(rows), CHUNK):
        cosine = rows[start : start + CHUNK] @ others.T
        some = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(cosine, some, 1), axis=1)
        found.append(np.take_along_axis(some, order, 1))
    place = np.concatenate(found)
    return np.einsum("nd,nkd->nk", rows, others[place]), place


def attention(
    queries: np.ndarray, keys: np.ndarray, columns: np.ndarray, tau: float, weight: float
) -> tuple[np.ndarray, np.ndarray]:
    """What columns [K, D] take of the softmax of queries [n, D] over keys [n, D] and columns.

    Their sums over the queries [K]; and of each query [n] the column that is nearest, or -1 where
    its own key is nearer: the others are fooled.  weight: of a column in the softmax.
    """
    total, foolers = np.zeros(len(columns)), []
    for start in range(0, len(queries), CHUNK):
        rows, own = queries[start : start + CHUNK], keys[start : start + CHUNK]
        cosine, of_keys = rows @ columns.T, rows @ keys.T
        peak = np.maximum(cosine.max(1), of_keys.max(1))[:, None]
        p = weight * np.exp((cosine - peak) / tau)
        total += (p / (p.sum(1) + np.exp((of_keys - peak) / tau).sum(1))[:, None]).sum(0)
        nearer = cosine.max(1) > (rows * own).sum(1)
        foolers.append(np.where(nearer, cosine.argmax(1), -1))
    return total, np.concatenate(foolers)


def shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among the labels [n]."""
    return np.bincount(labels, minlength=num_classes) / max(1, len(labels))
