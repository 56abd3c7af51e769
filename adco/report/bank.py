"""The adversaries under the microscope: pure functions of arrays, float32.

Columns are given as unit rows [K, D]. Nothing here holds a matrix of K times K, or of K times many.
"""

import numpy as np

CHUNK = 1024  # rows that meet all others at a time
TWIN = 0.95  # cosine


def unit(rows: np.ndarray) -> np.ndarray:
    """The rows [n, d] at unit length; a row of zeros stays."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def nearest(rows: np.ndarray, others: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines [n, k] and positions [n, k] of the others [m, D] nearest to each of the rows [n, D],
    the nearest first; k at most m.
    """
    k, found = min(k, len(others)), []
    for start in range(0, len(rows), CHUNK):
        cosine = rows[start : start + CHUNK] @ others.T
        some = np.argpartition(-cosine, k - 1, axis=1)[:, :k]
        order = np.argsort(-np.take_along_axis(cosine, some, 1), axis=1, kind="stable")
        found.append(np.take_along_axis(some, order, 1))
    place = np.concatenate(found)
    return np.einsum("nd,nkd->nk", rows, others[place]), place


def twins(columns: np.ndarray, most: int = 4096) -> np.ndarray:
    """Which of the first `most` columns have another one at a cosine above TWIN: bool."""
    if len(columns) < 2:
        return np.zeros(len(columns), bool)
    return nearest(columns[:most], columns, 2)[0][:, 1] > TWIN


def attention(
    queries: np.ndarray, keys: np.ndarray, columns: np.ndarray, tau: float, weight: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """What the columns take of the softmax of queries [n, D] over keys [n, D] and columns [K, D].

    Their sums over the queries [K]; and of each query the column [n] that is nearest, or -1 where
    its own key is nearer: the others are fooled.
    """
    total, foolers = np.zeros(len(columns)), []
    for start in range(0, len(queries), 128):
        rows = queries[start : start + 128]
        cosine, of_keys = rows @ columns.T, rows @ keys.T
        peak = np.maximum(cosine.max(1), of_keys.max(1))[:, None]
        p = weight * np.exp((cosine - peak) / tau)
        p /= p.sum(1, keepdims=True) + np.exp((of_keys - peak) / tau).sum(1, keepdims=True)
        total += p.sum(0)
        own = (rows * keys[start : start + 128]).sum(1)
        foolers.append(np.where(cosine.max(1) > own, cosine.argmax(1), -1))
    return total, np.concatenate(foolers)


def effective_number(attention: np.ndarray) -> float:
    """exp of the entropy of the shares: K where all get the same, 1 where one gets all."""
    shares = attention[attention > 0] / max(attention.sum(), 1e-300)
    return float(np.exp(-(shares * np.log(shares)).sum())) if len(shares) else 0.0


def dead(attention: np.ndarray) -> np.ndarray:
    """Which columns get less than a hundredth of the mean: bool [K]."""
    return attention <= 0.01 * attention.mean()


def class_shares(
    labels: np.ndarray, of_columns: np.ndarray, num_classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Shares [classes] of the pictures, and of the columns, by the class of the nearest picture."""
    counts = (np.bincount(x, minlength=num_classes) for x in (labels, of_columns))
    pictures, columns = (count / max(1, count.sum()) for count in counts)
    return pictures, columns
