import os
import re
from importlib.metadata import EntryPoint

import pytest

from orchestrator.planning.sweep_file import load_sweep, parse_sweep
from search_spaces.errors import ConfigError
from tasks import sources

GOOD = """
name: mine
models: [small_cnn]
datasets: [mnist5k]
train_sizes: [20, 40]
test_size: 20
image_size: 28
recipe: smoke
"""


def parse(text: str):
    return parse_sweep(text, origin="mine.yaml")


def test_a_sweep_file_is_read(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("\ufeff" + GOOD, encoding="utf-8")
    assert load_sweep(str(path)).train_sizes == (20, 40)


def test_all_mistakes_are_reported_at_once():
    text = GOOD.replace("small_cnn", "resnet19").replace("[20, 40]", "[20, x]") + "epoch: 3\n"
    with pytest.raises(ConfigError) as caught:
        parse(text)
    message = str(caught.value)
    assert "3 problems found" in message
    assert "epoch: unknown key" in message
    assert re.search(r"train_sizes\.1: .*'x'", message)
    assert "'resnet19'; did you mean 'resnet18'?" in message


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mine", "Mine!", r"name: must be lower case letters, digits, - and _, at most 64, .*'Mine!'"),
        ("[mnist5k]", "[mnist5]", r"Unknown dataset; found: 'mnist5'; did you mean 'mnist5k'"),
        ("smoke", "smok", r"Unknown recipe; found: 'smok'; did you mean 'smoke'"),
        ("[20, 40]", "[]", r"train_sizes: must not be empty"),
        ("[20, 40]", "[20, 20]", r"train_sizes names 20 more than once"),
        ("size: 20", "size: 1.5", r"test_size: input should be a valid integer.*1\.5"),
        ("size: 20", "size: '20'", r"test_size: input should be a valid integer.*'20'"),
        ("size: 20", "size: true", r"test_size: input should be a valid integer.*True"),
        ("size: 20", "size: 12:30", r"test_size: input should be a valid integer.*'12:30'"),
        ("size: 20", "size: 2024-01-01", r"column 12: '2024-01-01'; put text in quotes"),
        ("test_size: 20", "seeds: [-1]", r"test_size: this key is required"),
        ("test_size: 20", "tset_size: 20", r"tset_size: unknown key; did you mean 'test_size'\?"),
        ("name: mine", "name: mine\nname: other", r'line 3, column 1: key "name" stands twice'),
        ("mine", "&a mine", r"must hold plain.*line 2, column 7: an anchor or alias; write it out"),
        (
            "mine",
            "!!python/object/apply:os.system [ls]",
            r"line 2, column 7: the tag tag:yaml.org,2002:python",
        ),
        ("name: mine", "name: mine\n5: 6", r"5: unknown key"),
        ("[mnist5k]", "[mnist5k, mnist5k]", r"datasets names a dataset more than once"),
        ("size: 28", "size: 1e400", r"image_size"),
    ],
)
def test_mistakes_name_the_key_the_value_and_the_rule(old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse(GOOD.replace(old, new, 1))


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            "name: mnist5k, own: {kind: folder, path: x, domain: medical}",
            r"a name of its own; found: 'mnist5k'",
        ),
        (
            "name: mine, own: {kind: csv, path: x, domain: medical, modalty: x}",
            r"^datasets\.0\.own\.modalty: unknown key; did you mean 'modality'\? known keys: kind, path",
        ),
        (
            "name: mnist5k, class_pair: [[0, 1]]",
            r"^datasets\.0\.class_pair: unknown key; did you mean 'class_pairs'\? known keys: name, class",
        ),
        (
            "name: mine, own: {kind: foldr, path: x, domain: medical}",
            r"Unknown kind; found: 'foldr'; did you mean 'folder'\? known kinds: folder, hdf5, npz, table",
        ),
        ("name: mine, own: {kind: csv, path: x}", r"^datasets\.0\.own\.domain: this key is required"),
        (
            "name: mine, own: {kind: csv, path: x, domain: null}",
            r"own data of a sweep need a domain, natural or",
        ),
        (
            "name: mnist5k, class_pairs: [[3, 3]]",
            r"^datasets\.0\.class_pairs\.0: a class pair needs two different classes, got \[3, 3\]",
        ),
        (
            "name: mnist5k, class_pairs: [[3, 8], [3, 8]]",
            r"^datasets\.0: class_pairs names \[3, 8\] more than once",
        ),
        ("name: mnist5k, class_pairs: [[3]]", r"pairs\.0\.1: this value is required"),
    ],
)
def test_mistakes_of_a_dataset(dataset, message):
    with pytest.raises(ConfigError, match=message):
        parse(GOOD.replace("[mnist5k]", f"[{{{dataset}}}]"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "resources: {cpus: 1}",
            r"resources\.cpus: unknown key; did you mean 'num_cpus'\? known keys: num_cpus",
        ),
        (
            "resources: {num_gpus: 0.00001}",
            r"num_gpus: must be 0, or 0\.0001 of a GPU or more; found: 1e-05",
        ),
        ("resources: {num_cpus: 0.00001}", r"num_cpus: .*greater than or equal to 0\.0001; found: 1e-05"),
        (
            "resources: {num_gpus: 1.5}",
            r"num_gpus: must be a fraction of one GPU or a whole number, e\.g\. 0\.25",
        ),
        ("attacks: {models: 1}", r"attacks\.models: unknown key; .*known keys: methods, epsilons\."),
        ("attacks: {epsilons: [0]}", r"attacks\.epsilons\.0: .*greater than 0"),
        ("attacks: {epsilons: [1.0, 1.0]}", r"attacks.epsilons: names 1\.0 more than once"),
        ("attacks: {methods: [fgsm, fgsm]}", r"attacks.methods: names fgsm more than once"),
        ("estimators: []", r"estimators: must not be empty"),
        ("estimators: [mle, mle]", r"estimators: names mle more than once"),
        ("estimators: [mlee]", r"Unknown estimator; found: 'mlee'; did you mean 'mle'"),
        (f"seeds: [{2**63}]", r"seeds\.0: .*less than 9223372036854775808"),
        ("calibrate: no", r"calibrate: .*valid boolean; found: 'no'"),
        ("calibrate: on", r"calibrate: .*valid boolean; found: 'on'"),
        ("<<: {calibrate: true}", r"'<<'; put text in quotes"),
        (
            "learning_rate: 0.1",
            r"^learning_rate: this key belongs into recipe; write e.g. recipe: {from: demo",
        ),
        ("name: x", r'line 9, column 1: key "name" stands twice'),
        ("description: !!binary aGVsbG8=", r"line 9, column 14: the tag tag:yaml.org,2002:binary"),
        ("faults: !!set {a, b}", r"line 9, column 9: the tag tag:yaml.org,2002:set"),
        ("calibrate: !!bool maybe", r"the tag tag:yaml.org,2002:bool"),
        ("split_seed: !!timestamp 2024-01-01", r"the tag tag:yaml.org,2002:timestamp"),
        ("description: 2024-01-01", r"line 9, column 14: '2024-01-01'; put text in quotes"),
        ("description: =", r"line 9, column 14: '='; put text in quotes"),
        ("description: \0", r"unacceptable character #x0000"),
        ("description: \a", r"unacceptable character #x0007"),
        ('description: "\\ud800"', r"must be Unicode text; found: '\\ud800'"),
    ],
)
def test_mistakes_of_one_more_line(line, message):
    with pytest.raises(ConfigError, match=message):
        parse(f"{GOOD}{line}\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must not be empty"),
        ("- a\n- b", "must be a mapping of keys to values; found: list"),
        ("a: [", "must be valid YAML"),
        (
            "a: &a [x]\n" + "".join(f"b{i}: [*a, *a]\n" for i in range(40)),
            r"line 1, column 4: an anchor or alias",
        ),
        (GOOD + "seeds: [" + "1, " * 300_000 + "]", r"more than 20,000 values; split it"),
        (GOOD + "seeds: [" + "1" * 900_000 + "]", r"must be valid YAML; found: Exceeds the limit"),
        (GOOD.replace("small_cnn", ", ".join(f"x{i}" for i in range(9_000))), r"'x19'(?s:.)*and 1 more"),
        (GOOD.replace("20, 40", "x, " * 9_000), r"train_sizes\.19: (?s:.)*and 8,980 more like these"),
        ("[" * 900_000, r"line 1, column 21: more than 20 levels of nesting"),
        ("a: 'x" + "b " * 400_000, r"while scanning a quoted scalar, found unexpected end"),
        (GOOD.replace("name: mine", 'name: "a\\0b"'), r"name: must be lower case letters.*'a\\x00b'"),
        ("%YAML 1.1\n---\n" + GOOD + "calibrate: no", r"line 2, column 1: a %YAML line; take it out"),
        (GOOD + "---\n" + GOOD, r"line 9, column 1: .*another document"),
        ("? [a]\n: 1\n", r"must hold plain values only; found: keys must be str"),
        ("{{a: 1}: 2}", r"unhashable key"),
        (
            GOOD.replace("20, 40", "9" * 30),
            r"train_sizes\.0: .*less than or equal to 1000000000",
        ),
        (
            GOOD.replace("smoke", "/etc/passwd"),
            r"/etc/passwd must be a mapping; found: str; write e.g. recipe: \{from",
        ),
    ],
    ids=range(17),
)
def test_a_hostile_file_is_one_message(text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        parse(text)
    assert len(str(caught.value)) < 10_000


def test_words_stay_text_and_scientific_numbers_are_numbers():
    for text in ("no", "12:30", "'2024-01-01'"):
        assert parse(GOOD + f"description: {text}\n").description == text.strip("'")
    assert parse(GOOD + "attacks: {epsilons: [5e-1]}\n").attacks.epsilons == (0.5,)


def test_a_sweep_file_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(ConfigError, match=r"must be a file; found: .*pipe\.yaml is no regular file"):
        load_sweep(str(tmp_path / "pipe.yaml"))
    with pytest.raises(ConfigError, match=r"must be a file; found: .* is a folder"):
        load_sweep(f"{tmp_path}/")


def test_a_home_folder_that_does_not_exist(tmp_path):
    own = "[{name: mine, own: {kind: folder, path: ~nobody-of-this-name/x, domain: medical}}]"
    (tmp_path / "mine.yaml").write_text(GOOD.replace("[mnist5k]", own), encoding="utf-8")
    with pytest.raises(ConfigError, match="must start with a home folder that exists; found: ~nobody-of"):
        load_sweep(str(tmp_path / "mine.yaml"))


def test_a_bad_dataset_makes_no_second_mistake():
    with pytest.raises(ConfigError, match=r"^datasets\.0\.nam: unknown key; did you mean 'name'") as caught:
        parse(GOOD.replace("[mnist5k]", "[{name: mnist5k, nam: x}]"))
    assert "must not be empty" not in str(caught.value)


def test_kinds_of_other_packages_are_known(monkeypatch):
    point = EntryPoint("theirs", "elsewhere:Theirs", "isweep.sources")
    monkeypatch.setattr(sources, "entry_points", lambda group: [point])
    own = "[{name: mine, own: {kind: theirs, path: x, domain: medical}}]"
    assert parse(GOOD.replace("[mnist5k]", own)).datasets[0].own.kind == "theirs"


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(ConfigError, match=r"must exist; found: .*absent.yaml; presets are: .*demo"):
        load_sweep(str(tmp_path / "absent.yaml"))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"must be readable UTF-8 .*; save it as UTF-8"):
        load_sweep(str(tmp_path / "binary.yaml"))
    (tmp_path / "big.yaml").write_bytes(b"#" * 1_000_001)
    with pytest.raises(ConfigError, match="at most 1,000,000 bytes"):
        load_sweep(str(tmp_path / "big.yaml"))


def test_unknown_preset():
    with pytest.raises(ConfigError, match="Unknown preset; found: 'dmo'; did you mean 'demo'"):
        load_sweep("dmo")


@pytest.mark.parametrize(("path", "found"), [("images", "{folder}/images"), ("/data/x", "/data/x")])
def test_paths_of_own_data_start_at_the_sweep_file(tmp_path, path, found):
    own = f"[{{name: own, own: {{kind: folder, path: {path}, domain: medical}}}}]"
    file = tmp_path / "mine.yaml"
    file.write_text(GOOD.replace("[mnist5k]", own), encoding="utf-8")
    assert load_sweep(str(file)).datasets[0].own.path == found.format(folder=tmp_path)
