"""The table of what an hour costs."""

import pytest

from orchestrator.planning.estimate import Prices, amount, gpu_to_plan, read_prices, roughly
from orchestrator.planning.predict import GPU_MODELS
from search_spaces.errors import ConfigError, SweepError


def table(folder, text):
    path = folder / "prices.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_file_replaces_what_it_names_and_without_one_prices_are_assumed_and_say_so(tmp_path):
    prices = read_prices(tmp_path / "prices.yaml")
    assert prices == Prices()
    assert prices.gpu.dollars == GPU_MODELS["h100"].price
    assert "assumed" in prices.origin
    prices = read_prices(table(tmp_path, "gpu: {dollars: 2.5, watts: 500}\norigin: our contract\n"))
    assert (prices.gpu.dollars, prices.gpu.watts) == (2.5, 500)
    assert prices.core == Prices().core
    assert prices.origin == "our contract"
    assert read_prices(table(tmp_path, "gpu: a100\n")).gpu.dollars == GPU_MODELS["a100"].price


def test_a_plan_is_for_the_gpu_asked_for_else_that_of_the_table_at_the_price_given_in_numbers(tmp_path):
    assert gpu_to_plan(None, tmp_path / "prices.yaml") is None
    assert gpu_to_plan(None, tmp_path / "prices.yaml", GPU_MODELS["l4"]) == GPU_MODELS["l4"]
    assert gpu_to_plan("h200", tmp_path / "prices.yaml") == GPU_MODELS["h200"]
    named = table(tmp_path, "gpu: a100\n")
    assert gpu_to_plan(None, named) == GPU_MODELS["a100"]
    assert gpu_to_plan("h200", named) == GPU_MODELS["h200"]
    assert gpu_to_plan("h200", table(tmp_path, "core: {dollars: 1, watts: 5}\n")) == GPU_MODELS["h200"]
    ours = gpu_to_plan("h200", table(tmp_path, "gpu: {dollars: 2.5, watts: 500}\n"))
    assert (ours.price, ours.watts, ours.name) == (2.5, 500, "h200")
    with pytest.raises(ConfigError, match=r"GPU.*h1000"):
        gpu_to_plan("h1000", named)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpu: {dollars: -1, watts: 1}", "from 0 to 1,000,000.*gpu.dollars"),
        ("gpu: {dollars: 1}", "from 0 to 1,000,000.*gpu.watts"),
        ("core: {dollars: 1, watts: 1000001}", "from 0 to 1,000,000.*core.watts: Input should be less than"),
        ("gpus: h100", "from 0 to 1,000,000.*gpus"),
        ("gpu: {dollars: .nan, watts: 1}", "gpu.dollars"),
        ('gpu: {dollars: "2", watts: 1}', "gpu.dollars: Input should be a valid number"),
        ("core: {dollars: true, watts: 1}", "core.dollars: Input should be a valid number"),
        ("core: {euros: 1, watts: 1}", "core.dollars: Field required"),
        ("currency: EUR", "currency: Extra inputs are not permitted"),
        ("gpu: h1000", "h100"),
        ("- 1", "must be a mapping"),
        ("gpu: {dollars: 1e308, watts: 1}", r"gpu.dollars: .*less than or equal to 1000000"),
        ("gpu: [", "must be valid YAML"),
    ],
)
def test_a_table_that_cannot_be_read_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(SweepError, match=message) as caught:
        read_prices(table(tmp_path, text))
    assert isinstance(caught.value, ConfigError)


def test_a_table_that_is_no_text_is_one_message(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere.yaml")
    rule = "price table must be (a file|readable UTF-8 text|there, or no link to one); found: "
    for path in tmp_path.iterdir():
        for read in (read_prices, lambda path: gpu_to_plan(None, path)):
            with pytest.raises(ConfigError, match=f"{rule}{path}"):
                read(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (2.9e-5, "under 0.001"),
        (0.00149, "0.0015"),
        (0.45, "0.45"),
        (9.96, "10"),
        (15.4, "15"),
        (1.7e4, "17,000"),
    ],
)
def test_amounts_have_two_figures_and_no_exponent(value, text):
    assert amount(value) == text


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (2.9e-5, "under 0.001"), (0.45, "about 0.45")])
def test_what_is_under_a_bound_is_not_about_it(value, text):
    assert roughly(value) == text
