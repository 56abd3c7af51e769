"""The published protocol: a linear layer on the frozen trunk, trained on augmented pictures."""

import copy
from functools import partial
from math import isfinite

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from adco.data.loader import EpochBatches, batch_loader, check_loader
from adco.encoder import Trunk, has_batchnorm
from adco.probe.features import check_features
from ops import checkpoint
from ops.distributed import World
from ops.errors import InputError, RunFailed
from ops.journal import Journal
from ops.schedule import cosine, set_rate
from ops.workers import workers_per_process
from VOC_CLF.dataset import CLASSES, VocTrainingViews, VocViews, center_crop, five_crops
from VOC_CLF.options import VocConfig
from VOC_CLF.scores import voc_score


def linear_scores(config: VocConfig, model, voc: dict, scored: str, device, journal: Journal):
    """[n, 20] sigmoid outputs on `scored`, each of five crops, at the best epoch on val.

    voc: pictures by the name of their split.
    model: an encoder, left with the fc of that epoch and, with bn_adapt, its BatchNorm statistics.
    """
    if config.bn_adapt and not has_batchnorm(model):
        raise InputError("bn_adapt=1: this encoder has no BatchNorm; leave it out")
    # One layer for the 20 classes, in place of the head.
    torch.manual_seed(config.seed)
    model.fc = nn.Linear(model.inplanes, len(CLASSES))
    nn.init.normal_(model.fc.weight, std=0.01)
    nn.init.zeros_(model.fc.bias)
    model.to(device)
    train_linear_(config, model, voc, device, journal)
    crops = VocViews(voc[scored], partial(five_crops, size=config.picture_size()))
    return predict(model, check_loader(crops, config.batch_size, config.workers), device)


def train_linear_(config: VocConfig, model, voc: dict, device, journal: Journal) -> None:
    """Train fc, and leave the model as it was after the epoch with the best mAP on val."""
    # Random views of train; a centre crop of each picture of val.
    views = VocTrainingViews(voc["train"], config.picture_size(), config.seed)
    batches = EpochBatches(len(views), config.batch_size, World(), config.seed)
    train_loader = batch_loader(views, batches, workers_per_process(config.workers, 1))
    crops = VocViews(voc["val"], partial(center_crop, size=config.picture_size()))
    val_loader = check_loader(crops, config.batch_size, config.workers)

    # The rate falls to 0 in 12 epochs and rises again, as published.
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=config.lr, momentum=config.momentum)
    best, best_state = -1.0, None
    for epoch in range(config.epochs):
        lr = cosine(epoch + 1, 12, config.lr)
        set_rate(optimizer, lr)
        batches.epoch = epoch
        loss = train_epoch(model, train_loader, optimizer, bool(config.bn_adapt), device)
        mean_ap = 100 * voc_score(predict(model, val_loader, device), voc["val"].labels).mean_ap
        journal.say(f"epoch {epoch}: lr {lr:.5f}, loss {loss:.4f}, val mAP {mean_ap:.2f}")
        journal.record("epoch", epoch, {"lr": lr, "loss": loss, "val_map": mean_ap})
        # The whole model is kept: with bn_adapt its BatchNorm statistics move too.
        if mean_ap > best:
            best, best_state = mean_ap, copy.deepcopy(model.state_dict())
            state = {"epoch": epoch + 1, "state_dict": best_state, "best_map": best}
            path = journal.folder / "model_best.pth.tar"
            journal.files.write({path: checkpoint.content_of(state)})
    model.load_state_dict(best_state)
    journal.say(f"best on val: mAP {best:.2f}")


def train_epoch(model, loader, optimizer, bn_adapt: bool, device) -> float:
    """The loss of one pass: nats per picture, summed over the 20 classes.

    bn_adapt: BatchNorm normalises by the batch, and its running statistics move. Nothing else in
    the trunk ever moves.
    """
    model.train(bn_adapt)
    trunk = Trunk(model)
    total, num_pictures = 0.0, 0
    for pictures, labels in loader:
        with torch.no_grad():
            features = trunk(pictures.to(device, non_blocking=True))
        logits = model.fc(features)
        # A sum over pictures and classes: --lr is a rate for sums.
        loss = F.binary_cross_entropy_with_logits(logits, labels.to(device), reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not (isfinite(loss.item()) and model.fc.weight.isfinite().all()):
            check_features(features)
            raise RunFailed("the loss or the layer is not finite; lower the learning rate")
        total, num_pictures = total + loss.item(), num_pictures + len(pictures)
    return total / num_pictures


@torch.inference_mode()
def predict(model, loader, device) -> np.ndarray:
    """[n, 20] sigmoid outputs; of a picture [crops, 3, S, S] that of its logits' mean."""
    model.eval()
    outputs = []
    for pictures, _ in loader:
        crops = pictures.flatten(0, -4).to(device, non_blocking=True)  # [n * crops, 3, S, S]
        # In float32 the sigmoid of every logit above 17 is 1: pictures would tie.
        logits = model(crops).cpu().double().view(len(pictures), -1, len(CLASSES))
        outputs.append(logits.mean(dim=1).sigmoid())
    check_features(torch.cat(outputs))
    return torch.cat(outputs).numpy()
