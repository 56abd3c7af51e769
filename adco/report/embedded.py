"""Some pictures of a run through its encoder, on the CPU: features, embeddings, scores, a map."""

from math import inf
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.manifold import TSNE
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from adco.data.datasets import Splits, hold_out, load_splits, sample_of
from adco.data.decoder import Decoding
from adco.data.list_files import listed
from adco.data.loader import CheckViews, TrainingViews, check_loader
from adco.data.pictures import Pictures
from adco.data.views import Recipe, normalised
from adco.embed import network_of
from adco.encoder import build_trunk, read_trunk
from adco.probe.knn import knn_votes
from adco.report.bank import nearest, unit
from adco.report.runs import Run
from ops import checkpoint
from ops.distributed import ALONE

TRAIN, VAL = 2000, 1000  # pictures, at most; a quarter of them where views are large
LARGE = 128  # pixels
ON_MAP, THUMB, PIXELS, GAMES = 1500, 48, 32, 512
KNN_K = 20


def pictures_of(run: Run, data: str = "") -> Splits:
    """Those that the run was given. data: where they lie now."""
    options = run.options
    how = {name: options[name] for name in Decoding._fields if name in options}
    decoding = Decoding(**{"max_megapixels": inf, **how})
    place = data or options["data"]
    place = tuple(place) if isinstance(place, list) else place
    splits = load_splits(options["dataset"], place, decoding=decoding)
    splits = listed(splits, options.get("train_list", ""))
    if splits.val is None and options.get("val_split"):
        splits = hold_out(splits, options["val_split"], options["seed"])
    return splits


class Embedded(SimpleNamespace):
    """Pictures of train, then of val (where there is none, others of train), as arrays.

    features [n, d]; embeddings [n, D] of unit length; random [n, d], features of random weights;
    pixels [n, p], or None where pictures are large; thumbs uint8 [n, T, T, 3]; labels [n] or None;
    cut: the number of those of train.  queries, keys [m, D]: of two training views of each of the first m.
    W: [K, D] adversaries of unit length, or None.  classes: their names.
    """


@torch.inference_mode()
def embed_run(run: Run, data: str = "") -> Embedded:
    """What the last checkpoint of a run makes of some of its pictures. Raises InputError."""
    options, path = run.options, str(run.folder / checkpoint.LAST)
    trunk = read_trunk(path)
    query, key = (network_of(read_trunk(path, side), "head").eval() for side in ("query", "key"))
    torch.manual_seed(options["seed"])
    random = build_trunk(trunk.arch, trunk.stem, trunk.channels).eval()
    random.fc = torch.nn.Identity()
    splits, size = pictures_of(run, data), options["image_size"]
    train, val = splits.train if splits.labelled is None else splits.labelled, splits.val
    share = 4 if size > LARGE else 1
    places = sample_of(train, 0, (TRAIN + VAL * (val is None)) // share)
    if val is None:
        cut = len(places) * 2 // 3
        parts = [(train, places[:cut]), (train, places[cut:])]
    else:
        parts = [(train, places), (val, sample_of(val, 0, VAL // share))]
    whole = not options.get("eval_crop", 1)
    found = [passed(*part, size, whole, query, random) for part in parts]
    joined = {name: np.concatenate([f[name] for f in found]) for name in found[0]}
    labelled = splits.labelled is not None
    joined["labels"] = joined["labels"] if labelled else None
    W = checkpoint.load(path)["Memory_Bank"]["W"] if options["negatives"] == "learned" else None
    sound = [parts[0][1][i] for i in found[0]["positions"][: GAMES // share]]
    games = two_views(train, sound, options, query, key)
    del joined["positions"]
    return Embedded(
        **joined, cut=len(found[0]["labels"]), classes=train.classes if labelled else [],
        W=None if W is None else unit(W.T.float().numpy()), **games,
    )  # fmt: skip


def passed(pictures: Pictures, places, size: int, whole: bool, query, random) -> dict:
    """Arrays of the pictures at these places that can be read, as in Embedded."""
    part = pictures.part(np.array(places))
    views = CheckViews(part, size, skip_broken=True, whole=whole)
    labels, views.labels = views.labels, np.arange(len(views))
    rows: dict[str, list] = {}
    for batch, positions in check_loader(views, 64, 0, ALONE):
        x = normalised(batch)
        features = query[0](x).float()
        shown = (batch if batch.shape[1] >= 3 else batch[:, :1].expand(-1, 3, -1, -1))[:, :3]
        small = F.interpolate(batch.float(), size=min(size, PIXELS), mode="area").flatten(1)
        thumbs = F.interpolate(shown.float(), size=min(size, THUMB), mode="area")
        found = {
            "features": features, "random": random(x).float(), "labels": torch.tensor(labels)[positions],
            "embeddings": F.normalize(query[1](features), dim=1), "pixels": small,
            "positions": positions, "thumbs": thumbs.round().byte().permute(0, 2, 3, 1),
        }  # fmt: skip
        for name, value in found.items():
            rows.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(values) for name, values in rows.items()}


def two_views(pictures: Pictures, places: list[int], options: dict, query, key) -> dict:
    """Queries and keys [m, D] of two training views of each picture, both encoders in eval mode."""
    switches = {f"{name}_p": 0.5 * options[name] for name in ("blur", "flip")}
    recipe = Recipe(options["image_size"], options["min_scale"], **switches)
    views = TrainingViews(pictures, [recipe, recipe], options["seed"], skip_broken=True)
    found = []
    for start in range(0, len(places), 64):
        batch, _ = views.__getitems__([(0, i) for i in places[start : start + 64]])
        found.append(
            [F.normalize(f(normalised(x))) for f, x in zip((query, key), batch, strict=True)]
        )
    queries, keys = (torch.cat(rows).float().numpy() for rows in zip(*found, strict=True))
    return {"queries": queries, "keys": keys}


def scores_of(e: Embedded, rows: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Percent of the pictures of val that kNN and logistic regression get right; kNN's answers."""
    train, val = unit(rows[: e.cut]), unit(rows[e.cut :])
    labels, wanted = e.labels[: e.cut], e.labels[e.cut :]
    cosine, place = nearest(val, train, KNN_K)
    votes = knn_votes(torch.tensor(cosine), torch.tensor(labels[place]), len(e.classes), 0.07)
    answers = votes.argmax(1).numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    right = model.fit(rows[: e.cut], labels).predict(rows[e.cut :]) == wanted
    return 100 * (answers == wanted).mean(), 100 * right.mean(), answers


def maps(e: Embedded) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray | None]:
    """The pictures on the map [n]; places [n, 2] of each, by kind; those of up to 300 adversaries
    beside the embeddings.
    """
    chosen = np.sort(np.random.default_rng(0).permutation(len(e.features))[:ON_MAP])
    rows = unit(e.features[chosen])
    found = PCA(min(50, *rows.shape)).fit_transform(rows)
    tsne = TSNE(perplexity=min(30, (len(rows) - 1) / 3), init="pca", random_state=0)
    both = PCA(2).fit(e.embeddings[chosen])
    places = {
        "t-SNE of the features": tsne.fit_transform(found),
        "PCA of the features": found[:, :2],
        "PCA of the embeddings, with adversaries": both.transform(e.embeddings[chosen]),
    }
    return chosen, places, None if e.W is None else both.transform(e.W[:300])
