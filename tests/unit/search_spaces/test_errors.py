import inspect
import pickle

import pytest

from search_spaces import errors
from search_spaces.errors import (
    ConfigError,
    DataError,
    SetupError,
    SweepError,
    TooFewImagesError,
    missing_path_hint,
    plural,
    raise_all,
    unknown_name,
)

FAMILY = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, SweepError)]


@pytest.mark.parametrize("error", FAMILY)
def test_errors_survive_pickling(error):
    again = pickle.loads(pickle.dumps(error("a problem", "Do this")))
    assert type(again) is error
    assert str(again) == "a problem. Do this."


def test_a_notebook_shows_only_the_message_and_a_shell_gets_the_exit_code():
    assert ConfigError("a problem")._render_traceback_() == ["ConfigError: a problem."]
    assert str(ConfigError("a problem", hint="Did you mean c?")) == "a problem. Did you mean c?"
    assert str(ConfigError("a problem", hint="Number them 0, 1, ...")).endswith("0, 1, ...")
    assert (ConfigError.exit_code, DataError.exit_code, SetupError.exit_code) == (2, 2, 3)


def test_all_problems_are_raised_at_once_and_a_single_one_as_it_is():
    with pytest.raises(ConfigError, match=r"(?s)2 problems found:.*first.*second"):
        raise_all([ConfigError("first"), DataError("second")])
    with pytest.raises(ConfigError, match=r"^only\.$"):
        raise_all([ConfigError("only")])
    raise_all([])


def test_a_problem_that_two_checks_report_is_printed_once():
    with pytest.raises(ConfigError, match=r"^labels are damaged\.$"):
        raise_all([ConfigError("labels are damaged"), ConfigError("labels are damaged")])


@pytest.mark.parametrize(
    ("noun", "of", "name", "known_names", "message"),
    [
        (
            "size",
            "",
            "240",
            [240, 60],
            "Unknown size '240'. Did you mean 240? Known sizes: 60, 240.",
        ),
        (
            "model",
            "",
            "a13",
            ["a12", "b"],
            "Unknown model 'a13'. Did you mean 'a12'? Known models: a12, b.",
        ),
        (
            "class",
            "mnist",
            "x",
            ["b"],
            "Unknown class 'x' of mnist. Known classes of mnist: b.",
        ),
    ],
)
def test_unknown_names_show_the_nearest_and_all_numbers_in_their_order(
    noun, of, name, known_names, message
):
    assert str(unknown_name(noun, name, known_names, of=of)) == message


def test_only_similar_names_are_suggested_for_a_missing_path(tmp_path):
    for name in ("mine.yaml", "skin-lesions.yaml"):
        (tmp_path / name).touch()
    assert missing_path_hint(tmp_path / "mien.yaml") == f"Did you mean {tmp_path / 'mine.yaml'}?"
    assert missing_path_hint(tmp_path / "mine.yml") == f"Did you mean {tmp_path / 'mine.yaml'}?"
    # The ending .yaml makes most of this name equal to mine.yaml.
    assert missing_path_hint(tmp_path / "abce.yaml") == f"The folder {tmp_path} has no abce.yaml."


def test_too_few_images_cross_processes_with_the_size_that_is_possible():
    error = pickle.loads(pickle.dumps(TooFewImagesError("Too few images", "Add some", 80)))
    assert (str(error), error.largest_train_size) == ("Too few images. Add some.", 80)


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (1, "node", "1 node"),
        (0, "node", "0 nodes"),
        (1200, "class", "1,200 classes"),
        (1.0, "CPU", "1 CPU"),
        (0.5, "GPU", "0.5 GPUs"),
        (1234567.0, "image", "1,234,567 images"),
    ],
)
def test_a_number_has_the_form_of_its_noun(count, noun, text):
    assert plural(count, noun) == text
