"""Commands about data."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from tests.raw_trees.own import OWN_WRITERS


class TestMeasure:
    @pytest.fixture
    def arrays(self, tmp_path) -> Path:
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60, 12, 12), np.uint8)
        path = tmp_path / "own.npz"
        np.savez(path, images=images, labels=np.arange(60) % 3)
        return path

    def test_the_same_arrays_give_the_same_numbers_in_either_file(self, run, arrays, tmp_path):
        import h5py

        with np.load(arrays) as stored, h5py.File(tmp_path / "own.h5", "w") as file:
            file.update({name: stored[name] for name in stored})
        found = [run("measure", str(path), "--json")[1] for path in (arrays, tmp_path / "own.h5")]
        assert json.loads(found[0])["label_sharpness"] == json.loads(found[1])["label_sharpness"]

    def test_images_of_one_value_are_told_of_arrays_too(self, run, arrays):
        images = np.load(arrays)["images"]
        images[3] = 7
        np.savez(arrays, images=images, labels=np.arange(60) % 2)
        assert "doubtful: images of one value, 1" in run("measure", str(arrays))[1]

    def test_arrays(self, run, arrays):
        code, out, _ = run("measure", str(arrays), "--json", "--train-sizes", "30", "60")
        measured = json.loads(out)
        assert code == 0
        assert measured["num_images"] == 60
        assert [size["train_size"] for size in measured["by_train_size"]] == [30, 60]
        assert measured["d_data"]["mle"]["num_neighbors"] == 20
        assert measured["label_sharpness"]["pixel_range"] == [0, 255]
        assert len(measured["published"]) == 11

    @pytest.mark.parametrize("side", [(), ("--image-size", "12")])
    def test_what_was_taken_is_shown(self, run, tmp_path, side):
        """Classes, what was left out and what is doubtful, without asking for it."""
        arrays = {"test_images": np.random.default_rng(0).integers(0, 256, (40, 12, 12), np.uint8)}
        arrays |= {"test_labels": np.arange(40) % 2, "patient_id": np.arange(40)}
        arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
        np.savez(tmp_path / "own.npz", **arrays)
        code, out, _ = run("measure", str(tmp_path / "own.npz"), *side)
        assert code == 0
        assert "40 images, 2 classes" in out
        assert "class 1: 20 images" in out
        assert "left out: validation split, 40" in out
        assert "doubtful: columns not used: patient_id" in out

    @pytest.mark.parametrize("kind", OWN_WRITERS)
    def test_every_kind_shows_classes_groups_size_and_conversion(self, run, tmp_path, kind):
        source = OWN_WRITERS[kind](tmp_path / "raw")
        code, out, _ = run("measure", str(source), "--num-neighbors", "3", "--image-size", "16")
        slices = 3 if kind == "nifti_csv" else 1
        groups = 5 if kind.endswith("csv") or kind == "table" else 10
        assert code == 0
        assert f"{10 * slices} images, 2 classes, {groups} groups" in out
        assert out.count(f": {5 * slices} images, 5 groups") == 2
        assert "made 16x16, 1 channel: " in out

    def test_arrays_as_they_are_show_it_too(self, run, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (40, 12, 10), np.uint8)
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2, groups=np.arange(40) // 4)
        code, out, _ = run("measure", str(tmp_path / "own.npz"))
        assert code == 0
        assert "40 images, 2 classes, 10 groups" in out
        assert "class 1: 20 images, 10 groups" in out
        assert "as they are, 12x10, uint8, not scaled" in out

    def test_a_range_that_is_asked_for_can_be_said(self, run, tmp_path):
        """A float slightly above 1: the message shows it, and its way out works."""
        images = np.random.default_rng(0).random((40, 12, 12))
        images[3, 2, 2] = 1.0000002
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(40) % 2)
        code, _, err = run("measure", str(tmp_path / "own.npz"))
        assert code == 2
        assert "1.0000002" in err
        assert "--pixel-range" in err
        given = ("--pixel-range", "0", "1", "--num-neighbors", "3")
        code, out, _ = run("measure", str(tmp_path / "own.npz"), *given)
        assert code == 0
        assert "as they are, 12x12, float64 in [" in out
        code, out, _ = run("measure", str(tmp_path / "own.npz"), *given, "--image-size", "12")
        assert code == 0
        assert "[0, 1] (pixel_range) to [0, 255], cut there" in out

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ("--labels", "y.npy"),
                "--labels is for a .npy; others hold theirs; found: own.npz",
            ),
            (("--raw", "x"), "--raw is for the name of a dataset; found: own.npz"),
            (
                ("--channels", "3"),
                "--channels is for images that are resized, by --image-size; found: own",
            ),
        ],
    )
    def test_what_would_not_be_used_is_refused(self, run, arrays, words, message):
        code, _, err = run("measure", str(arrays), *words)
        assert code == 2
        assert message in err

    def test_values_that_leave_a_range_are_counted(self, run, arrays):
        _, out, _ = run("measure", str(arrays), "--pixel-range", "0", "254")
        assert re.search(r"doubtful: values outside pixel_range, \d+", out)

    def test_labels_that_are_negative_numbers_can_be_mapped(self, run, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
        np.savez(tmp_path / "own.npz", images=images, labels=np.arange(60) % 3 - 1)
        for words in ("0=a -1=unsure 1=b", "-1=unsure 0=a 1=b", "0=a 1=b --label-map=-1=unsure"):
            more = ("--label-map", *words.split(), "--json")
            code, out, err = run("measure", str(tmp_path / "own.npz"), *more)
            assert code == 0, err
            assert json.loads(out)["label_names"] == ["a", "b", "unsure"]

    def test_a_range_that_nobody_would_apply_is_refused(self, run, tmp_path):
        source = OWN_WRITERS["folder"](tmp_path / "raw")
        code, _, err = run("measure", str(source), "--pixel-range", "0", "1")
        assert code == 2
        assert "pixel_range is for kind npz or hdf5; found: kind folder" in err

    def test_labels_of_several_words_one_a_line(self, run, tmp_path):
        images = np.random.default_rng(0).integers(0, 256, (40, 12, 12), np.uint8)
        np.save(tmp_path / "own.npy", images)
        lines = ["no tumour", "tumour"] * 20
        (tmp_path / "labels.txt").write_text("\n".join(lines) + "\n")
        arguments = ("measure", str(tmp_path / "own.npy"), "--labels", str(tmp_path / "labels.txt"))
        code, out, _ = run(*arguments)
        assert code == 0
        assert "40 images, 2 classes, 40 groups" in out
        assert "class no tumour: 20 images" in out
        lines[6] = ""  # of 40 lines one has no label: none of the others may move up
        lines[7] = "tumour  tumour"
        (tmp_path / "labels.txt").write_text("\n".join(lines))
        code, _, err = run(*arguments)
        assert code == 2
        assert "every row needs a label; found: blank in 1: row " in err

    def test_what_own_data_leave_open_can_be_said(self, run, tmp_path):
        from PIL import Image

        rng = np.random.default_rng(0)
        for number in range(40):
            path = tmp_path / "raw" / f"p{number % 2}" / f"{'ab'[number // 2 % 2]}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(path)
        code, _, err = run("measure", str(tmp_path / "raw"))
        assert code == 2
        assert "layout: class/group or layout: group/class (--layout)" in " ".join(err.split())
        code, out, _ = run("measure", str(tmp_path / "raw"), "--layout", "group/class", "--image-size", "16")
        assert code == 0
        assert "class a: 20 images, 2 groups" in out
        code, _, err = run("measure", str(tmp_path / "raw"), "--label-columns", "x")
        assert code == 2
        assert "label_columns is for kind table" in err

    def test_label_sharpness_is_that_of_all_pairs(self, run, arrays):
        with np.load(arrays) as archive:
            flat, labels = archive["images"].reshape(60, -1).astype(float), archive["labels"]
        distances = np.linalg.norm(flat[:, None] - flat[None], axis=2)
        largest = 1 / distances[labels[:, None] != labels[None]].min()
        _, out, _ = run("measure", str(arrays), "--json")
        assert json.loads(out)["label_sharpness"]["value"] == pytest.approx(largest, rel=1e-6)

    def test_the_pair_can_be_looked_at(self, run, arrays, tmp_path):
        from PIL import Image

        code, out, err = run(
            "measure", str(arrays), "--class-pair", "0", "2", "--show-pair", str(tmp_path / "pair.png")
        )
        assert code == 0
        assert "Intrinsic dimension" in out
        assert "higher than" in out
        assert "wrote" in err
        with Image.open(tmp_path / "pair.png") as image:
            assert image.size[0] > image.size[1]

    def test_a_pair_names_classes_not_places(self, run, tmp_path):
        """Labels 1, 2, 3 have the places 0, 1, 2: a pair 1 2 means the labels."""
        rng = np.random.default_rng(1)
        images, labels = rng.integers(0, 256, (90, 6, 6), np.uint8), np.arange(90) % 3 + 1
        np.savez(tmp_path / "all.npz", images=images, labels=labels)
        np.savez(tmp_path / "two.npz", images=images[labels != 3], labels=labels[labels != 3])
        _, chosen, _ = run("measure", str(tmp_path / "all.npz"), "--class-pair", "1", "2", "--json")
        _, alone, _ = run("measure", str(tmp_path / "two.npz"), "--json")
        chosen, alone = json.loads(chosen), json.loads(alone)
        assert chosen["label_sharpness"]["value"] == alone["label_sharpness"]["value"]
        assert chosen["num_images"] == 60

    def test_one_bad_file_can_be_found_and_allowed(self, run, tmp_path):
        from PIL import Image

        rng = np.random.default_rng(0)
        for index in range(60):
            folder = tmp_path / "own" / ("a" if index % 2 else "b")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / f"{index}.png")
        for name in ("broken.png", "torn.png"):
            (tmp_path / "own" / "a" / name).write_bytes(b"no image")
        code, _, err = run("measure", str(tmp_path / "own"), "--image-size", "8")
        assert code == 2
        digest = re.search(r"\b[0-9a-f]{16}\b", err)
        code, out, _ = run("locate", digest[0], "--raw", str(tmp_path / "own"))
        assert (code, out) == (0, "a/broken.png\n")
        code, out, _ = run(
            "measure", str(tmp_path / "own"), "--image-size", "8", "--max-skipped-share", "10%", "--json"
        )
        assert json.loads(out)["num_images"] == 60

    def test_features_without_labels(self, run, tmp_path):
        np.save(tmp_path / "features.npy", np.random.default_rng(0).normal(size=(80, 5)))
        code, out, _ = run("measure", str(tmp_path / "features.npy"), "--json")
        measured = json.loads(out)
        assert code == 0
        assert measured["label_sharpness"] is None
        assert 3 < measured["d_data"]["mle"]["value"] < 7

    @pytest.mark.parametrize(
        ("make", "message"),
        [
            (lambda p: np.save(p, np.array([{}], object), allow_pickle=True), "one plain numeric array"),
            (lambda p: p.write_bytes(b"no array"), "one plain numeric array"),
            (lambda p: np.save(p, np.full((30, 4, 4), np.nan)), "must be finite"),
            (lambda p: np.save(p, np.zeros((0, 4, 4))), "image"),
        ],
    )
    def test_arrays_that_cannot_be_measured(self, run, tmp_path, make, message):
        path = tmp_path / "bad.npy"
        make(path)
        code, out, err = run("measure", str(path))
        assert code == 2, err
        assert out == ""
        assert message in err

    @pytest.mark.parametrize("form", ["csv", "npz", "npy"])
    def test_labels_mean_what_the_map_says(self, run, tmp_path, form):
        from PIL import Image

        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (60, 8, 8), np.uint8)
        labels = np.array(["cat", "CAT", "dog"])[np.arange(60) % 3]
        source, more = tmp_path / f"own.{form}", ()
        if form == "csv":
            rows = [f"{number}.png,{label}" for number, label in enumerate(labels)]
            source.write_text("\n".join(("path,label", *rows)))
            for number, image in enumerate(images):
                Image.fromarray(image).save(tmp_path / f"{number}.png")
            more = ("--image-size", "8")
        elif form == "npz":
            np.savez(source, images=images, labels=labels)
        else:
            np.save(source, images)
            np.save(tmp_path / "labels.npy", labels)
            more = ("--labels", str(tmp_path / "labels.npy"))
        code, out, err = run("measure", str(source), *more, "--label-map", "CAT=cat", "--json")
        assert code == 0, err
        measured = json.loads(out)
        assert measured["label_names"] == ["cat", "dog"]
        assert measured["label_sharpness"]["num_pairs"] == 40 * 20

    @pytest.mark.parametrize(
        ("labels", "message"),
        [
            (["cat", "CAT", "dog"], "every class must be spelt one way; found: 'CAT' / 'cat'"),
            ([0.0, float("nan"), 1.0], "every row needs a label; found: blank in 20: row "),
            ([-1, 0, 1], "take those images out, or say what they mean with --label-map=-1=NAME"),
            ([[0], [1], [1]], "There must be one label per image; found: int64 (60, 1)"),
        ],
    )
    def test_labels_that_are_no_classes(self, run, tmp_path, labels, message):
        np.save(tmp_path / "own.npy", np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8))
        np.save(tmp_path / "labels.npy", np.array(labels)[np.arange(60) % 3])
        code, _, err = run("measure", str(tmp_path / "own.npy"), "--labels", str(tmp_path / "labels.npy"))
        assert code == 2
        assert message in err

    def test_a_folder_of_images(self, run, tmp_path):
        from PIL import Image

        rng = np.random.default_rng(0)
        for label in ("benign", "malignant"):
            (tmp_path / "own" / label).mkdir(parents=True)
            for index in range(30):
                Image.fromarray(rng.integers(0, 256, (20, 20), np.uint8)).save(
                    tmp_path / "own" / label / f"{index}.png"
                )
        code, out, _ = run("measure", str(tmp_path / "own"), "--image-size", "16", "--json")
        measured = json.loads(out)
        assert code == 0
        assert measured["label_names"] == ["benign", "malignant"]
        assert measured["label_sharpness"]["side"] == [16, 16]
        assert measured["label_sharpness"]["num_pairs"] == 900
        assert os.listdir(tmp_path / "root" / "prepared") == [".hash_key"]
        assert measured["preparation"]["domain"] is None  # nobody said what these images are


def test_prepare_reads_own_data_of_a_sweep_file(run, tmp_path, monkeypatch):
    from contextlib import nullcontext
    from types import SimpleNamespace

    import tasks.remote
    from orchestrator.running import cluster

    monkeypatch.setattr(cluster, "connect", lambda *_, **__: nullcontext(SimpleNamespace(local=True)))

    class Inline(tasks.remote.InlineExecutor):
        driver_node_only = False

        def __init__(self, **_):
            super().__init__()

    monkeypatch.setattr(tasks.remote, "RayExecutor", Inline)
    images = np.random.default_rng(0).integers(0, 256, (60, 8, 8), np.uint8)
    np.savez(tmp_path / "own.npz", images=images, labels=np.array(["cat", "CAT", "dog"])[np.arange(60) % 3])
    sweep = f"""
name: skin
models: [resnet18]
train_sizes: [30]
image_size: 8
test_size: 20
recipe: paper
datasets:
  - name: skin
    own: {{kind: npz, path: {tmp_path / "own.npz"}, domain: medical}}
"""
    (tmp_path / "skin.yaml").write_text(sweep)
    words = ("prepare", "skin", "--sweep", str(tmp_path / "skin.yaml"))
    code, _, err = run(*words)
    assert code == 2
    assert "every class must be spelt one way; found: 'CAT' / 'cat'" in err
    code, out, err = run(*words, "--label-map", "CAT=cat")
    assert code == 0, err
    assert "class cat: 40 images" in out
