import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.fingerprint import canonical_json, derive_seed, fingerprint, readable_id
from search_spaces.models import model_spec
from search_spaces.recipes import recipe_spec
from search_spaces.specs import (
    AttackSpec,
    NetworkSpec,
    PreparedSpec,
    RepresentationSpec,
    Spec,
    SubsetSpec,
    TrialSpec,
)

plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


PREPARED = PreparedSpec(dataset="mnist5k", image_size=28, channels=1)
RELEASED = PREPARED.model_copy(update={"data_mode": "as_released"})


def network(**changes: object) -> NetworkSpec:
    fields = {
        "model": model_spec("resnet18"),
        "subset": SubsetSpec(prepared=PREPARED, class_pair=(3, 8), test_size=100),
        "train_size": 200,
        "recipe": recipe_spec("paper", "resnet18", "mnist5k"),
    }
    return NetworkSpec.model_validate({**fields, **changes})


def trial(**changes: object) -> TrialSpec:
    return TrialSpec.model_validate({"network": network(), **changes})


@given(st.dictionaries(st.text(), plain, min_size=1, max_size=6), st.randoms())
def test_key_order_does_not_matter(value, random):
    items = random.sample(list(value.items()), len(value))
    assert fingerprint(dict(items)) == fingerprint(value)
    assert 0 <= derive_seed(value) < 2**63


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 1.0),
        (1, True),
        (0, False),
        ("1", 1),
        (None, "null"),
        ({"a": 1}, [["a", 1]]),
        (0.1, "0.1"),
    ],
)
def test_similar_values_have_different_ids(a, b):
    assert fingerprint(a) != fingerprint(b)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("nan"), r"value is nan\. Choose a finite number"),
        ({"x": [float("inf")]}, r"value\.x\[0\] is inf\. Choose a finite number"),
        (len, "of type builtin_function_or_method, which JSON cannot represent"),
        ({1: 2}, "key that is not a string"),
        ({1, 2}, "of type set, which JSON cannot represent"),
    ],
)
def test_a_value_without_a_stable_text_is_refused(value, message):
    with pytest.raises(TypeError, match=message):
        fingerprint(value)


def test_an_id_does_not_depend_on_the_hash_seed_or_process():
    code = (
        "from tests.unit.search_spaces.test_fingerprint import trial; "
        "print(trial().trial_id, trial().derived_seed)"
    )
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PATH": "", "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "12345")
    }
    assert printed == {f"{trial().trial_id} {trial().derived_seed}\n"}


@pytest.mark.parametrize(
    "changes",
    [
        {"train_size": 201},
        {"seed": 1},
        {"model": model_spec("resnet34")},
        {"recipe": recipe_spec("released", "resnet18", "mnist5k")},
        {"subset": network().subset.model_copy(update={"class_pair": (8, 3)})},
        {"subset": network().subset.model_copy(update={"split_seed": 1})},
        {"subset": network().subset.model_copy(update={"prepared": RELEASED})},
    ],
)
def test_every_choice_is_part_of_a_networks_identity(changes):
    changed = trial(network=network(**changes))
    assert changed.trial_id != trial().trial_id
    assert changed.derived_seed != trial().derived_seed


@pytest.mark.parametrize(
    ("measurements", "num_lacking"),
    [
        ({"attacks": AttackSpec(epsilons=(1.0, 2.0, 4.0, 8.0, 16.0))}, 1),
        ({"representation": RepresentationSpec(num_neighbors=10)}, 2),
        ({"representation": RepresentationSpec(estimators=("mle", "twonn", "gride"))}, 1),
    ],
)
def test_more_requested_measurements_change_no_id(measurements, num_lacking):
    extended = trial(**measurements)
    assert (extended.trial_id, extended.derived_seed) == (trial().trial_id, trial().derived_seed)
    assert len(trial().missing_for(extended)) == num_lacking


class Old(Spec):
    schema_version: int = 1
    size: int
    rate: float = 1.0


class Extended(Old):
    added: tuple[int, ...] = (1, 2)
    nested: AttackSpec = AttackSpec()


class Later(Old):
    schema_version: int = 2
    rate: float = 0.5


def test_a_new_field_at_its_default_changes_no_id_and_a_version_does():
    assert fingerprint(Extended(size=3)) == fingerprint(Old(size=3))
    assert canonical_json(Old(size=3)) == '{"schema_version":1,"size":3}'
    changed_specs = [
        Extended(size=3, added=(1, 3)),
        Extended(size=3, nested=AttackSpec(epsilons=(1.0,))),
        Later(size=3),
    ]
    assert fingerprint(Old(size=3)) not in map(fingerprint, changed_specs)


class Inner(Spec):
    value: bool | int | float = 0.5


class Outer(Spec):
    inner: Inner


def test_equal_specs_that_are_spelled_in_two_ways_keep_their_own_ids():
    equal_specs = [Outer(inner=Inner(value=value)) for value in (1, 1.0, True)]
    assert equal_specs[0] == equal_specs[1] == equal_specs[2]

    texts_and_ids = [
        (canonical_json(spec), readable_id(["x"], spec)) for spec in (*equal_specs, *equal_specs)
    ]

    texts = ['{"inner":{"value":1}}', '{"inner":{"value":1.0}}', '{"inner":{"value":true}}']
    assert [text for text, _ in texts_and_ids] == texts * 2
    assert [name for _, name in texts_and_ids] == [
        f"x-{fingerprint(json.loads(text))[:12]}" for text in texts * 2
    ]


def test_a_changed_copy_of_a_spec_has_an_id_of_its_own_and_json_keeps_it():
    first = network()
    assert (
        first.model_copy(update={"seed": 1}).network_id
        == network(seed=1).network_id
        != first.network_id
    )
    assert TrialSpec.model_validate_json(trial().model_dump_json()) == trial()


def test_readable_part_is_a_safe_file_name():
    assert readable_id(["../../x", 'a"b', "é"], 1).rpartition("-")[0] == "x-a-b"
