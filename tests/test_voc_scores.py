"""Average precision against hand-made cases, a slow loop and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score

from tests.conftest import ROOT
from VOC_CLF.dataset import IGNORED
from VOC_CLF.linear import predict
from VOC_CLF.scores import average_precision, eleven_point, per_image_ap, voc_score


def slow_eleven_point(labels, scores) -> float:
    """From the definition, one threshold after another, in fractions of whole numbers."""
    order = np.argsort(-scores)
    total, points = 0.0, []
    for cut in range(1, len(order) + 1):
        found = int(labels[order[:cut]].sum())
        points.append((found, found / cut))
    for step in range(11):
        reached = [p for found, p in points if 10 * found >= step * labels.sum()]
        total += max(reached, default=0.0) / 11
    return total


@pytest.mark.parametrize("seed", range(5))
def test_eleven_point_ap_equals_the_definition(seed):
    rng = np.random.default_rng(seed)
    labels, scores = (rng.random(40) < 0.3).astype(int), rng.permutation(40) / 40
    assert eleven_point(labels, scores) == pytest.approx(slow_eleven_point(labels, scores))


def test_eleven_point_ap_by_hand():
    """Found at places 1 and 4 of two: precision 1 up to recall 0.5, then 1/2."""
    labels, scores = np.array([1, 0, 0, 1]), np.array([0.9, 0.8, 0.7, 0.6])
    assert eleven_point(labels, scores) == pytest.approx((6 * 1 + 5 * 0.5) / 11)


def test_a_recall_of_three_tenths_is_reached_by_three_of_ten():
    """3 / 10 < 0.1 * 3 in floats; the fourth positive comes after everything else."""
    labels = np.array([1] * 3 + [0] * 10 + [1] * 7)
    scores = np.linspace(1, 0, 20)
    rest = max((3 + i) / (13 + i) for i in range(1, 8))
    assert eleven_point(labels, scores) == pytest.approx((4 * 1 + 7 * rest) / 11)


def test_a_wrong_first_guess_costs_the_point_at_recall_zero():
    labels, scores = np.array([0, 1]), np.array([0.9, 0.1])
    assert eleven_point(labels, scores) == pytest.approx(0.5)


def test_ap_is_scikit_learns():
    rng = np.random.default_rng(0)
    labels, scores = (rng.random((30, 20)) < 0.4).astype(int), rng.random((30, 20))
    expected = [average_precision_score(labels[:, c], scores[:, c]) for c in range(20)]
    np.testing.assert_allclose(voc_score(scores, labels).area, expected)


def test_ap_by_hand():
    """Found at places 1 and 3: (1 + 2/3) / 2."""
    ap = average_precision(np.array([1, 0, 1]), np.array([0.9, 0.5, 0.1]))
    assert ap == pytest.approx((1 + 2 / 3) / 2)


def test_per_image_ap_ranks_the_classes_of_each_picture():
    """Picture 0: its class is first of three. Picture 1: its class is last."""
    labels = np.array([[1, 0, 0], [1, 0, 0]])
    scores = np.array([[0.9, 0.1, 0.2], [0.1, 0.2, 0.3]])
    assert per_image_ap(scores, labels) == pytest.approx((1 + 1 / 3) / 2)


def test_per_image_ap_counts_difficult_objects_as_absent_and_empty_pictures_as_0():
    labels = np.array([[1, IGNORED, 0], [IGNORED, 0, 0], [0, 0, 0]])
    scores = np.array([[0.5, 0.9, 0.1], [0.9, 0.1, 0.2], [0.3, 0.2, 0.1]])
    assert per_image_ap(scores, labels) == pytest.approx((1 / 2 + 0 + 0) / 3)


def test_scores_and_ap_per_image_are_those_of_the_published_program():
    theirs = torch.load(ROOT / "tests/parity/voc_scores.pt", weights_only=True)
    # A model that gives the crops' logits.
    model = torch.nn.Identity()
    found = predict(model, [(theirs["logits"][:, :, :, None, None], None)], torch.device("cpu"))
    np.testing.assert_allclose(found, theirs["scores"], rtol=1e-5)
    assert per_image_ap(found, theirs["labels"].numpy()) == pytest.approx(theirs["ap_per_image"])


def test_difficult_pictures_are_neither_right_nor_wrong():
    labels, scores = np.array([IGNORED, 1, IGNORED, 0]), np.array([0.9, 0.8, 0.7, 0.1])
    assert average_precision(labels, scores) == 1
    assert average_precision(labels, scores, eleven_point) == 1


def test_a_class_that_no_picture_shows_stays_out_of_the_mean():
    labels, scores = np.zeros((4, 20), int), np.random.default_rng(0).random((4, 20))
    labels[:, 7] = (1, 0, 0, 1)
    result = voc_score(scores, labels)
    assert np.isnan(result.area).sum() == 19
    assert result.mean_ap == average_precision_score(labels[:, 7], scores[:, 7])
