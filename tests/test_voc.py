"""VOC2007: labels, views, and both protocols end to end on a small folder."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from adco import AdCo
from adco.data.loader import EpochBatches, batch_loader
from adco.data.views import view_rng
from adco.encoder import read_trunk
from ops.checkpoint import with_module
from ops.distributed import World
from tests.conftest import ROOT
from tests.support.scripts import assert_refused, files_limited_to, run_main, run_script
from tests.support.voc import make_voc
from VOC_CLF.dataset import (
    CLASSES,
    IGNORED,
    VocTrainingViews,
    five_crops,
    load_voc,
    read_labels,
    training_view,
)
from VOC_CLF.linear import predict, train_epoch
from VOC_CLF.main import main
from VOC_CLF.svm import fit_svm

BUS, COW = CLASSES.index("bus"), CLASSES.index("cow")
SMALL = ["--image_size=32", "--epochs=2", "--workers=0", "--lr=0.001", "--device=cpu"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A checkpoint with a resnet10 whose BatchNorm has seen pictures."""
    torch.manual_seed(0)
    model = AdCo("resnet10", dim=8)
    with torch.no_grad():
        model.encoder_q.train()(torch.randn(16, 3, 32, 32))
    path = tmp_path_factory.mktemp("encoder") / "input.pth.tar"
    state = with_module(model.state_dict())
    torch.save({"epoch": 1, "arch": "resnet10", "state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voc")
    make_voc(folder, {"train": 4, "val": 3, "test": 3})
    return folder


class Ran:
    """What a run said and left behind."""

    def __init__(self, output: str):
        self.output = output
        self.folder = Path(output.splitlines()[-1].removeprefix("finished: "))
        self.results = json.loads((self.folder / "results.json").read_text())

    def scores(self) -> np.ndarray:
        with open(self.folder / "scores.csv", newline="") as file:
            header, *rows = csv.reader(file)
        assert tuple(header) == ("image", *CLASSES)
        return np.array([row[1:] for row in rows], float)


def run(runner, folder, data, encoder, save_path, *options) -> Ran:
    """The published command, from inside `folder`; runner: run_script or run_main."""
    paths = [f"--data={data}", f"--pretrained={encoder}", f"--save_path={save_path}"]
    done = runner("VOC_CLF/main.py", *paths, *SMALL, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return Ran(done.stdout)


@pytest.fixture(scope="module")
def linear_run(data, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("linear")
    return run(run_script, ROOT / "VOC_CLF", data, encoder, out)


@pytest.fixture(scope="module")
def svm_run(data, encoder, tmp_path_factory):
    out = tmp_path_factory.mktemp("svm")
    return run(run_main, ROOT, data, encoder, out, "--protocol=svm")


@pytest.mark.parametrize("protocol", ["linear_run", "svm_run"])
def test_the_reported_ap_is_scikit_learns_of_the_scores_written(protocol, data, request):
    ran = request.getfixturevalue(protocol)
    labels, scores = load_voc(str(data))["test"].labels, ran.scores()
    known = labels[:, BUS] != IGNORED
    assert known.sum() == len(known) - 1
    expected = average_precision_score(labels[known, BUS], scores[known, BUS])
    assert ran.results["ap"]["bus"] == pytest.approx(100 * expected)


@pytest.mark.parametrize("protocol", ["linear_run", "svm_run"])
def test_the_result_is_the_mean_over_classes_with_pictures(protocol, request):
    results = request.getfixturevalue(protocol).results
    shown = [ap for ap in results["ap"].values() if ap is not None]
    assert len(shown) == 3
    assert results["map"] == pytest.approx(np.mean(shown))
    assert results["scored_on"] == "test"


def test_the_output_names_both_means_and_the_published_number(linear_run):
    last = linear_run.output.splitlines()[-2]
    for name, key in (
        ("mAP per class", "map"),
        ("11-point", "map_11_point"),
        ("AP per image", "ap_per_image"),
    ):
        assert f"{name} {linear_run.results[key]:.2f}" in last


def test_a_run_leaves_a_plot_of_its_curves(linear_run):
    with Image.open(linear_run.folder / "precision_recall.png") as plot:
        assert plot.format == "PNG" and min(plot.size) > 500


def test_svms_tell_colours_apart(svm_run):
    assert svm_run.results["map"] > 90


def test_the_trunk_does_not_move(linear_run, encoder):
    best = torch.load(linear_run.folder / "model_best.pth.tar", weights_only=True)["state_dict"]
    for name, value in read_trunk(encoder).weights.items():
        assert torch.equal(best[name], value), name


def test_without_test_pictures_val_is_scored_and_the_output_says_so(tmp_path, encoder, capsys):
    make_voc(tmp_path, {"train": 2, "val": 2})
    options = [f"--data={tmp_path}", f"--pretrained={encoder}", f"--save_path={tmp_path}"]
    assert main([*options, *SMALL, "--epochs=1"]) == 0
    ran = Ran(capsys.readouterr().out)
    assert ran.results["scored_on"] == "val"
    assert "no ImageSets/Main/test.txt: scored on val" in ran.output


def test_labels_tell_difficult_objects_from_absent_ones(data):
    labels = load_voc(str(data))["val"].labels
    assert (labels[-1, BUS], labels[-1, COW], labels[-1].sum()) == (IGNORED, 1, 0)


def test_a_difficult_object_is_no_positive_label_in_training(data):
    train = load_voc(str(data))["train"]
    _, (labels,) = VocTrainingViews(train, 32, seed=0).__getitems__([(0, len(train) - 1)])
    assert (labels[BUS], labels[COW], labels.sum()) == (0, 1, 1)


def test_a_training_view_depends_on_its_seed_alone():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8))
    views = [
        training_view(picture, 40, view_rng(*place, 0)) for place in [(1, 2, 3)] * 2 + [(1, 3, 3)]
    ]
    assert views[0].shape == (3, 40, 40)
    assert torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_a_score_is_the_sigmoid_of_the_mean_over_five_crops(encoder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8))
    crops = five_crops(picture, 60)
    model = read_trunk(encoder).build().eval()
    model.fc = torch.nn.Linear(512, 20)
    with torch.no_grad():
        expected = model(crops).mean(dim=0).sigmoid()
    found = predict(model, [(crops[None], None)], torch.device("cpu"))
    assert crops.shape == (5, 3, 60, 60)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)


