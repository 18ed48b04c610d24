"""Test mistakes in a sweep file that the first command reports; the tests of planning have more."""

import os

import pytest

from orchestrator.planning import paths

GOOD = """
name: mine
models: [small_cnn]
datasets: [manifold_d4]
train_sizes: [20, 40]
test_size: 20
image_size: 28
recipe: smoke
"""
PAIR = "[{{name: mnist5k, class_pairs: [{}]}}]"
YOUR_DATA = "[{name: a, own: {kind: folder, path: images, domain: natural}}]"


def good_with(old, new):
    """Return the valid sweep file with one part replaced."""
    assert old in GOOD
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mine.yaml is empty. Write a sweep file with `isweep init`"),
        ("name: m\n\tmodels: x\n", "line 2, column 1 has a tab. Replace the tab by spaces."),
        (
            "models: [small_cnn]\n",
            "- The key `name` is missing. Add this key. - The key `train_sizes` is missing.",
        ),
        (
            good_with("mine", "../x"),
            "`name` is '../x', which is not a valid name. Use at most 64 lower",
        ),
        (good_with("[20, 40]", "many"), "`train_sizes` is 'many', but should be a list. Write"),
        (
            good_with("[manifold_d4]", PAIR.format("[cat, dog]")),
            "Unknown class 'cat' of mnist5k. Known",
        ),
        (
            good_with("[manifold_d4]", PAIR.format("[3, 3]")),
            "class_pairs` lists the pair [3, 3], which contains the same class twice. Write two different classes",
        ),
        (good_with("[manifold_d4]", YOUR_DATA), "datasets.a.own.path` does not exist: "),
        (GOOD + "attacks: {methods: [fgms]}\n", "value 1 of `attacks.methods` is 'fgms'"),
    ],
)
def test_plan_refuses_a_mistake_in_a_sweep_file(run, root, tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    code, out, err = run("plan", str(path))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not err.rstrip().endswith(" .")
    assert not os.path.exists(root)


def test_plan_refuses_images_too_small_for_a_network(run, tmp_path, caplog):
    path = tmp_path / "mine.yaml"
    text = GOOD.replace("small_cnn", "vgg13").replace("size: 28", "size: 8")
    path.write_text(text, encoding="utf-8")
    code, _, err = run("plan", str(path))
    assert code == 2
    assert "Choose a larger `image_size` (VGG networks need at least 32), or another model" in err
    assert "Traceback" not in err + caplog.text


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (
            "resources: {num_cpus: 999}",
            [],
            "A trial requests `resources.num_cpus: 999`, but this machine has only",
        ),
        (
            "resources: {num_cpus: 2}",
            ["--num-cpus", "1"],
            "`resources.num_cpus: 2`, but this machine has only 1. Lower `resources.num_cpus`, or",
        ),
        (
            "resources: {memory_bytes: 99999999999999}",
            [],
            "resources.memory_bytes: 99,999,999,999,999`, but this machine has only",
        ),
        ("", ["--device", "gpu"], "resources.num_gpus: 1`, but this machine has only 0. Lower"),
        ("", ["--raw", "mnist=x"], "Unknown dataset 'mnist' of this sweep"),
        (
            "",
            ["--raw", "manifold_d4=/absent"],
            "The raw download /absent of manifold_d4 was not found",
        ),
    ],
)
def test_an_impossible_run_is_refused_before_mlflow_and_ray_start(
    run, root, tmp_path, more, options, message
):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + more, encoding="utf-8")
    code, out, err = run("run", str(path), *options)
    assert (code, out) == (2, "")
    assert message in err
    assert "Running on" not in err
    assert not os.path.exists(f"{root}/mlflow.db")
    assert "No sweep has run in the root" in run("status")[1]


def test_plan_reports_missing_resources_of_this_machine_and_continues(run, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD + "resources: {num_cpus: 999}", encoding="utf-8")
    code, out, _ = run("plan", str(path))
    assert code == 0
    assert "This machine cannot run the sweep: " in out
    assert "resources.num_cpus: 999" in out


def test_all_missing_raw_downloads_are_named_before_the_first_is_read(run, root):
    code, _, err = run("run", "paper")
    assert code == 2
    assert "8 problems found" in err
    for name in ("imagenet", "brats", "dbc", "oai", "chexpert", "mura", "rsna", "prostate"):
        assert f"isweep reads {name} from its raw download, but --raw is not set" in err
    assert not os.path.exists(f"{root}/prepared/mnist")


def test_three_sources_of_the_study_need_no_raw_download():
    from search_spaces.datasets import DATASETS
    from tasks.sources import needs_download

    downloads = ("mnist", "cifar10", "svhn", "imagenet", "brats", "dbc", "oai", "chexpert")
    study = [DATASETS[name] for name in (*downloads, "mura", "rsna", "prostate")]
    fetched = {row.source for row in study if not needs_download(row)}
    assert fetched == {"idx", "cifar10", "svhn"}  # torchvision fetches these


def test_plan_reports_that_a_run_could_not_write_to_the_root(run, tmp_path, monkeypatch):
    root = tmp_path / "missing" / "root"
    monkeypatch.setattr(paths.os, "access", lambda path, mode: mode & paths.os.W_OK == 0)
    code, out, _ = run("plan", "smoke", at=str(root))
    assert code == 0
    expected = f"`isweep run` would fail: {root} cannot be used as the root: {tmp_path} cannot be"
    assert expected in " ".join(out.split())
    assert not root.exists()
