"""What a run looks at while it goes on: the score of the frozen trunk, with labels or without, and
how the adversaries and the embeddings of some pictures lie.
"""

from collections.abc import Callable, Iterator
from math import ceil

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from adco.data.datasets import MOST_HELD_OUT, sample_of
from adco.data.loader import share_of
from adco.data.pictures import Pictures
from adco.pretrain.game import Game
from adco.probe.data import scoring_loader
from adco.probe.features import Features, effective_rank, extract_features
from adco.probe.knn import knn_accuracies
from ops.distributed import ALONE, gather_uneven_rows

LOOKED_AT = 1024  # pictures, always the same; and four times as many columns, evenly spread
TWIN = 0.95  # cosine of two columns that do the work of one
DEAD = 0.01  # of a column's fair share of the attention
# Of each kind of score: its name in a record, its title, its unit.
SCORES = {"knn": ("accuracy", "kNN accuracy", " %"), "rank": ("rank", "effective rank", "")}


def score_trunk(game: Game, awaited: Callable[[Iterator, int], Iterator]) -> float | None:
    """Of the query encoder, in the way that the game's pictures allow: kNN accuracy in percent, or
    the effective rank; None where neither is taken.

    awaited: hands on the batches; called with as many in every process.
    """
    config, world, splits = game.config, game.world, game.splits

    if game.monitor == "knn":
        train, val = (features(game, x, awaited) for x in (splits.labelled, splits.val))
        num_classes = len(splits.labelled.classes)
        score = knn_accuracies([train], val, num_classes, [config.knn_k], config.knn_t, world)
        return score[0].acc1
    if game.monitor == "rank":
        chosen = sample_of(splits.val, config.seed, MOST_HELD_OUT)
        sample = splits.val.part(np.sort(chosen))
        return effective_rank(features(game, sample, awaited, unit=False).rows, world)
    return None


def features(
    game: Game, pictures: Pictures, awaited: Callable[[Iterator, int], Iterator], unit: bool = True
) -> Features:
    """Those of this process's share of the pictures; unit: their directions alone."""
    config, world = game.config, game.world
    loader = scoring_loader(pictures, config, world, config.bad_images == "skip")
    # Other processes may have one batch more.
    longest = ceil(ceil(len(pictures) / world.size) / config.images_per_process(world.size))
    batches, number = awaited(iter(loader), longest), len(share_of(pictures, world))
    return extract_features(game.model.encoder_q, batches, number, unit=unit)