@pytest.mark.parametrize("adapt", [False, True])
def test_batchnorm_moves_only_where_it_is_let(data, encoder, adapt):
    model = read_trunk(encoder).build()
    model.fc = torch.nn.Linear(512, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    views = VocTrainingViews(load_voc(str(data))["train"], 32, seed=0)
    loader = batch_loader(views, EpochBatches(len(views), 8, World(), seed=0), workers=0)
    sgd = torch.optim.SGD(model.fc.parameters(), lr=0.01)

    train_epoch(model, loader, sgd, adapt, torch.device("cpu"))

    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    trunk = {name for name in moved if not name.startswith("fc.")}
    statistics = {
        name for name in before if name.endswith(("running_mean", "running_var", "tracked"))
    }
    assert {"fc.weight", "fc.bias"} <= moved
    assert trunk == (statistics if adapt else set())


def test_a_class_with_one_picture_takes_the_middle_cost():
    x = np.eye(6)
    positive = np.array([True] + [False] * 5)
    svm, cost = fit_svm(x, positive, seed=0)
    assert cost == 1.0
    assert svm.decision_function(x).argmax() == 0


def refusal(capsys, *options) -> str:
    """The one line on stderr of a run that ends with exit code 2."""
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, options)))
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_no_voc_folder_is_one_line_and_exit_code_2(tmp_path, encoder, capsys):
    line = refusal(capsys, f"--data={tmp_path}", f"--pretrained={encoder}")
    assert "VOCdevkit/VOC2007" in line


def test_no_annotations_folder_is_one_line_and_exit_code_2(tmp_path, encoder, capsys):
    root = make_voc(tmp_path, {"train": 1, "val": 1})
    (root / "Annotations").rename(root / "Elsewhere")
    assert "no Annotations" in refusal(capsys, f"--data={tmp_path}", f"--pretrained={encoder}")


@pytest.mark.parametrize(
    ("name", "what"), [("Annotations", "annotation"), ("JPEGImages", "picture")]
)
def test_a_missing_file_is_named_with_exit_code_2(tmp_path, encoder, capsys, name, what):
    root = make_voc(tmp_path, {"train": 1, "val": 1})
    next((root / name).glob("000002*")).unlink()
    line = refusal(capsys, f"--data={tmp_path}", f"--pretrained={encoder}")
    assert f"lacks the {what} of 000002" in line


def test_a_torn_annotation_is_named_with_exit_code_2(tmp_path, encoder, capsys):
    root = make_voc(tmp_path, {"train": 1, "val": 1})
    (root / "Annotations" / "000001.xml").write_text("<annotation><object>")
    line = refusal(capsys, f"--data={tmp_path}", f"--pretrained={encoder}")
    assert "000001.xml" in line


@pytest.mark.parametrize("workers", [0, 1])
def test_a_torn_picture_is_named_with_exit_code_2(tmp_path, encoder, capsys, workers):
    root = make_voc(tmp_path, {"train": 1, "val": 1})
    path = root / "JPEGImages" / "000001.jpg"
    path.write_bytes(path.read_bytes()[:200])
    options = [f"--data={tmp_path}", f"--pretrained={encoder}", f"--save_path={tmp_path}"]
    assert "000001.jpg" in refusal(capsys, *options, *SMALL, f"--workers={workers}")


