"""The command line: names, defaults, spellings, refusals."""

import ast
import json
import subprocess
import sys
import time
from dataclasses import asdict, fields

import pytest

from adco.export import ExportConfig
from adco.pretrain.options import PRESETS, PretrainConfig
from adco.probe.options import PROBE_PRESETS, ProbeConfig
from ops.arguments import parse
from ops.errors import InputError
from tests.conftest import ROOT
from VOC_CLF.options import VocConfig

PUBLISHED = [
    "--sym=0 --lr=0.03 --memory_lr=3 --moco_t=0.12 --mem_t=0.02 --data=./datasets/imagenet2012 "
    "--dist_url=tcp://localhost:10001",
    "--sym=1 --lr=0.04 --memory_lr=3 --moco_t=0.14 --mem_t=0.03 --cluster 8192 "
    "--data=./datasets/imagenet2012 --dist_url=tcp://localhost:10001",
    "--multi_crop=1 --lr=0.03 --memory_lr=3 --moco_t=0.12 --mem_t=0.02 "
    "--data=./datasets/imagenet2012 --dist_url=tcp://localhost:10001",
]


@pytest.mark.parametrize("command", PUBLISHED)
def test_published_commands_parse(command):
    config = parse(PretrainConfig, command.split(), PRESETS)
    assert config.data == "./datasets/imagenet2012" and config.arch == "resnet50"


def test_defaults_are_those_of_the_published_run():
    config = parse(PretrainConfig, [], PRESETS)
    expected = dict(
        data="data", log_path="train_log", save_path=".", arch="resnet50", workers=32, epochs=200,
        start_epoch=0, batch_size=256, lr=0.03, lr_final=0.0006, schedule=(120, 160), momentum=0.9,
        weight_decay=1e-4, print_freq=10, resume="", world_size=1, rank=0,
        ngpu=8, master_addr="127.0.0.1", master_port=1234, dist_backend="nccl", moco_dim=128,
        moco_m=0.999, moco_t=0.12, mlp=1, cos=1, dataset="ImageNet", cluster=65536, memory_lr=3.0,
        mem_t=0.02, mem_wd=1e-4, ad_init=1, sym=0, multi_crop=0, multiprocessing_distributed=1,
        size_crops=(224, 192, 160, 128, 96), nmb_crops=(1, 1, 1, 1, 1), nproc=1, device="auto",
        min_scale_crops=(0.2, 0.172, 0.143, 0.114, 0.086),
        max_scale_crops=(1.0, 0.86, 0.715, 0.571, 0.429),
    )  # fmt: skip
    values = asdict(config)
    assert {name: values[name] for name in expected} == expected


def test_both_spellings_and_short_names_are_understood():
    words = (
        "-a resnet18 -b 64 -j 2 -p 5 --moco-t 0.2 --wd 0.1 --learning-rate 0.5 --dist-url env://"
    )
    config = parse(PretrainConfig, [*words.split(), "pictures"], PRESETS)
    assert (config.arch, config.batch_size, config.workers, config.print_freq) == (
        "resnet18", 64, 2, 5,
    )  # fmt: skip
    assert (config.moco_t, config.weight_decay, config.lr) == (0.2, 0.1, 0.5)
    assert (config.dist_url, config.data) == ("env://", "pictures")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("-e DIR", dict(evaluate=1)),
        ("-e 1 DIR", dict(evaluate=1)),
        ("--schedule 9 DIR --data other", dict(schedule=(9,))),
        ("--schedule 12 16 DIR", dict(schedule=(12, 16))),
        ("--lr_sweep 1 2e-1 DIR --epochs 3", dict(lr_sweep=(1.0, 0.2), epochs=3)),
        ("--lr-sweep 1 --knn-k 5 6 DIR -b 4", dict(knn_k=(5, 6), lr_sweep=(1.0,), batch_size=4)),
        ("DIR --lr_sweep 3 .5e1", dict(lr_sweep=(3.0, 5.0))),
        ("--knn-t 0.1 DIR", dict(knn_t=0.1, knn_k=(10, 20, 100, 200))),
    ],
)
def test_a_list_of_numbers_ends_where_the_folder_stands(words, expected):
    config = parse(ProbeConfig, [*words.split(), "--pretrained", "x"], PROBE_PRESETS)
    assert config.data == "DIR"
    assert {name: getattr(config, name) for name in expected} == expected


def test_two_folders_are_one_too_many(capsys):
    with pytest.raises(SystemExit) as stop:
        parse(ProbeConfig, ["A", "--schedule", "3", "B", "--pretrained", "x"], PROBE_PRESETS)
    assert stop.value.code == 2 and "unrecognized" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--data A ~/B --lr 1", "A ~/B --lr 1", "--lr 1 A ~/B"])
