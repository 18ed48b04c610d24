"""Test that a mistake of a user ends in one message and an exit code, and loses nothing."""

import shlex

import pytest

from orchestrator.cli.app import main

WORDS = {"PREDICT": "predict smoke --model x --d-data 9 --label-sharpness 1", "THIS_FILE": __file__}
# Command line | part of its message.
MISTAKES = r"""
run dmo | does not exist. Did you mean 'demo'? `isweep presets` lists the presets
plan ./absent.yaml | The sweep file absent.yaml does not exist. Correct the path, or use a preset: demo,
plan | `isweep plan` needs SWEEP, which is missing. See `isweep plan --help`
plan smoke --gpus | The option --gpus has no value. See `isweep plan --help`
measure digits --image-size 8 --image-size 16 | The option --image-size is given more than once. Give the option only once
plan smoke --set seeds | `--set seeds` has no value. Write a key of the sweep file and its value
plan smoke --set 'seed=[1]' | `seed` is not a known key. Did you mean 'seeds'?
plan smoke --set 'seeds=[1' | --set seeds, line 1, column 1 has a bracket that is not closed
status --watch | --watch needs the name of a sweep. Type the name before the option, for example `isweep status demo --watch`
frobnicate | Unknown command "frobnicate". Did you mean "locate"?
prepare mnist --raw absent --address 127.0.0.1:9 | The raw download absent of mnist was not found
prepare digits --montage . | --montage is '.', but the name of the file must end with .png
prepare digits --montage absent/a.png | absent/a.png cannot be written: the folder absent does not exist. Choose a file in a folder in which
measure digits --show-pair /proc/a.png | /proc/a.png cannot be written: no file can be created in the folder /proc.
results smoke --csv /absent/a.csv | /absent/a.csv cannot be written
results smoke --predictions /absent/a.parquet | /absent/a.parquet cannot be written
fit smoke --figure /absent/a.svg | /absent/a.svg cannot be written
claims smoke --markdown THIS_FILE/a.md | a.md cannot be written: Not a directory. Choose a file in
init --out /proc/x.yaml | /proc/x.yaml cannot be written
gpu-check --device cpu --into THIS_FILE | cannot be written
prepare mnist --label-map 7=one | mnist is a known dataset with fixed classes, so --label-map cannot be used
measure digits --label-map 7=one | --label-map cannot be used with digits, because the classes and pixel values
measure digits --label-map 7=a 7=b | 7 has two values in --label-map: 7=a and 7=b
fit t.csv --figure mine.yaml | --figure is 'mine.yaml', but the name of the file must end with .svg or .pdf or
predict | The command line contains neither a sweep nor --curve. Give a sweep, for example
predict --curve xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.csv | cannot be read as a CSV file: File name too long
fit xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx.csv --response a --on b --groups c | cannot be read: File name too long. Give a path
predict --curve absent.csv | absent.csv cannot be read as a CSV file: No such file
predict --curve mine.yaml | mine.yaml is a sweep file, not a CSV file of results. Leave out --curve
predict smoke --train-size 9 --measured '' | --measured is empty
plan –-all ./absent.yaml | –-all begins with a long dash instead of a hyphen
run smoke --raw mnist | --raw mnist does not have the form NAME=DIR
run smoke --num-cpus 0 | --num-cpus is 0, but must be at least 1
run smoke --mlflow-uri ./mlruns | The MLflow URI ./mlruns is neither a database nor a server
run smoke --mlflow-uri postgresql://me:pw@h/x | --mlflow-uri contains a password, but every user
status smoke '--mlflow-uri=http://h/?password=pw' | variable MLFLOW_TRACKING_URI instead
run smoke --no-tracking --address ray://x:1 | `--address ray://x:1` is not the host:port of the head node of a Ray cluster
results smoke --from-store | Sweep 'smoke' has no results yet
fit smoke --from-store | has no results yet
results smoke --from-store --where model | --where model does not have the form COLUMN=VALUE
measure digits --class-pair 3 | --class-pair needs 2 values, but has 1. See
measure digits --image-size 8 --class-pair 3 3 | The class pair 3 3 contains the same class twice. Choose two
measure digits --device cuda | Choose another device, for example with `--device cpu`
plan smoke --set recipe.epochs=0 | `recipe.epochs` is 0, but must be at least 1
plan smoke --gpus 0 | --gpus is 0, but must be at least 1
plan smoke --storage foo://x | isweep does not support the kind of storage in `--storage foo://…`
reconcile smoke --mlflow-uri foo://x | Sweep 'smoke' has no results yet
predict smoke --d-data 9 --train-size 100 | The prediction needs label_sharpness of the new dataset
predict smoke --measured absent.json --train-size 100 | The record absent.json cannot be read: No such file
pln smoke | Unknown command "pln". Did you mean "plan"?
predict mine ./my-images | Write images of a new dataset as `--measured IMAGES`. Write a file
resume smoke | There is no command resume. To continue a sweep, type `isweep run SWEEP`
plan a b | `isweep plan` does not accept b. If a path contains spaces, put the path in quotes. See `isweep plan --help`.
plan smoke --set seeds=0 | `seeds` is 0, but should be a list. Write `[0]`.
plan smoke --set seeds=3 | `seeds` is 3, but should be a list. For 3 seeds, write `[0, 1, 2]`. For the one seed 3, write `[3]`.
plan smoke --set seeds=42 | `seeds` is 42, but should be a list. Write `[42]`.
predict smoke --target-acc 0.9 | Unknown option: --target-acc. Did you mean --target-accuracy? See
predict smoke --target-accuracy 95 | The target accuracy is 95, but it must be above 0 and below 1
predict smoke --target-accuracy 900% | The target accuracy is 9, but it must be above 0 and below 1
predict --curve missing.csv --target-accuracy 90% | missing.csv cannot be read as a CSV file
predict smoke --target-accuracy 1 | The target accuracy is 1, but it must be above 0 and below 1
measure digits --device gpu | torch has no device gpu. Did you mean `--device cuda`?
plan smoke --set train_sizes=[-220] | value 1 of `train_sizes` is -220, but must be at least 2
plan smoke --set seeds=[0,0] | preset smoke with changed values of seeds: `seeds` lists 0 more than once
init ./mine.yaml | mine.yaml is a sweep file, but `isweep init` needs images. Give a folder of images
plan smoke --rot x | Unknown option: --rot. Did you mean --root?
run smoke --no-quiet | Unknown option: --no-quiet. Did you mean --quiet?
plan smoke -j | Unknown option: -j
plan smoke --storage '' | --storage is empty. Give a value, or remove the option
plan smoke --preset x | Unknown option: --preset. Did you mean --set?
plan '' | '' is not a preset, and the root
measure https://a.org/b.zip | https://a.org/b.zip is a URL, but only local files can be measured
plan / | / is a folder, not a sweep file. Give the path of a sweep file. If the folder contains your images, write a
run smoke --device tpu | Invalid value "tpu" for --device. Choose from: "auto", "cpu", "gpu". Did you mean
run smoke --max-skipped-share 2 | --max-skipped-share is 2, but must be between 0 and 1. Write 2% for 2 percent
run smoke --max-skipped-share nan | --max-skipped-share is nan, which is not a finite number
run smoke --raw =x | --raw =x does not have the form NAME=DIR
PREDICT | The prediction for a new dataset needs a train size or a target loss. Add, for example, `--train-size
PREDICT --train-size 3 --target-loss 2 | --train-size and --target-loss cannot be used together
PREDICT --train-size 0 | --train-size is 0, but must be at least 1
PREDICT --target-loss inf | --target-loss is inf, which is not a finite number
PREDICT --train-size 9 --domain x | Invalid value "x" for --domain. Choose from: "natural", "medical"
measure digits --sharpness-sample 1 | --sharpness-sample is 1, but label sharpness compares pairs of images
measure digits --estimators mle mle | The setting estimators is ('mle', 'mle'), which is not valid. Choose a list
locate 0000000000000000 --raw . | does not exist, but isweep needs the key to find the file that belongs to a hash
prepare mnist --sweep papr | Unknown preset 'papr'. Did you mean 'paper'
datasets mnist brats | `isweep datasets` does not accept brats
plan smoke --storage s3:/bucket | `--storage s3:/bucket` has no bucket or host. Write, for example, s3
plan smoke --storage THIS_FILE | is a file, but isweep stores results in a folder. Choose a folder
run smoke --address 127.0.0.1:99999 | `--address 127.0.0.1:99999` is not the host:port of the head node of a Ray cluster
results smoke --csv mine.yaml | --csv is 'mine.yaml', but the name of the file must end with .csv
results smoke --parquet a.csv | the name of the file must end with .parquet
measure "" | is empty. Give a value
PREDICT --train-size 9 --measured absent.json | --d-data, --label-sharpness and --measured absent.json cannot be used
plan smoke --storage foo://me:secret@x | isweep does not support the kind of storage in `--storage foo://…`
power smoke --num-tables 20 | but a power calculation needs at least 3
compare smoke smoke | The sweep smoke cannot be compared with itself
claims | `isweep claims` needs a sweep or --published, but you gave neither
ui | MLflow has no runs, because the database
ui --port 70000 | --port is 70000, but must be at most 65,535
reconcile smoke | no results yet
status smoke --trial small_mlp | --trial small_mlp is the beginning or end of 4 trial ids: small_mlp-
status smoke --trial small_mlp-manifold_d5 | No trial id of the sweep begins or ends with 'small_mlp-manifold_d5'
status --trial x | --trial needs the name of a sweep. Type the name before the option, for example `isweep status demo --trial x`
plan smoke --set 'seeds=[1]' --set 'seeds=[2]' | `--set seeds` has two values: [1] and [2]. Use
run smoke --raw mnist=/a --raw mnist=/b | mnist has two values in --raw: mnist=/a and mnist=/b.
plan smoke --set recipe.epoch=3 | `recipe.epoch` is not a known key. Did you mean 'epochs'?
"""


