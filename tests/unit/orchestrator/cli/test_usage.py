"""Users' mistakes end in one message and an exit code, and nothing is lost."""

import re
import shlex

import pytest

from orchestrator.cli.app import main

WORDS = {"PREDICT": "predict smoke --model x --d-data 9 --label-sharpness 1", "THIS_FILE": __file__}
# Command line | what is said of it.
MISTAKES = r"""
run dmo | ; found: 'dmo'; did you mean 'demo'?
plan ./absent.yaml | The sweep file must exist; found: absent.yaml
plan | Command "plan" parameter SWEEP requires an argument
plan smoke --set seeds | --set must be KEY=VALUE; found: seeds
plan smoke --set 'seed=[1]' | seed: unknown key; did you mean 'seeds'?
plan smoke --set 'seeds=[1' | --set seeds must be valid YAML
status --watch | --watch needs a sweep; found: none; e.g. isweep status paper --watch
frobnicate | Unknown command "frobnicate"; did you mean "locate"?
prepare mnist --raw absent --address 127.0.0.1:9 | The raw download of mnist must exist; found: no absent
prepare digits --montage . | Invalid value for --montage: must be a file that ends with .png, got '.'
prepare digits --montage absent/a.png | The file must be one that can be written; found: absent/a.png: No
measure digits --show-pair /proc/a.png | can be written; found: /proc/a.png: No such file or directory;
results smoke --csv /absent/a.csv | can be written; found: /absent/a.csv
results smoke --predictions /absent/a.parquet | can be written; found: /absent/a.parquet
fit smoke --figure /absent/a.svg | can be written; found: /absent/a.svg
claims smoke --markdown THIS_FILE/a.md | a.md: Not a directory; name one elsewhere
init --out /proc/x.yaml | can be written; found: /proc/x.yaml
gpu-check --device cpu --into THIS_FILE | can be written; found:
prepare mnist --label-map 7=one | --label-map is for own data; found: mnist
measure digits --label-map 7=one | --label-map is for own data that are not prepared
measure digits --label-map 7=a 7=b | --label-map must give 7 one value; found: 7=a and 7=b
fit t.csv --figure mine.yaml | Invalid value for --figure: must be a file that ends with .svg or .pdf or
predict | A prediction needs a sweep or a learning curve; name a sweep, or a file of results
predict --curve absent.csv | A learning curve must be a CSV file; found: absent.csv: [Errno 2]
predict smoke --train-size 9 --measured '' | Invalid value for --measured: must not be empty
plan –-all ./absent.yaml | Options begin with plain hyphens; found: –-all
run smoke --raw mnist | --raw must be NAME=DIR; found: mnist
run smoke --num-cpus 0 | must be at least 1, got 0
run smoke --mlflow-uri ./mlruns | The MLflow URI must be a database or server
run smoke --mlflow-uri postgresql://me:pw@h/x | Invalid value for --mlflow-uri: must hold no password, since
status smoke '--mlflow-uri=http://h/?password=pw' | export MLFLOW_TRACKING_URI=URI instead
run smoke --no-tracking --address ray://x:1 | --address must be host:port
results smoke --from-store | Sweep 'smoke' has no results yet; run it: isweep run smoke
fit smoke --from-store | has no results yet
measure digits --class-pair 3 | Command "measure" parameter --class-pair requires 2 positional arguments. On
measure digits --image-size 8 --class-pair 3 3 | class pair must name two different classes
measure digits --device cuda | --device must be a torch device of this machine
plan smoke --gpus 0 | Invalid value for --gpus: must be at least 1, got 0
plan smoke --storage foo://x | --storage must be a folder or a store that keeps
reconcile smoke --mlflow-uri foo://x | Sweep 'smoke' has no results yet
predict smoke --d-data 9 --train-size 100 | A prediction needs d_data and label_sharpness; found: no label_s
predict smoke --measured absent.json --train-size 100 | A measured record must be a readable JSON file
pln smoke | Unknown command "pln"; did you mean "plan"?
resume smoke | Unknown command: resume; isweep run SWEEP does what is left
plan a b | isweep: unrecognized arguments: b; see: isweep plan --help.
plan smoke --rot x | Unknown option: --rot; did you mean --root?
run smoke --no-quiet | Unknown option: --no-quiet; did you mean --quiet?
plan smoke -j | Unknown option: -j
plan smoke --storage '' | Invalid value for --storage: must not be empty; leave the option out to take its
plan smoke --preset x | Unknown option: --preset; did you mean --set?
plan '' | ; found: ''; known presets or sweeps of
measure https://a.org/b.zip | ; found: https://a.org/b.zip; download it, then name the folder
plan / | A sweep file must be a file; found: / is a folder
run smoke --device tpu | Invalid value "tpu" for --device. Choose from: "auto", "cpu", "gpu"; did you mea
run smoke --max-skipped-share 2 | must be between 0 and 1, got 2
run smoke --max-skipped-share nan | must be a finite number, got nan
run smoke --raw =x | --raw must be NAME=DIR; found: =x
PREDICT | needs one of --train-size and --target-loss; found: neither
PREDICT --train-size 3 --target-loss 2 | needs one of --train-size and --target-loss; found: both
PREDICT --train-size 0 | Invalid value for --train-size: must be at least 1, got 0
PREDICT --target-loss inf | Invalid value for --target-loss: must be a finite number, got inf
PREDICT --train-size 9 --domain x | Invalid value "x" for --domain. Choose from: "natural", "medical"
measure digits --sharpness-sample 1 | --sharpness-sample must be at least 2, or 0
measure digits --estimators mle mle | estimators must be names, each once
locate 0000000000000000 --raw . | The root must hold the key by which the hash was made
prepare mnist --sweep papr | Unknown preset; found: 'papr'; did you mean 'paper'
datasets mnist brats | unrecognized arguments: brats
plan smoke --storage s3:/bucket | must name a bucket or host; found: s3:/b
plan smoke --storage THIS_FILE | --storage must be a folder; found:
run smoke --address 127.0.0.1:99999 | --address must be host:port of a Ray head
results smoke --csv mine.yaml | Invalid value for --csv: must be a file that ends with .csv, got 'mine.yaml'
results smoke --parquet a.csv | must be a file that ends with .parquet, got
measure "" | must not be empty; leave the option out
PREDICT --train-size 9 --measured absent.json | --measured is for numbers that are not given; found: --d-dat
plan smoke --storage foo://me:secret@x | found: foo://…; use a path
power smoke --num-tables 20 | Power needs at least 3 datasets
compare smoke smoke | compare needs two sweeps; found: smoke twice
claims | claims needs one source; name a sweep, or ask for --published
ui | MLflow has nothing to show yet; found: no
ui --port 70000 | must be at most 65,535, got 70000
reconcile smoke | no results yet; run it: isweep run smoke --root
status smoke --trial small_mlp | --trial must name one trial, not 4; found: small_mlp: small_mlp-
status smoke --trial small_mlp-manifold_d5 | --trial must name a trial of the sweep; found: 'sm
status --trial x | --trial needs a sweep
plan smoke --set 'seeds=[1]' --set 'seeds=[2]' | --set seeds must be given one value; found: [1] and [2].
run smoke --raw mnist=/a --raw mnist=/b | --raw must give mnist one value; found: mnist=/a and mnist=/b.
plan smoke --set recipe.epoch=3 | recipe.epoch: unknown key
"""


