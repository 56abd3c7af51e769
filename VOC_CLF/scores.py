"""Average precision: of a class over pictures (the field's), of a picture over classes.

IGNORED entries are left out of a class's, as VOC does with objects marked difficult.
"""

from dataclasses import dataclass

import numpy as np
from sklearn.metrics import average_precision_score, precision_recall_curve

from VOC_CLF.dataset import IGNORED


@dataclass(frozen=True)
class VocScore:
    """Average precisions as shares, not percent."""

    area: np.ndarray  # [20] AP of each class, area under its curve; nan without positives
    eleven_point: np.ndarray  # [20] AP of each class as VOC2007 defines it
    per_image: float  # mean over pictures of the AP of their 20 scores

    @property
    def mean_ap(self) -> float:
        """mAP over the classes that have positives."""
        return float(np.nanmean(self.area))

    @property
    def mean_ap_11_point(self) -> float:
        return float(np.nanmean(self.eleven_point))


def voc_score(scores: np.ndarray, labels: np.ndarray) -> VocScore:
    """The average precisions of scores [n, 20], for labels [n, 20] of 1, 0 and IGNORED.

    Only the order of the scores counts.
    """
    classes = list(zip(labels.T, scores.T, strict=True))  # columns
    area = np.array([average_precision(*column) for column in classes])
    of_voc = np.array([average_precision(*column, eleven_point) for column in classes])
    return VocScore(area, of_voc, per_image_ap(scores, labels))


def per_image_ap(scores: np.ndarray, labels: np.ndarray) -> float:
    """The published program's number: it ranks the classes of each picture, not the pictures.

    Its own rules: difficult objects count as absent, and a picture without a positive as 0.
    """
    rows = zip(labels == 1, scores, strict=True)
    return float(np.mean(np.nan_to_num([average_precision(*row) for row in rows])))


def average_precision(labels, scores, measure=average_precision_score) -> float:
    """measure(labels, scores) of the entries not IGNORED; nan without a positive among them."""
    known = labels != IGNORED
    if not (labels == 1).any():
        return float("nan")
    return float(measure(labels[known], scores[known]))


def eleven_point(labels: np.ndarray, scores: np.ndarray) -> float:
    """VOC2007's AP: the best precision at a recall of r or more, mean over r = 0, 0.1, ..., 1.

    Everingham et al., The PASCAL Visual Object Classes Challenge, 2010, section 4.2.
    """
    precision, recall, _ = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    # Recall in whole pictures: a comparison such as recall >= 0.3 is then exact.
    num_positives = int(labels.sum())
    found = np.rint(recall * num_positives)
    return float(np.mean([precision[10 * found >= r * num_positives].max() for r in range(11)]))
