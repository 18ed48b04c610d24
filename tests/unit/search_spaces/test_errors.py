import inspect
import pickle

import pytest

from search_spaces import errors
from search_spaces.errors import ConfigError, DataError, SetupError, SweepError, collect, unknown_name

FAMILY = [c for c in vars(errors).values() if inspect.isclass(c) and issubclass(c, SweepError)]


@pytest.mark.parametrize("error", FAMILY)
def test_errors_survive_pickling(error):
    made = error("a rule", "a value", "a way out")
    again = pickle.loads(pickle.dumps(made))
    assert type(again) is error
    assert str(again) == "a rule; found: a value; a way out."


def test_a_notebook_shows_the_message_alone():
    assert ConfigError("a rule", "a value")._render_traceback_() == ["ConfigError: a rule; found: a value."]


def test_exit_codes():
    assert (ConfigError.exit_code, DataError.exit_code, SetupError.exit_code) == (2, 2, 3)


def test_collect_reports_all_problems_at_once():
    with pytest.raises(ConfigError, match=r"(?s)2 problems found:.*first.*second"):
        collect([ConfigError("first"), DataError("second")])


def test_collect_keeps_a_single_problem_as_it_is():
    with pytest.raises(ConfigError, match=r"^only\.$"):
        collect([ConfigError("only")])
    collect([])


def test_unknown_numbers_stand_in_their_order_and_are_no_text():
    message = str(unknown_name("size", "240", [240, 60, 120]))
    assert message == "Unknown size; found: '240'; did you mean 240? known sizes: 60, 120, 240."


def test_unknown_names_show_the_nearest_and_all():
    message = str(unknown_name("model", "resnet19", ["resnet18", "vgg13"]))
    assert (
        message == "Unknown model; found: 'resnet19'; did you mean 'resnet18'? known models: resnet18, vgg13."
    )