@pytest.mark.parametrize("mistake", MISTAKES.strip().splitlines())
def test_mistakes(run, mistake):
    words, message = mistake.split(" | ")
    for short, meant in WORDS.items():
        words = words.replace(short, meant)
    found, out, err = run(*shlex.split(words))
    assert (found, out) == (2, "")
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
def test_what_is_wrong_about_data_is_told_as_it_was_typed(run, words):
    code, out, err = run(*words.split())
    assert (code, out) == (2, "")
    assert re.search(rf"(found: |got |value )[^;]*{re.escape(words.split()[-1])}", err)
    assert "Traceback" not in err


def test_a_sweep_file_that_is_named_without_its_ending_is_found(run, tmp_path, monkeypatch):
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    code, out, err = run("plan", "mine")
    assert (code, out) == (2, "")
    assert "write ./mine.yaml" in err


def test_a_cluster_that_does_not_answer_is_no_mistake_of_words(run):
    code, out, err = run("run", "smoke", "--no-tracking", "--address", "127.0.0.1:9")
    assert (code, out) == (3, "")
    assert "The Ray address must answer" in err


def test_options_stand_after_the_command(capsys):
    assert main([]) == 2
    assert "A command is required; see: isweep --help" in capsys.readouterr().err
    assert main(["--root", "x", "plan", "smoke"]) == 2
    assert "Unknown option: --root; options stand after the command" in capsys.readouterr().err


def test_the_last_of_a_repeated_option_holds(run, root):
    code, _, err = run("results", "smoke", "--from-store", "--root", "elsewhere")
    assert code == 2
    assert f"run it: isweep run smoke --root {root}; there is no root {root} yet" in err