class Look:
    """How the adversaries and the embeddings of some pictures lie, and how far they have turned
    since the last look. state: of the last look of an interrupted run.

    Every process computes all of it, from columns of all of them.
    """

    def __init__(self, game: Game, state: dict | None = None):
        self.game = game
        state = state or {}
        # Rows are in the order of the processes.
        as_many = state.get("processes") == game.world.size
        self.before: dict[str, Tensor] = state["before"] if as_many else {}
        self.step: int = state.get("step", 0)
        game.plays = state.get("plays", game.plays)  # an epoch may have ended with the last step
        if "attention" in state:
            game.bank.attention.copy_(game.bank.own(state["attention"]))
        pictures = game.splits.labelled or game.splits.train
        self.pictures = pictures.part(np.sort(sample_of(pictures, game.config.seed, LOOKED_AT)))
        self.has_labels = game.splits.labelled is not None

    def state(self) -> dict:
        """For a checkpoint. For all processes to call."""
        world = self.game.world
        attention = gather_uneven_rows(self.game.bank.attention, world)
        about = {"step": self.step, "processes": world.size, "plays": self.game.plays}
        return {"before": self.before, "attention": attention, **about}

    def take(self, awaited: Callable[[Iterator, int], Iterator], step: int) -> dict[str, dict]:
        """Records by their kind: embedding and, where adversaries play, adversaries."""
        game, bank, world = self.game, self.game.bank, self.game.world
        own = features(game, self.pictures, awaited, unit=False)
        rows, labels = (gather_uneven_rows(x, world) for x in own)  # [n, d], [n]
        encoder = game.model.encoder_q
        was_training = encoder.training
        with torch.no_grad():
            pictures = F.normalize(encoder.eval().fc(rows), dim=1)  # [n, D]
        encoder.train(was_training)

        # Columns from all over the bank.
        stride = max(1, bank.num_negatives // (4 * LOOKED_AT))
        chosen = bank.W[:, -bank.first_column() % stride :: stride]
        columns = gather_uneven_rows(F.normalize(chosen, dim=0).T, world)  # [S, D]
        attention = gather_uneven_rows(bank.attention, world).clone()  # [K]
        bank.attention.zero_()

        turned = self.turned(dict(pictures=pictures, columns=columns), step)
        records = {"embedding": {"rank": effective_rank(rows, ALONE), **turned["pictures"]}}
        if game.plays:
            labels = labels if self.has_labels else None
            how = lie(columns, pictures, labels, game.config.mem_t) | spread(attention)
            how["nearest"] = quantiles((columns @ pictures.T).amax(dim=1))
            how["attention"] = quantiles(attention / attention.mean().clamp_min(1e-30))
            records["adversaries"] = how | turned["columns"]
        return records

    def turned(self, now: dict[str, Tensor], step: int) -> dict[str, dict]:
        """Of each the mean angle in radians to the last look, in all and a step."""
        angles = {}
        for name, rows in now.items():
            before, angles[name] = self.before.get(name), {}
            if before is not None and before.shape == rows.shape and step > self.step:
                cosines = (rows * before.to(rows.device)).sum(dim=1).clamp(-1, 1)
                angle = cosines.acos().mean().item()
                angles[name] = {"turned": angle, "turned_a_step": angle / (step - self.step)}
        self.before, self.step = now, step
        return angles


def lie(columns: Tensor, pictures: Tensor, labels: Tensor | None, tau: float) -> dict[str, float]:
    """How adversaries [S, D] lie to each other and to pictures [n, D], all unit rows.

    cosine: mean between two columns.  twins: share of columns with another one above TWIN.
    same_class: share of what a picture's softmax at tau gives to columns whose nearest picture is
    of its own class; same_class_keys: to other pictures of it, where these are the negatives.
    """
    S, found = len(columns), {}
    between = (columns @ columns.T).fill_diagonal_(0)
    found["cosine"] = (between.sum() / max(1, S * (S - 1))).item()
    found["twins"] = (between.amax(dim=1) > TWIN).float().mean().item()
    if labels is not None:
        to_columns, to_pictures = pictures @ columns.T, pictures @ pictures.T
        owners = labels[to_columns.argmax(dim=0)]  # [S]
        to_pictures.fill_diagonal_(-torch.inf)
        kinds = {"same_class": (to_columns, owners), "same_class_keys": (to_pictures, labels)}
        for name, (cosines, classes) in kinds.items():
            p = (cosines / tau).softmax(dim=1)
            found[name] = (p * (labels[:, None] == classes)).sum(dim=1).mean().item()
    return found


def spread(attention: Tensor) -> dict[str, float]:
    """How attention [K] is spread. dead: share of columns that got next to none. effective: the
    number of columns, all alike, whose entropy is the same.
    """
    attention = attention.cpu().double()  # MPS has no float64
    p = attention / attention.sum().clamp_min(1e-30)
    dead = (p < DEAD / len(p)).double().mean().item()
    return {"dead": dead, "effective": torch.special.entr(p).sum().exp().item()}


def quantiles(values: Tensor) -> list[float]:
    """33 of them, from the smallest to the largest: the shape of a histogram in a line of a log."""
    return [round(x, 4) for x in np.quantile(values.cpu(), np.linspace(0, 1, 33)).tolist()]