def test_pretraining_takes_several_folders_and_one_is_no_list(words, monkeypatch):
    monkeypatch.setenv("HOME", "/home")
    assert parse(PretrainConfig, words.split()).data == ("A", "/home/B")
    assert parse(PretrainConfig, ["--data", "A", "--schedule", "3"]).data == "A"
    assert parse(PretrainConfig, ["--schedule", "3", "9", "A"]).data == "A"


def test_the_home_folder_is_meant_in_every_script(monkeypatch, tmp_path):
    home = str(tmp_path)
    monkeypatch.setenv("HOME", home)
    for kind, words in (
        (PretrainConfig, "--save_path=~/a --data ~"),
        (ProbeConfig, "--save_path ~/a --pretrained ~/b -e ~"),
        (VocConfig, "--save_path ~/a --pretrained=~/b ~"),
    ):
        config = parse(kind, words.split())
        assert (config.save_path, config.data) == (f"{home}/a", home)
    assert parse(ExportConfig, ["~/b", "~/c"]).out == f"{home}/c"


def test_an_option_that_is_given_wins_over_the_data_sets_default():
    preset = parse(PretrainConfig, ["--dataset", "digits"], PRESETS)
    given = parse(PretrainConfig, ["--dataset", "digits", "--arch", "resnet18"], PRESETS)
    assert (preset.arch, given.arch) == ("resnet10", "resnet18")
    assert given.image_size == preset.image_size == 28


@pytest.mark.parametrize(
    "words",
    [
        "--cluster 0", "--moco_t 0", "--mem_t -1", "--moco_t nan", "--lr 0", "--batch_size 0",
        "--epochs 0", "--moco_m 1", "--momentum 1", "--start_epoch 200", "--dist_url localhost:1",
        "--rank 1", "--rank 2 --nodes_num 2", "--min_scale 0", "--knn_freq -1",
        "--knn_k 0", "--knn_t 0",
        "--multi_crop 1 --nmb_crops 1", "--multi_crop 1 --max_scale_crops 2 2 2 2 2",
        "--multi_crop 1 --size_crops 0 1 1 1 1", "--accum_steps 0",
        "--accum_steps 3", "-b 8 --accum_steps 8",
    ],
)  # fmt: skip
def test_impossible_values_are_refused_by_name(words):
    with pytest.raises(InputError, match=words.split()[-2].lstrip("-").split("_scale")[0][:4]):
        parse(PretrainConfig, words.split(), PRESETS)


@pytest.mark.parametrize(
    "words",
    ["--dataset mnist", "--arch vgg", "--sym 2", "--lr fast", "--x", "--amp fp8", "--tf32 2",
     "--compile maybe", "--channels_last 2", "--two\nlines"],
)  # fmt: skip
def test_unknown_words_end_with_code_2_and_one_sentence(words, capsys):
    with pytest.raises(SystemExit) as stop:
        parse(PretrainConfig, words.split(" "), PRESETS)
    assert stop.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_every_option_is_read_somewhere():
    read = set()
    for path in [*ROOT.rglob("adco/**/*.py"), *ROOT.glob("ops/*.py"), ROOT / "main_adco.py"]:
        tree = ast.parse(path.read_text())
        read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    dead = {f.name for f in fields(PretrainConfig)} - read
    assert not dead, f"no code reads {sorted(dead)}"


def test_help_and_a_bad_flag_do_not_import_torch():
    code = (
        "import sys, main_adco\n"
        "try: main_adco.main([sys.argv[1]])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    for word in ("--help", "--no-such-flag"):
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code, word], cwd=ROOT, check=True, timeout=60)
        assert time.perf_counter() - began < 10


def test_crops_follow_the_size_of_the_full_views_and_are_never_off_in_silence():
    words = ["--dataset", "cifar10", "--multi_crop", "1"]
    assert parse(PretrainConfig, words, PRESETS).size_crops == (32, 27, 23, 18, 14)
    assert parse(PretrainConfig, words[:2], PRESETS).size_crops == (224, 192, 160, 128, 96)
    for given in (["64", "32", "16", "9", "9"], ["32"] * 5):
        with pytest.raises(InputError, match="with image_size=32: expected no crop larger"):
            parse(PretrainConfig, [*words, "--sym", "1", "--size_crops", *given], PRESETS)


def config_file(folder, kind=PretrainConfig, words=(), presets=PRESETS, **changed) -> str:
    """A config.json as a run of these options leaves it, or with other values in it."""
    path = folder / "config.json"
    config = asdict(parse(kind, list(words), presets)) | changed
    path.write_text(json.dumps({"config": config, "commit": None}))
    return str(path)


DIGITS = ["--dataset", "digits", "--schedule", "3", "5", "--save_path", "there", "--lr", "1e-3"]