def test_no_encoder_is_one_line_and_exit_code_2(data, capsys):
    assert "--pretrained" in refusal(capsys, f"--data={data}")


def test_a_wrong_architecture_is_one_line_and_exit_code_2(data, encoder, capsys):
    line = refusal(capsys, f"--data={data}", f"--pretrained={encoder}", "--arch=resnet50")
    assert "--arch resnet10" in line


@pytest.mark.parametrize("encoding", ["gb2312", "big5", "euc-jp", "utf-16", "utf-8-sig"])
def test_annotations_of_any_encoding_are_read(tmp_path, encoding):
    text = f'<?xml version="1.0" encoding="{encoding.removesuffix("-sig")}"?><annotation><owner>'
    text += "\u4f60" + "</owner><object><name>bus</name></object></annotation>"
    (tmp_path / "1.xml").write_bytes(text.encode(encoding))
    assert read_labels(tmp_path / "1.xml")[BUS] == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("Annotations/000001.xml", b"<?xml version='1.0' encoding='klingon'?><annotation/>"),
        ("Annotations/000001.xml", b"<?xml version='1.0' encoding='gb2312'?><a>\xff\xff</a>"),
        ("Annotations/000002.xml", b"<annotation>\xe9</annotation>"),
        ("ImageSets/Main/val.txt", b"000001\n\xe9\n"),
        ("ImageSets/Main/train.txt", None),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_reason(
    tmp_path, encoder, capsys, name, content
):
    path = make_voc(tmp_path, {"train": 1, "val": 1}) / name
    path.unlink()
    path.mkdir() if content is None else path.write_bytes(content)
    line = refusal(capsys, f"--data={tmp_path}", f"--pretrained={encoder}")
    assert str(path) in line and "cannot read" in line


def test_the_training_rotation_takes_the_nearest_pixel():
    pixels = np.full((40, 40, 3), 200, np.uint8)
    pixels[:, 20:] = 50
    for seed in range(20):
        view = training_view(Image.fromarray(pixels), 40, view_rng(seed, 0, 0, 0))
        # Resizing to the same size and turning make no new values: two, and the black outside.
        assert len(view[0].unique()) <= 3


def test_a_gpu_that_is_not_there_is_refused(data, encoder, capsys):
    options = [f"--data={data}", f"--pretrained={encoder}", "--gpu", "99"]
    assert "gpu=99" in refusal(capsys, *options)


def test_log_and_run_num_make_the_path_of_the_run_folder(data, encoder, tmp_path, capsys):
    words = [f"--data={data}", f"--pretrained={encoder}", *SMALL, "--epochs=1"]
    words += [f"--save_path={tmp_path}", "--log", "mine", "--run_num", "3"]
    assert main(words) == 0
    folder = Ran(capsys.readouterr().out).folder
    assert folder.parent == tmp_path / "mine" / "VOC2007" / "run_3"
    config = json.loads((folder / "config.json").read_text())
    found = json.loads((folder / "results.json").read_text())["data"]
    assert config["data"] == found and found["test"]["pictures"] == 10


def test_a_loss_that_is_not_finite_ends_the_run_with_70(data, encoder, tmp_path):
    words = [f"--data={data}", f"--pretrained={encoder}", *SMALL, "--lr", "1e38"]
    result = run_main("VOC_CLF/main.py", *words, cwd=tmp_path)
    assert result.returncode == 70 and "not finite" in result.stderr


@pytest.mark.parametrize("protocol", ["linear", "svm"])
def test_features_that_are_not_finite_are_refused(data, encoder, tmp_path, protocol):
    state = torch.load(encoder)
    state["state_dict"]["module.encoder_q.layer4.0.bn2.weight"].fill_(3e38)
    state["state_dict"]["module.encoder_q.layer4.0.bn2.bias"].fill_(3e38)
    torch.save(state, tmp_path / "large.pth")
    words = [f"--data={data}", "--pretrained=large.pth", *SMALL, f"--protocol={protocol}"]
    assert_refused(run_main("VOC_CLF/main.py", *words, cwd=tmp_path), "not finite")


def test_a_full_disk_loses_no_score_and_ends_with_70(data, encoder, tmp_path):
    words = [f"--data={data}", f"--pretrained={encoder}", *SMALL, "--epochs=1"]
    with files_limited_to(20_000):
        result = run_main("VOC_CLF/main.py", *words, cwd=tmp_path)
    assert result.returncode == 70
    assert "NOT SAVED" in result.stderr and " * test: mAP per class" in result.stdout
    assert list(tmp_path.rglob("results.json")) and not list(tmp_path.rglob("*.partial"))
