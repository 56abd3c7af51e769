"""The adversaries under the microscope: pure functions of arrays, float32.

Columns are unit rows [K, D]. Nothing here holds a matrix of K times K.
"""

import numpy as np

CHUNK = 512  # rows that meet all others at a time
TWIN = 0.95  # cosine


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


def twins(columns: np.ndarray, most: int = 4096) -> np.ndarray:
    """Which of the first `most` columns have another one at a cosine above TWIN: bool."""
    return nearest(columns[:most], columns, 2)[0][:, 1:].max(axis=1, initial=-1) > TWIN


def attention(
    queries: np.ndarray, keys: np.ndarray, columns: np.ndarray, tau: float, weight: float = 1.0
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
        p /= p.sum(1, keepdims=True) + np.exp((of_keys - peak) / tau).sum(1, keepdims=True)
        total += p.sum(0)
        nearer = cosine.max(1) > (rows * own).sum(1)
        foolers.append(np.where(nearer, cosine.argmax(1), -1))
    return total, np.concatenate(foolers)


def effective_number(attention: np.ndarray) -> float:
    """exp of the entropy of the shares: K where all get the same, 1 where one gets all."""
    shares = attention[attention > 0] / attention.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def dead(attention: np.ndarray) -> np.ndarray:
    """Which columns get less than a hundredth of the mean: bool [K]."""
    return attention <= 0.01 * attention.mean()


def shares(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Share of each class among the labels [n]."""
    return np.bincount(labels, minlength=num_classes) / max(1, len(labels))