def test_a_runs_config_gives_the_same_options_again(tmp_path):
    path = config_file(tmp_path, words=DIGITS)
    assert parse(PretrainConfig, ["--config", path], PRESETS) == parse(
        PretrainConfig, DIGITS, PRESETS
    )
    probe = ["--dataset", "digits", "--pretrained", "x", "--lr_sweep", "1", "2"]
    path = config_file(tmp_path, ProbeConfig, probe, PROBE_PRESETS)
    assert parse(ProbeConfig, [f"--config={path}"], PROBE_PRESETS) == parse(
        ProbeConfig, probe, PROBE_PRESETS
    )


def test_given_options_win_over_the_file_and_the_file_over_presets(tmp_path):
    path = config_file(tmp_path, words=DIGITS)
    given = ["--config", path, "--lr", "7", "--dataset", "cifar10", "elsewhere"]
    config = parse(PretrainConfig, given, PRESETS)
    assert (config.lr, config.dataset, config.data) == (7.0, "cifar10", "elsewhere")
    assert (config.arch, config.epochs, config.schedule) == ("resnet10", 20, (3, 5))
    # A short file: what it does not say comes with its data set.
    (tmp_path / "short.json").write_text('{"config": {"dataset": "digits", "epochs": 3}}')
    config = parse(PretrainConfig, ["--config", str(tmp_path / "short.json")], PRESETS)
    assert (config.epochs, config.arch, config.image_size) == (3, "resnet10", 28)


def test_what_follows_from_an_option_that_is_given_is_not_taken_from_the_file(tmp_path):
    path = config_file(tmp_path, words=["--dataset", "digits"], global_batch_size=128)
    words = ["--config", path, "--batch_size", "64", "--image_size", "224", "--multi_crop", "1"]
    config = parse(PretrainConfig, words, PRESETS)
    assert config.global_batch_size is None and config.size_crops == (224, 192, 160, 128, 96)
    assert parse(PretrainConfig, words[:2], PRESETS).global_batch_size == 128


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "config.json of a run; No such file"),
        ("{", "expected the config.json of a run"),
        ('{"lr": 1}', "expected the config.json of a run"),
        ('{"config": 3}', "expected the config.json of a run"),
        ('{"config": {"learning": 1, "lr": 2}}', "no option here: learning"),
        ('{"config": {"epoch": 1}}', "no option here: epoch; did you mean epochs?"),
        ('{"config": {"lr": "fast"}}', "config.json: argument --lr"),
        ('{"config": {"dataset": "mnist"}}', "config.json: argument --dataset"),
        ('{"config": {"sym": true}}', "config.json: argument --sym"),
        ('{"config": {"lr": -1}}', "lr=-1.0: expected a number"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_sentence(tmp_path, capsys, content, words):
    path = tmp_path / "config.json"
    if content:
        path.write_text(content)
    with pytest.raises((InputError, SystemExit)) as stop:
        parse(PretrainConfig, ["--config", str(path)], PRESETS)
    message = capsys.readouterr().err or str(stop.value)
    assert words in message and len(message.splitlines()) == 1
    assert getattr(stop.value, "code", 2) == 2


@pytest.mark.parametrize(
    ("wrong", "right"),
    [("--bach_size", "--batch_size"), ("--epoch=3", "--epochs"), ("--lrr", "--lr"),
     ("--mem-tt", "--mem-t"), ("--zzzzzz", "")],
)  # fmt: skip
def test_a_wrong_option_is_told_with_the_right_one(wrong, right, capsys):
    with pytest.raises(SystemExit):
        parse(PretrainConfig, [wrong], PRESETS)
    assert (f"did you mean {right}?" in capsys.readouterr().err) == bool(right)


@pytest.mark.parametrize(
    ("kind", "presets"), [(PretrainConfig, PRESETS), (ProbeConfig, PROBE_PRESETS), (VocConfig, {})]
)
def test_help_shows_ten_options_and_help_all_shows_all_of_them_in_groups(kind, presets, capsys):
    shown = {}
    for words in (["--help"], ["-h", "all"]):
        with pytest.raises(SystemExit) as stop:
            parse(kind, words, presets)
        assert stop.value.code == 0
        text = capsys.readouterr().out
        shown[words[-1]] = {f.name for f in fields(kind) if f"  --{f.name}" in text}
        assert text.index("what most people need:") < text.index("  --data")
    assert shown["--help"] == set(kind.FIRST) and len(kind.FIRST) == 10
    assert shown["all"] == {f.name for f in fields(kind)}
    assert "devices and processes:" in text


def test_help_of_a_small_command_shows_everything(capsys):
    with pytest.raises(SystemExit):
        parse(ExportConfig, ["--help"])
    text = capsys.readouterr().out
    assert all(word in text for word in ("--to", "--encoder", "--arch", "CHECKPOINT"))
    assert "--config" not in text