@pytest.mark.parametrize("mistake", MISTAKES.strip().splitlines())
def test_a_mistake_has_one_message_and_exit_code_2(run, mistake):
    words, message = mistake.split(" | ")
    for short, replacement in WORDS.items():
        words = words.replace(short, replacement)
    code, out, err = run(*shlex.split(words))
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert "\u2500" not in err, "a box of the library that parses"
    assert "secret" not in err


# Command lines about data whose last word is wrong.
DATA = """
datasets mnst
prepare mnst
measure digits --label-map 7
measure absent
measure digits --raw absent
measure digits --raw .
prepare digits --raw .
measure digits --image-size 8 --class-pair 3 x
measure digits --image-size 2
measure digits --train-sizes 9,20
measure digits --seed -1
measure digits --num-cpus abc
measure digits --device foo
measure digits --train-sizes 9 a
measure digits --train-sizes 0
measure digits --pixel-range 0 x
measure digits --channels 2
measure digits --dtype float16
measure digits --seed 9223372036854775808
measure digits --seed 1e3
measure digits --num-neighbors 2
measure digits --image-size 1025
measure digits --estimators mlee
locate abc --raw absent
locate abc --raw :cat:
"""


@pytest.mark.parametrize("words", DATA.strip().splitlines())
def test_a_wrong_word_about_data_is_in_the_message_as_it_was_typed(run, words):
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert words.split()[-1] in err
    assert "Traceback" not in err


