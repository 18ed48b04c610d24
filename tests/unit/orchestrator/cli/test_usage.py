"""Users' mistakes end in one message and an exit code, and nothing is lost."""

import pytest

from orchestrator.cli import main

PREDICT = ("predict", "smoke", "--model", "x", "--d-data", "9", "--label-sharpness", "1")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["run", "dmo"], 2, "; found: 'dmo'; did you mean 'demo'?"),
        (["plan", "./absent.yaml"], 2, "The sweep file must exist; found: absent.yaml"),
        (["plan"], 2, "the following arguments are required: SWEEP"),
        (["plan", "smoke", "--set", "seeds"], 2, "--set must be KEY=VALUE; found: seeds"),
        (["plan", "smoke", "--set", "seed=[1]"], 2, "seed: unknown key; did you mean 'seeds'?"),
        (["plan", "smoke", "--set", "seeds=[1"], 2, "--set seeds must be valid YAML"),
        (["status", "smoke", "--interval", "0"], 2, "argument --interval: must be at least 1"),
        (["status", "--watch"], 2, "--watch needs a sweep; found: none; e.g. isweep status paper --watch"),
        (["frobnicate"], 2, "invalid choice: 'frobnicate'"),
        (["datasets", "mnst"], 2, "Unknown dataset; found: 'mnst'; did you mean 'mnist'?"),
        (["prepare", "mnst"], 2, "Unknown dataset; found: 'mnst'"),
        (
            ["prepare", "mnist", "--raw", "absent", "--address", "127.0.0.1:9"],
            2,
            "The raw download of mnist must exist; found: no absent",  # known before Ray is asked
        ),
        (
            ["prepare", "digits", "--montage", "."],
            2,
            "--montage must be a file that can be written; found: .;",
        ),
        (["prepare", "digits", "--montage", "absent/a.png"], 2, "written; found: absent/a.png; e.g. montage"),
        (["prepare", "mnist", "--label-map", "7=one"], 2, "--label-map is for own data; found: mnist"),
        (
            ["measure", "digits", "--label-map", "7=one"],
            2,
            "--label-map is for own data that are not prepared",
        ),
        (["measure", "digits", "--label-map", "7"], 2, "--label-map takes WRITTEN=CLASS; found: '7'"),
        (
            ["measure", "digits", "--label-map", "7=a", "7=b"],
            2,
            "must give a label one class; found: 7=a and",
        ),
        (["run", "smoke", "--raw", "mnist"], 2, "--raw must be NAME=DIR; found: mnist"),
        (["run", "smoke", "--num-cpus", "0"], 2, "must be at least 1, got 0"),
        (["run", "smoke", "--mlflow-uri", "./mlruns"], 2, "The MLflow URI must be a database or server"),
        (["run", "smoke", "--mlflow-uri", "foo://x"], 2, "The MLflow URI must be a database or server"),
        (
            ["run", "smoke", "--mlflow-uri", "foo://me@host:1/x"],
            2,
            "The MLflow URI must be a database or server",
        ),
        (
            ["run", "smoke", "--mlflow-uri", "postgresql://me:pw@h/x"],
            2,
            "argument --mlflow-uri: must hold no pass",
        ),
        (
            ["status", "smoke", "--mlflow-uri=http://h/?password=pw"],
            2,
            "export MLFLOW_TRACKING_URI=URI instead",
        ),
        (["run", "smoke", "--no-tracking", "--address", "127.0.0.1:9"], 3, "The Ray address must answer"),
        (["run", "smoke", "--no-tracking", "--address", "ray://x:1"], 2, "--address must be host:port"),
        (
            ["results", "smoke", "--from-store"],
            2,
            "Sweep 'smoke' has no results yet; run it: isweep run smoke",
        ),
        (["fit", "smoke", "--from-store"], 2, "has no results yet"),
        (["report", "smoke", "--from-store"], 2, "has no results yet"),
        (
            ["measure", "absent"],
            2,
            "The source must be a folder, a file or the name of a dataset; found: absent",
        ),
        (["measure", "digits", "--class-pair", "3"], 2, "argument --class-pair: expected 2 arguments"),
        (
            ["measure", "digits", "--class-pair", "3", "3"],
            2,
            "class pair must name two different classes",
        ),
        (["measure", "digits", "--class-pair", "3", "x"], 2, "found: 3 x; classes: 0, 1, 2, 3"),
        (["measure", "digits", "--image-size", "2"], 2, "must be from 4 to 1024 pixels, got 2"),
        (["measure", "digits", "--seed", "-1"], 2, "must be at least 0"),
        (["measure", "digits", "--num-cpus", "abc"], 2, "must be a whole number, got 'abc'"),
        (["measure", "digits", "--device", "foo"], 2, "--device must be a torch device of this machine"),
        (["measure", "digits", "--device", "cuda"], 2, "--device must be a torch device of this machine"),
        (["run", "smoke", "--no-tracking", "--raw", "nosuch=/tmp"], 2, "Unknown dataset of this sweep"),
        (["plan", "smoke", "--gpus", "0"], 2, "argument --gpus: must be from 1 to 100,000, got 0"),
        (["plan", "smoke", "--gpus", "1.5"], 2, "argument --gpus: must be a whole number, got '1.5'"),
        (["plan", "smoke", "--gpus", "1000000000000"], 2, "--gpus: must be from 1 to 100,000, got 1"),
        (["plan", "smoke", "--storage", "foo://x"], 2, "--storage must be a folder or a store that keeps"),
        (["reconcile", "smoke", "--mlflow-uri", "foo://x"], 2, "Sweep 'smoke' has no results yet"),
        (
            ["predict", "smoke", "--d-data", "9", "--train-size", "100"],
            2,
            "A prediction needs d_data and label_sharpness; found: no label_sharpness; give the numbers",
        ),
        (
            ["predict", "smoke", "--measured", "absent.json", "--train-size", "100"],
            2,
            "A measured record must be a readable JSON file",
        ),
        (
            ["frobnicate", "--help"],
            2,
            "did you mean 'locate'? commands: init, presets",
        ),
        (["pln", "smoke"], 2, "did you mean 'plan'? commands: init"),
        (["plan", "a", "b"], 2, "isweep: unrecognized arguments: b; see: isweep plan --help."),
        (["plan", "smoke", "--rot", "x"], 2, "unrecognized arguments: --rot (did you mean --root?)"),
        (["run", "smoke", "--nope"], 2, "unrecognized arguments: --nope; see: isweep run --help"),
        (["status", "--nope"], 2, "unrecognized arguments: --nope; see: isweep status --help"),
        (["run", "smoke", "--no-quiet"], 2, "unrecognized arguments: --no-quiet (did you mean --quiet?)"),
        (["plan", "smoke", "-j"], 2, "unrecognized arguments: -j;"),
        (["plan", "smoke", "--storage"], 2, "argument --storage: expected one argument"),
        (["plan", "smoke", "--storage", ""], 2, "argument --storage: must not be empty; leave the option"),
        (["run", "smoke", "--mlflow-uri", " "], 2, "argument --mlflow-uri: must not be empty; leave the"),
        (["run", "smoke", "--address", ""], 2, "argument --address: must not be empty; leave the option"),
        (["plan", "smoke", "--preset", "x"], 2, "unrecognized arguments: --preset"),
        (["plan", ""], 2, "; found: ''; known presets or sweeps of "),
        (["plan", "mine.yml"], 2, "The sweep file must exist; found: mine.yml; presets are: demo"),
        (["plan", "/"], 2, "A sweep file must be a file; found: / is a folder"),
        (["run"], 2, "the following arguments are required: SWEEP; see: isweep run --help"),
        (
            ["run", "smoke", "--device", "tpu"],
            2,
            "--device: invalid choice: 'tpu' (choose from auto, cpu, gpu)",
        ),
        (["run", "smoke", "--num-cpus", "1.5"], 2, "argument --num-cpus: must be a whole number, got '1.5'"),
        (["run", "smoke", "--num-cpus", "-1"], 2, "argument --num-cpus: must be at least 1, got -1"),
        (["run", "smoke", "--max-skipped-share", "2"], 2, "must be between 0 and 1, got 2"),
        (["run", "smoke", "--max-skipped-share", "200%"], 2, "must be between 0 and 1, got 2"),
        (["run", "smoke", "--max-skipped-share", "nan"], 2, "must be a finite number, got nan"),
        (["run", "smoke", "--max-skipped-share", "x"], 2, "must be a number, got 'x'"),
        (["run", "smoke", "--raw"], 2, "argument --raw: expected"),
        (["run", "smoke", "--raw", "=x"], 2, "--raw must be NAME=DIR; found: =x"),
        (
            ["predict", "smoke", "--train-size", "100"],
            2,
            "found: no d_data and no label_sharpness; give the numbers, a measurement",
        ),
        ([*PREDICT], 2, "one of the arguments --train-size --target-loss is required"),
        (
            [*PREDICT, "--train-size", "3", "--target-loss", "2"],
            2,
            "argument --target-loss: not allowed with argument --train-size",
        ),
        ([*PREDICT, "--train-size", "0"], 2, "argument --train-size: must be at least 1, got 0"),
        ([*PREDICT, "--target-loss", "inf"], 2, "argument --target-loss: must be a finite number"),
        (
            [*PREDICT, "--train-size", "9", "--domain", "x"],
            2,
            "invalid choice: 'x' (choose from natural, med",
        ),
        ([*PREDICT, "--train-size", "9"], 2, "Sweep 'smoke' has no results yet"),
        (["measure"], 2, "the following arguments are required: SOURCE"),
        (["measure", "digits", "--class-pair", "3", "4", "5"], 2, "unrecognized arguments: 5"),
        (["measure", "digits", "--train-sizes"], 2, "argument --train-sizes: expected at least one argument"),
        (
            ["measure", "digits", "--train-sizes", "9", "a"],
            2,
            "--train-sizes: must be a whole number, got 'a'",
        ),
        (["measure", "digits", "--train-sizes", "0"], 2, "argument --train-sizes: must be at least 1, got 0"),
        (["measure", "digits", "--pixel-range", "0"], 2, "argument --pixel-range: expected 2 arguments"),
        (["measure", "digits", "--pixel-range", "0", "x"], 2, "--pixel-range: must be a number, got 'x'"),
        (["measure", "digits", "--channels", "2"], 2, "--channels: invalid choice: '2' (choose from 1, 3)"),
        (["measure", "digits", "--dtype", "float16"], 2, "invalid choice: 'float16' (choose from float32"),
        (["measure", "digits", "--seed", str(2**63)], 2, "--seed: must be at least 0 and below 2^63"),
        (["measure", "digits", "--seed", "1e3"], 2, "argument --seed: must be a whole number, got '1e3'"),
        (["measure", "digits", "--num-neighbors", "2"], 2, "--num-neighbors: must be at least 3, got 2"),
        (["measure", "digits", "--sharpness-sample", "1"], 2, "--sharpness-sample must be at least 2, or 0"),
        (["measure", "digits", "--image-size", "1025"], 2, "must be from 4 to 1024 pixels, got 1025"),
        (
            ["measure", "digits", "--estimators", "mlee"],
            2,
            "Unknown estimator; found: 'mlee'; did you mean 'mle'",
        ),
        (["measure", "digits", "--estimators", "mle", "mle"], 2, "estimators must name each once"),
        (["measure", "digits", "--estimators"], 2, "argument --estimators: expected at least one argument"),
        (["locate", "abc"], 2, "the following arguments are required: --raw"),
        (
            ["locate", "abc", "--raw", "absent"],
            2,
            "--raw must be the folder or file that was read; found: absent",
        ),
        (["locate", "0" * 16, "--raw", "."], 2, "The root must hold the key by which the hash was made"),
        (["prepare", "mnist", "--sweep", "papr"], 2, "Unknown preset; found: 'papr'; did you mean 'paper'"),
        (["datasets", "mnist", "brats"], 2, "unrecognized arguments: brats"),
        (["doctor", "x"], 2, "unrecognized arguments: x"),
        (["results", "smoke", "--csv"], 2, "argument --csv: expected one argument"),
        (["plan", "smoke", "--storage", "s3:/bucket"], 2, "must name a bucket or host; found: s3:/b"),
        (["plan", "smoke", "--storage", __file__], 2, "--storage must be a folder; found: "),
        (["run", "smoke", "--address", "127.0.0.1:99999"], 2, "--address must be host:port of a Ray head"),
        (
            ["results", "smoke", "--csv", "a", "--parquet", "./a"],
            2,
            "--csv and --parquet must name two files; found: a for both",
        ),
        (
            [*PREDICT, "--train-size", "9", "--measured", "absent.json"],
            2,
            "--measured is for numbers that are not given; found: --d-data and --label-sharpness beside",
        ),
        (["plan", "smoke", "--storage", "foo://me:secret@x"], 2, "found: foo://…; use a path"),
    ],
)
def test_mistakes(run, arguments, code, message):
    found, out, err = run(*arguments)
    assert (found, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert "\u2500" not in err, "a box of the library that parses"
    assert "secret" not in err


def test_no_words_are_a_mistake_too(capsys):
    assert main([]) == 2
    assert "the following arguments are required: COMMAND; see: isweep --help" in capsys.readouterr().err


def test_options_stand_after_the_command(capsys):
    assert main(["--root", "x", "plan", "smoke"]) == 2
    assert "unrecognized arguments: --root; options stand after the command" in capsys.readouterr().err


def test_the_last_of_a_repeated_option_holds(run, root):
    code, _, err = run("results", "smoke", "--from-store", "--root", "elsewhere")
    assert code == 2
    assert f"run it: isweep run smoke --root {root}; there is no root {root} yet" in err