@pytest.mark.parametrize("command", ["plan", "predict"])
def test_a_table_in_place_of_a_sweep_gets_the_commands_for_tables(run, tmp_path, command):
    table = tmp_path / "t.csv"
    table.write_text("train_size,auc\n50,0.7\n", encoding="utf-8")
    code, _, err = run(command, str(table))
    assert code == 2
    assert f"{table} is a table, not a sweep file" in err
    assert f"use `isweep predict --curve {table}`" in err


def test_a_sweep_file_named_without_its_ending_gets_a_hint(run, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = run("plan", "mine")
    assert (code, out) == (2, "")
    assert "'mine' is not a preset" in err
    assert "root does not exist. To use the file mine.yaml, give its path: ./mine.yaml" in err


def test_a_cluster_that_does_not_answer_has_exit_code_3(run):
    code, out, err = run("run", "smoke", "--no-tracking", "--address", "127.0.0.1:9")
    assert (code, out) == (3, "")
    assert "No Ray cluster answers at 127.0.0.1:9" in err


def test_options_before_the_command_are_refused(capsys):
    assert main([]) == 2
    message = capsys.readouterr().err
    assert "There is no command after `isweep`. List the commands with `isweep --help`" in message
    assert main(["--root", "x", "plan", "smoke"]) == 2
    message = capsys.readouterr().err
    assert "The option --root is before the command. Write the option after the command" in message


def test_results_below_a_missing_root_are_refused_with_the_command_that_makes_them(run, root):
    code, _, err = run("results", "smoke", "--from-store")
    assert code == 2
    assert (
        f"and the root {root} does not exist. Run the sweep with `isweep run smoke --root {root}`"
        in err
    )


def test_an_unknown_sweep_below_a_missing_root_is_explained_by_the_root(run, root):
    code, _, err = run("results", "mine", "--from-store")
    assert code == 2
    assert f"'mine' is not a preset, and the root {root} does not exist" in err
