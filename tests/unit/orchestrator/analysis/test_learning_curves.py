"""Test the extrapolation of one learning curve: formulas, calibration on drawn curves, answers."""

import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from orchestrator.analysis.curve_answers import (
    PRIOR_DECIDES,
    CurveQuestion,
    answer,
    answers,
    score_text,
)
from orchestrator.analysis.curve_tables import metric_of, read_curve
from orchestrator.analysis.learning_curves import (
    CurvePoint,
    CurvePrior,
    LearningCurve,
    auroc_variance,
    merged_by_size,
    shipped_prior,
)
from orchestrator.analysis.simple_curves import floored_power_law, power_law
from orchestrator.results.columns import COLUMNS
from search_spaces.errors import ConfigError, DataError

EXACT = CurvePrior(
    log_rate_mean=float(np.log(0.5)),
    log_rate_sd=0.8,
    logit_floor_mean=-1.0,
    logit_floor_sd=1.5,
    log_noise=-4.0,
    noise_by_level=0.0,
    log_misfit=-4.0,
)
"""Prior of curves that hardly scatter."""


def curve_points(sizes, scores, **fields):
    return [
        CurvePoint(train_size=size, score=float(score), **fields)
        for size, score in zip(sizes, scores, strict=True)
    ]


def floored_losses(sizes, rate=0.5, floor=0.1):
    """Return losses of a curve with a floor; the largest size has loss 0.4."""
    sizes = np.array(sizes, dtype=float)
    return 0.4 * (floor + (1 - floor) * (sizes / sizes[-1]) ** -rate)


def test_a_curve_without_scatter_is_continued_by_its_formula():
    sizes = [50, 100, 200, 400, 800]
    curve = LearningCurve(curve_points(sizes, floored_losses(sizes)), "loss", EXACT)
    truth = 0.4 * (0.1 + 0.9 * 4**-0.5)
    assert curve.score_at(3200).value == pytest.approx(truth, rel=0.04)
    assert curve.rate.value == pytest.approx(0.45, abs=0.03)
    exact_size = 800 * ((0.3 / 0.4 - 0.1) / 0.9) ** -2
    assert curve.size_for(0.3, assurance=0.5) == pytest.approx(exact_size, rel=0.03)


@pytest.mark.long
def test_intervals_cover_nine_in_ten_curves_drawn_from_their_prior():
    generator = np.random.default_rng(7)
    prior = replace(EXACT, log_noise=-1.5, log_misfit=-6.0)
    sizes = np.array([40.0, 80.0, 160.0, 320.0])
    num_covering = 0
    num_curves = 200
    for _ in range(num_curves):
        rate = np.exp(generator.normal(prior.log_rate_mean, prior.log_rate_sd))
        floor = 1 / (1 + np.exp(-generator.normal(prior.logit_floor_mean, prior.logit_floor_sd)))
        log_losses = np.log(floor + (1 - floor) * (sizes / sizes[2]) ** -rate)
        log_losses += generator.normal(0, np.exp(prior.log_noise), len(sizes))
        curve = LearningCurve(curve_points(sizes[:3], np.exp(log_losses[:3])), "loss", prior)
        estimate = curve.score_at(sizes[3])
        num_covering += estimate.low <= np.exp(log_losses[3]) <= estimate.high
    # The binomial 99.9 % range of 200 draws at 90 % to 95 %: the prior of scales is a little wide.
    assert 0.83 < num_covering / num_curves < 0.985


def test_more_assurance_needs_more_images_and_a_met_target_needs_none():
    curve = LearningCurve(curve_points([50, 100, 200], [0.6, 0.5, 0.42]), "loss")
    size_at_50_percent = curve.size_for(0.36, assurance=0.5)
    size_at_80_percent = curve.size_for(0.36, assurance=0.8)
    assert 200 < size_at_50_percent < size_at_80_percent
    assert curve.size_for(2.0) == 50
    assert curve.size_for(1e-6) == float("inf")


def test_rising_scores_are_their_errors_mirrored():
    sizes = [60, 120, 240]
    accuracies = [0.7, 0.78, 0.83]
    by_accuracy = LearningCurve(curve_points(sizes, accuracies, num_test_images=200), "accuracy")
    errors = [1 - score for score in accuracies]
    by_error = LearningCurve(curve_points(sizes, errors, num_test_images=200), "error")
    accuracy = by_accuracy.score_at(480)
    error = by_error.score_at(480)
    assert [accuracy.value, accuracy.low, accuracy.high] == pytest.approx(
        [1 - error.value, 1 - error.high, 1 - error.low]
    )
    assert by_accuracy.size_for(0.88) == by_error.size_for(1 - 0.88)


def test_a_small_test_set_makes_the_interval_wider():
    widths = {}
    for num_test_images in (30, 3000):
        points = curve_points([60, 120, 240], [0.3, 0.22, 0.17], num_test_images=num_test_images)
        estimate = LearningCurve(points, "error").score_at(480)
        widths[num_test_images] = estimate.high - estimate.low
    assert widths[30] > widths[3000]


@pytest.mark.parametrize(
    ("score", "text"), [(0.9933, "0.993"), (0.99961, "0.9996"), (1.0, "1"), (0.5, "0.5")]
)
def test_a_nearly_perfect_score_is_not_printed_as_perfect(score, text):
    assert score_text(score, "auroc") == text


def test_a_perfect_score_is_no_infinite_improvement():
    points = curve_points([60, 120, 240], [0.9, 0.97, 1.0], num_test_images=100)
    curve = LearningCurve(points, "accuracy")
    assert curve.score_at(480).low > 0.8
    assert np.isfinite(curve.score_at(480).value)


def test_a_flat_curve_is_called_flat_and_a_steep_one_is_not():
    sizes = [100, 200, 400, 800, 1600]
    flat = LearningCurve(curve_points(sizes, [0.5, 0.5, 0.5, 0.5, 0.5]), "loss", EXACT)
    steep_losses = floored_losses(sizes, rate=0.9, floor=0.0)
    steep = LearningCurve(curve_points(sizes, steep_losses), "loss", EXACT)
    assert flat.probability_flat > 0.9
    assert steep.probability_flat < 0.1


def test_trainings_of_one_size_are_averaged_with_their_number():
    merged = merged_by_size(curve_points([80, 40, 80], [0.4, 0.6, 0.2]))
    assert [(point.train_size, point.num_trainings) for point in merged] == [(40, 1), (80, 2)]
    assert merged[1].score == pytest.approx(0.3)


def test_a_curve_of_one_train_size_is_refused():
    with pytest.raises(
        DataError,
        match=r"small_cnn: The learning curve has 1 train size.*\. Train at 2 or more train sizes",
    ):
        answer(curve_points([10, 10], [0.5, 0.4]), "small_cnn", CurveQuestion())


def test_an_answer_has_the_score_the_shape_and_the_images():
    question = CurveQuestion(metric="accuracy", target=0.79, assurance=0.7, test_size=240)
    curve_answer = answer(
        curve_points([105, 210, 420, 840], [0.6, 0.66, 0.7, 0.74]), "small_cnn", question
    )
    text = " ".join(curve_answer.lines())
    assert text.startswith("small_cnn: accuracy 0.6 at 105, 0.66 at 210")
    assert "With 1,680 training images expect an accuracy of 0.7" in text
    assert "the median estimate is" in text
    document = curve_answer.to_json()
    assert document["needed_train_size"] > document["likely_train_size"] > 840
    assert 0.8 < document["probability_reachable"] <= 1


def test_a_target_beyond_the_range_gets_advice_instead_of_a_number():
    question = CurveQuestion(target=0.01)
    curve_answer = answer(curve_points([100, 200, 400], [0.9, 0.88, 0.87]), "net", question)
    assert curve_answer.to_json()["needed_train_size"] is None
    assert "Even 12,800 images reach it only with a probability of" in curve_answer.lines()[-1]
    assert "Choose an easier target or another network, or train with" in curve_answer.lines()[-1]


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_an_example_of_a_target_is_better_than_every_measured_score(metric):
    table = pd.DataFrame(
        {"train_size": [100, 200, 400], "accuracy": [0.6, 0.7, 0.76], "loss": [0.9, 0.7, 0.6]}
    )
    report = answers(table, CurveQuestion(metric))
    target = report.example_target()
    if metric == "accuracy":
        assert 0.76 < target < 1
    else:
        assert 0 < target < 0.6
    # The accuracy falls with more images: twice as many are expected to give no better score.
    falling = table.assign(accuracy=[0.95, 0.7, 0.6], loss=[0.2, 0.9, 1.2])
    assert answers(falling, CurveQuestion(metric)).example_target() is None


def test_a_size_beyond_the_range_is_refused_with_the_largest_possible_size():
    points = curve_points([100, 200, 400], [0.9, 0.8, 0.7])
    with pytest.raises(
        ConfigError,
        match=r"train size of 100,000 is too far from .* 400\. Give a train size of at most 12,800",
    ):
        answer(points, "net", CurveQuestion(train_size=100_000))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"assurance": 1.0}, "assurance is 1, but it must be above 0 and below 1"),
        ({"target": 0.0}, "The target loss is 0"),
        (
            {"metric": "accuracy", "target": 80.0},
            "The target accuracy is 80, .*: write 90 % as 0.9",
        ),
    ],
)
def test_an_impossible_question_is_refused(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        CurveQuestion(**fields)


def test_a_table_has_a_curve_for_each_network_and_pair():
    table = pd.DataFrame(
        {
            "train_size": [50, 100, 50, 100, 50, 100],
            "test_loss": [0.6, 0.5, 0.7, 0.6, 0.8, np.nan],
            "model": ["a", "a", "b", "b", "a", "a"],
            "class_pair": ["0-1", "0-1", "0-1", "0-1", "0-2", "0-2"],
        }
    )
    one_pair = table.iloc[:4]
    assert [curve.name for curve in answers(one_pair, CurveQuestion()).curves] == ["a", "b"]
    report = answers(table, CurveQuestion())
    assert [curve.name for curve in report.curves] == ["a 0-1", "b 0-1"]
    assert report.remarks[0] == "Left out: 1 of 6 rows (no test loss)."
    assert report.remarks[1].startswith(
        "a 0-1 and b 0-1: the prediction rests on only 2 train sizes."
    )
    assert "a 0-2: The learning curve has 1 train size" in report.remarks[2]
    (curve_of_b,) = answers(one_pair, CurveQuestion(), "b").curves
    assert (curve_of_b.name, curve_of_b.num_siblings) == ("b", 1)
    with pytest.raises(ConfigError, match=r"model .*'c'"):
        answers(one_pair, CurveQuestion(), "c")


def test_a_spreadsheet_file_is_read_and_a_missing_column_is_named(tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text(" N ;Accuracy\n50;0,7\n100;0,8\n", encoding="utf-8")
    table = read_curve(file)
    assert metric_of(table) == "accuracy"
    assert answers(table, CurveQuestion("accuracy")).curves[0].points[1].score == 0.8
    by_error = answers(table, CurveQuestion("error")).curves[0]
    assert by_error.points[1].score == pytest.approx(0.2)
    with pytest.raises(
        DataError, match=r"has no column of the AUROC\. Its columns are n, accuracy"
    ):
        answers(table, CurveQuestion("auroc"))
    with pytest.raises(DataError, match="has no column of scores"):
        metric_of(pd.DataFrame({"train_size": [1]}))


def answers_of_file(file):
    """Return the answers for the first score column of a file, as without options."""
    table = read_curve(file)
    return answers(table, CurveQuestion(metric_of(table)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train_size,accuracy\n,0.7\n100,0.8\n",
            "Line 2 of the table has a score, but no train_size",
        ),
        (
            "train_size,accuracy\n-50,0.7\n100,0.8\n",
            "Line 2 of the table has train_size -50, .*whole number of images",
        ),
        ("train_size,accuracy\n0.25,0.7\n100,0.8\n", "train_size 0.25, .*whole number of images"),
        (
            'train_size,accuracy\n"1,000",0.7\n2000,0.8\n',
            "Line 2 of the table has train_size '1,000'",
        ),
        ("train_size,accuracy\n50,bad\n100,0.8\n", "Line 2 of the table has accuracy 'bad'"),
        ("train_size,accuracy\n50,70\n100,80\n", "accuracy 70, .*write 70 % as 0.7"),
        ("train_size,accuracy\n50,1.0\n100,1.0\n", "Give the number of test images"),
        (
            "train_size,test_loss\n50,inf\n100,0.5\n",
            "test_loss inf, but test_loss must be a finite loss above 0",
        ),
        (
            "train_size,test_loss\n50,0\n100,0.5\n",
            "test_loss 0, but test_loss must be a finite loss above 0",
        ),
        (
            "train_size,accuracy,test_size\n50,.7,abc\n100,.8,9\n",
            "Line 2 of the table has test_size 'abc'",
        ),
        ("train_size,accuracy,dataset\n50,.7,a\n100,.8,b\n", "more than one dataset: a, b. Keep"),
        ("train_size,accuracy\n50,\n100,\n", "None of the 2 rows of the table has an accuracy"),
        ("train_size,Accuracy,accuracy\n50,.7,.7\n", "more than one column with the name accuracy"),
        ("train_size,auc,auc\n50,.7,.8\n", "more than one column with the name auc"),
        ('train_size,auc\n"1,000",.7\n', "Write 1000, without commas"),
        ('train_size,accuracy\n50,"0,6"\n', r"accuracy '0,6', .*Write 0\.6, with a decimal point"),
        (
            "train_size,accuracy\n0,0.6\n100,0.7\n",
            "train_size 0, but train_size must be a whole number of images from 1 to",
        ),
        ("train_size,accuracy\n", "The table has a header, but no rows. Add one row for each"),
    ],
)
def test_a_table_with_a_mistake_is_refused_with_its_line(text, reason, tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises((DataError, ConfigError), match=reason):
        answers_of_file(file)


def test_a_table_with_another_score_gets_the_option_for_this_score():
    table = pd.DataFrame({"train_size": [50, 100], "test_accuracy": [0.6, 0.7]})
    with pytest.raises(
        DataError,
        match=r"no column of the test loss.*Use --target-accuracy .*add a column test_loss",
    ) as caught:
        answers(table, CurveQuestion("loss", target=0.5))
    assert "Rename" not in str(caught.value)


def test_model_names_with_outer_spaces_are_the_same_model(tmp_path):
    text = "train_size,test_loss,model\n50,0.9,cnn\n100,0.7,cnn \n200,0.6, cnn\n"
    (curve_answer,) = answers_of_csv(tmp_path, text).curves
    assert curve_answer.name == "cnn"
    assert len(curve_answer.points) == 3


@pytest.mark.parametrize(
    ("columns", "remark"),
    [
        ("train_size,test_loss,seeds", "The column seeds is not used. Did you mean seed?"),
        ("train_size,test_loss,n_classes", "The column n_classes is not used. Did you mean num_c"),
        ("n,test_loss,seed", "isweep uses the column n as the train size."),
    ],
)
def test_a_remark_says_how_a_column_with_a_doubtful_name_is_used(columns, remark, tmp_path):
    report = answers_of_csv(tmp_path, f"{columns}\n50,0.6,2\n100,0.5,2\n200,0.4,2\n")
    assert any(line.startswith(remark) for line in report.remarks)


def test_columns_of_a_sweep_get_no_remark():
    names = [column.name for column in COLUMNS if column.name not in ("train_size", "test_loss")]
    table = pd.DataFrame({"train_size": [50, 100, 200], "test_loss": [0.6, 0.5, 0.4]})
    table = table.join(pd.DataFrame(dict.fromkeys(names, [np.nan] * 3)))
    assert answers(table, CurveQuestion()).remarks == ()


def test_a_remark_says_that_scores_without_a_test_size_are_taken_as_exact():
    table = pd.DataFrame({"train_size": [50, 100, 200], "test_accuracy": [0.6, 0.7, 0.8]})
    (remark,) = answers(table, CurveQuestion("accuracy")).remarks
    assert remark.startswith("The size of the test set is unknown for 3 of 3 rows. isweep treats")
    assert remark.endswith("with --test-size, or in a column test_size.")
    assert answers(table, CurveQuestion("accuracy", test_size=200)).remarks == ()
    assert answers(table.assign(test_size=200), CurveQuestion("accuracy")).remarks == ()


def test_a_remark_asks_for_the_number_of_classes_if_chance_level_depends_on_it():
    table = pd.DataFrame({"train_size": [50, 100, 200], "test_loss": [1.9, 1.8, 1.75]})
    (curve_answer,) = answers(table, CurveQuestion(target=0.5)).curves
    # The caution is read before the numbers that it concerns.
    assert curve_answer.lines()[1].startswith(
        "  Chance level for two classes is 0.693. No measured test loss is clearly better."
    )
    assert curve_answer.lines()[1].endswith("add a column num_classes.")
    assert "training images expect" in curve_answer.lines()[2]
    with_classes = answers(table.assign(num_classes=10), CurveQuestion())
    assert with_classes.curves[0].caution == ""
    # A loss that is better than guessing among two classes is better for every number of classes.
    learned = answers(table.assign(test_loss=[0.9, 0.7, 0.5]), CurveQuestion())
    assert learned.curves[0].caution == ""


def test_a_path_that_is_no_readable_csv_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.csv cannot be read as a CSV file"):
        read_curve(tmp_path / "absent.csv")
    with pytest.raises(ConfigError, match="is a folder, not a CSV file"):
        read_curve(tmp_path)
    latin = tmp_path / "latin.csv"
    latin.write_bytes("größe;accuracy\n1;0,5\n".encode("latin-1"))
    with pytest.raises(ConfigError, match="not in UTF-8"):
        read_curve(latin)


def test_seeds_that_scatter_widely_make_the_interval_wider():
    sizes = [100, 100, 100, 200, 200, 200, 400, 400, 400]
    close_errors = [0.30, 0.301, 0.299, 0.24, 0.241, 0.239, 0.2, 0.201, 0.199]
    scattered_errors = [0.15, 0.3, 0.6, 0.12, 0.24, 0.48, 0.1, 0.2, 0.4]
    log_widths = []
    for errors in (close_errors, scattered_errors):
        estimate = LearningCurve(curve_points(sizes, errors), "error").score_at(800)
        log_widths.append(np.log(estimate.high / estimate.low))
    assert log_widths[1] > 1.5 * log_widths[0]


def test_scores_that_do_not_improve_get_a_remark():
    worse = answer(curve_points([100, 200, 400], [0.5, 0.52, 0.55]), "net", CurveQuestion())
    assert worse.lines()[1].startswith(
        "  Your test loss gets worse with more images: 0.5 at 100, 0.55 at 400 images. Check the "
    )
    unchanged = answer(curve_points([100, 200, 400], [0.5, 0.4, 0.5]), "net", CurveQuestion())
    assert "Your test loss stays the same with more images" in unchanged.lines()[1]
    assert PRIOR_DECIDES in unchanged.lines()[1]


def test_a_prediction_far_above_the_measured_rate_names_its_source():
    question = CurveQuestion("accuracy")
    slow = answer(curve_points([100, 200, 400], [0.72, 0.73, 0.74]), "net", question)
    start = "  Your accuracy improves from 0.72 at 100 to 0.74 at 400 images. "
    assert slow.lines()[1].startswith(start + PRIOR_DECIDES)
    usual = answer(curve_points([100, 200, 400], [0.6, 0.68, 0.74]), "net", question)
    assert PRIOR_DECIDES not in usual.lines()[1]


@pytest.mark.parametrize("column", ["train_accuracy", "training_acc", "train_loss"])
def test_scores_on_training_images_are_never_suggested(column):
    table = pd.DataFrame({"train_size": [50, 100, 200], column: [0.7, 0.8, 0.9]})
    hint = rf"The scores in the column {column} are measured on training images"
    for metric in ("accuracy", "loss"):
        with pytest.raises(DataError, match=hint) as caught:
            answers(table, CurveQuestion(metric))
        assert "Rename" not in str(caught.value)
        assert "Did you mean" not in str(caught.value)
    with pytest.raises(DataError, match=hint):
        metric_of(table)


def test_a_workbook_of_results_is_to_be_saved_as_csv(tmp_path):
    file = tmp_path / "curve.xlsx"
    file.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(ConfigError, match=r"is an Excel workbook, not a CSV file\. Save the sheet"):
        read_curve(file)
    with pytest.raises(ConfigError, match="cannot be read as a CSV file"):
        read_curve(tmp_path / "absent.xlsx")


def test_a_target_that_is_already_met_needs_no_more_images():
    question = CurveQuestion(target=0.9)
    curve_answer = answer(curve_points([100, 200, 400], [0.5, 0.4, 0.3]), "net", question)
    probability = curve_answer.images.probability_at_smallest
    assert probability >= 0.8
    conclusion = f"at most 100 images are needed, with a probability of {probability:.0%}"
    assert conclusion in curve_answer.lines()[-1]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"metric": "acc"}, "metric .*'acc'"),
        ({"assurance": "80%"}, "assurance is '80%', which is not a number"),
        ({"train_size": 0}, "train_size is 0, which is not a number of images"),
        ({"test_size": 1}, "test_size is 1, but a test set has at least 2 images"),
    ],
)
def test_an_invalid_option_is_refused(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        CurveQuestion(**fields)


def test_the_shipped_prior_names_its_sources():
    assert set(shipped_prior("loss").sources) >= {"MNIST", "UCI digits", "published"}
    assert shipped_prior("auroc") == shipped_prior("accuracy")


def answers_of_csv(tmp_path, text):
    """Write a file of results and return the answers for its first score column."""
    file = tmp_path / "curve.csv"
    file.write_text(text, encoding="utf-8")
    return answers_of_file(file)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train_size,accuracy\n1.000,0.7\n2.000,0.8\n",
            r"Line 2 .* train_size '1\.000'\. .*\. Write 1000 or 1,",
        ),
        (
            "N;accuracy\n1.000;0,7\n2.000;0,8\n",
            r"'1\.000'\. The point in this number could separate thousands",
        ),
        ("N;test_loss\n500;1.250,5\n900;0,8\n", "Line 2 of the table has test_loss '1.250,5'"),
        ("N;test_loss\n500;1.250\n900;0,8\n", r"Line 2 of the table has test_loss '1\.250'"),
    ],
)
def test_a_point_between_thousands_is_never_read_as_a_decimal_point(text, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        answers_of_csv(tmp_path, text)


def test_a_point_in_a_semicolon_file_may_be_a_decimal_point(tmp_path):
    report = answers_of_csv(tmp_path, "N;accuracy\n500;0.700\n1000;0.8\n")
    assert [point.score for point in report.curves[0].points] == [0.7, 0.8]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train_size,test_accuracy,test_error\n50,0.7,0.3\n100,0.8,0.3\n",
            r"Line 3 .* contradicts itself: test_error is 0\.3, and test_accuracy is 0\.8",
        ),
        (
            "train_size,test_loss,loss\n50,0.7,0.7\n100,0.8,0.6\n",
            r"Line 3 .* contradicts itself: test_loss is 0\.8, and loss is 0\.6",
        ),
        (
            "train_size,accuracy,seed\n50,0.7,0\n50,0.6,0\n100,0.8,0\n",
            "Lines 2, 3 of the table have different scores for the same training",
        ),
    ],
)
def test_rows_that_contradict_each_other_are_refused(text, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        answers_of_csv(tmp_path, text)


def test_a_repeated_row_counts_once(tmp_path):
    rows = "train_size,test_loss,seed\n50,0.7,0\n50,0.7,0\n50,0.6,1\n100,0.5,0\n"
    report = answers_of_csv(tmp_path, rows)
    assert [point.num_trainings for point in report.curves[0].points] == [2, 1]
    assert report.remarks[0].startswith("Left out: 1 row equal to an earlier row. If equal rows")


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("train_size,auc\n50,0.49\n100,0.51\n200,0.5\n", "Chance level for 2 classes is 0.5."),
        (
            "train_size,accuracy,num_classes,test_size\n50,0.11,10,300\n200,0.12,10,300\n",
            "Chance level for 10 classes is 0.1.",
        ),
        ("train_size,accuracy\n50,0.5\n100,0.51\n", "Chance level for two classes is 0.5."),
        (
            "train_size,test_loss,num_classes\n50,1.42,4\n100,1.38,4\n",
            "Chance level for 4 classes is 1.39.",
        ),
    ],
)
def test_a_curve_at_chance_level_promises_no_gain(text, level, tmp_path):
    (curve_answer,) = answers_of_csv(tmp_path, text).curves
    assert level in curve_answer.lines()[1]
    assert "these results cannot show whether more images would help." in curve_answer.lines()[1]
    mean = np.mean([point.score for point in curve_answer.points])
    assert curve_answer.score.value == pytest.approx(mean)
    assert curve_answer.score.low <= mean <= curve_answer.score.high
    document = curve_answer.to_json()
    assert document["at_chance_level"]
    assert document["needed_train_size"] is None


def test_a_curve_that_crosses_one_half_is_not_taken_for_two_classes(tmp_path):
    (curve_answer,) = answers_of_csv(
        tmp_path, "train_size,accuracy\n50,0.3\n100,0.5\n200,0.62\n"
    ).curves
    assert curve_answer.chance is None


def test_high_losses_of_a_network_that_learned_are_not_chance_level():
    table = pd.DataFrame(
        {
            "train_size": [100, 200, 400],
            "test_loss": [1.5, 1.6, 1.45],
            "test_accuracy": [0.5, 0.6, 0.67],
            "num_classes": 4,
        }
    )
    report = answers(table, CurveQuestion())
    assert report.curves[0].chance is None
    assert report.remarks[0].endswith(
        "but the accuracy is better than chance level. The network gives wrong probabilities. "
        "Predict the accuracy instead of the loss."
    )


@pytest.mark.parametrize("aurocs", [[0.86, 0.92, 0.96], [0.5, 0.51, 0.49], None])
def test_an_accuracy_at_chance_level_is_not_excused_by_another_score(aurocs):
    table = pd.DataFrame(
        {
            "train_size": [50, 100, 200],
            "test_loss": [1.386, 1.35, 1.32],
            "test_accuracy": [0.25, 0.25, 0.255],
            "num_classes": 4,
            "test_size": 200,
        }
    )
    if aurocs is not None:
        table["auc"] = aurocs
    report = answers(table, CurveQuestion("accuracy", target=0.95))
    (curve_answer,) = report.curves
    text = curve_answer.expected_line
    assert text.startswith(
        "Chance level for 4 classes is 0.25. No measured accuracy is clearly better."
    )
    assert curve_answer.images is None
    assert not any("wrong probabilities" in remark for remark in report.remarks)
    has_good_auroc = aurocs == [0.86, 0.92, 0.96]
    assert ("The AUROC is better than chance level" in text) == has_good_auroc
    assert ("use --target-auroc (in Python: metric='auroc')" in text) == has_good_auroc
    assert ("The network has learned nothing yet" in text) != has_good_auroc


def test_an_accuracy_above_chance_does_not_excuse_an_auroc_at_chance_level():
    # The most frequent class has 90 % of the images.
    table = pd.DataFrame(
        {"train_size": [50, 100, 200], "auc": [0.49, 0.51, 0.5], "accuracy": 0.9, "test_size": 200}
    )
    (curve_answer,) = answers(table, CurveQuestion("auroc")).curves
    assert curve_answer.expected_line.startswith(
        "Chance level for 2 classes is 0.5. No measured AUROC"
    )


@pytest.mark.parametrize(("aurocs", "is_exchanged"), [([0.3, 0.25], True), ([0.3, 0.51], False)])
def test_an_auroc_below_one_half_throughout_suggests_exchanged_classes(aurocs, is_exchanged):
    table = pd.DataFrame({"train_size": [50, 100], "auc": aurocs, "test_size": 100})
    (curve_answer,) = answers(table, CurveQuestion("auroc")).curves
    hint = "An AUROC below 0.5 often means that the classes are exchanged."
    assert (hint in curve_answer.expected_line) == is_exchanged


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train_size,accuracy,split\n50,.9,train\n50,.6,test\n100,.9,train\n100,.7,test\n",
            r"more than one split: test, train\. Keep only the rows with one value of split",
        ),
        (
            "train_size,accuracy,epochs\n50,.5,1\n50,.6,9\n100,.7,9\n",
            "Lines 2, 3 .* same train size, but different values of epochs: 1, 9.*column model",
        ),
        (
            "train_size,accuracy,backbone\n50,.5,vgg\n50,.6,resnet\n100,.7,vgg\n",
            "Rename the column backbone to model",
        ),
        (
            "train_size,N,accuracy\n100,10,.6\n200,20,.7\n",
            "Line 2 of the table has train_size 100, but n 10.*If the column n is not the train size, remove",
        ),
        (
            "train_size,accuracy,num_classes\n50,.6,4\n100,.7,2\n",
            "different numbers of classes: 2 and 4",
        ),
    ],
)
def test_rows_that_do_not_belong_to_one_curve_are_refused(text, reason, tmp_path):
    with pytest.raises(DataError, match=reason):
        answers_of_csv(tmp_path, text)


def test_a_setting_that_differs_between_sizes_or_networks_is_accepted(tmp_path):
    rows = "train_size,N,accuracy,lr,model\n50,50,.6,1,a\n100,100,.7,2,a\n50,50,.5,3,b\n"
    report = answers_of_csv(tmp_path, rows + "100,100,.6,4,b\n")
    assert [len(curve.points) for curve in report.curves] == [2, 2]


@pytest.mark.parametrize("column", ["test_size", "num_test_images"])
def test_a_test_size_that_contradicts_the_table_is_refused(column):
    table = pd.DataFrame({"train_size": [50, 100], "accuracy": [0.6, 0.7], column: [np.nan, 50]})
    with pytest.raises(
        DataError,
        match=rf"Line 3 of the table has {column} 50, but --test-size .* is 400\. Leave out",
    ):
        answers(table, CurveQuestion("accuracy", test_size=400))
    assert answers(table, CurveQuestion("accuracy", test_size=50)).curves


@pytest.mark.parametrize("num_positives", [200, 900])
def test_as_many_positives_as_test_images_are_refused(num_positives):
    table = pd.DataFrame(
        {"train_size": [50, 100], "auc": [0.6, 0.7], "num_positives": num_positives}
    )
    with pytest.raises(
        DataError, match=f"num_positives {num_positives}, but the test set has 200 images"
    ):
        answers(table, CurveQuestion("auroc", test_size=200))


def test_a_remark_says_that_two_train_sizes_are_few():
    table = pd.DataFrame({"train_size": [50, 100], "test_loss": [0.6, 0.5]})
    (remark,) = answers(table, CurveQuestion()).remarks
    assert remark == (
        "curve: the prediction rests on only 2 train sizes. Train with one more train size: "
        "three sizes give a usable interval."
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "train_size test_accuracy\n100 0.6\n200 0.7\n",
            "only one column: .*'train_size test_accuracy'. Separate the cells of each line by",
        ),
        ("100,0.6\n200,0.7\n", "no header: its first line is 100, 0.6. Write the names of"),
        ("100;0,6;cnn\n200;0,7;cnn\n", "no header: its first line is 100, 0,6, cnn"),
    ],
)
def test_a_file_without_header_or_separator_is_refused_with_its_first_line(text, reason, tmp_path):
    file = tmp_path / "curve.csv"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        read_curve(file)


def test_other_networks_on_the_same_images_inform_a_curve():
    sizes = [100, 200, 400]
    prior = replace(EXACT, log_noise=-1.0, rate_sharing=0.9, floor_sharing=0.9)
    steep = [curve_points(sizes, floored_losses(sizes, rate=1.2, floor=0.0)) for _ in range(4)]
    pilot = curve_points(sizes, [0.5, 0.42, 0.36])
    alone = LearningCurve(pilot, "loss", prior)
    with_siblings = LearningCurve(pilot, "loss", prior, siblings=steep)
    assert with_siblings.score_at(800).value < alone.score_at(800).value
    # Without a common part, other networks change nothing.
    unrelated = replace(prior, rate_sharing=0.0, floor_sharing=0.0)
    unrelated_estimate = LearningCurve(pilot, "loss", unrelated, siblings=steep).score_at(800)
    without_siblings = LearningCurve(pilot, "loss", unrelated).score_at(800)
    assert unrelated_estimate.value == pytest.approx(without_siblings.value)


def test_aurocs_scatter_as_the_ranks_of_drawn_scores_do():
    generator = np.random.default_rng(2)
    num_positives = 30
    num_negatives = 70
    shift = 1.0
    areas = []
    for _ in range(2000):
        positive_scores = generator.normal(shift, 1, num_positives)
        negative_scores = generator.normal(0, 1, num_negatives)
        areas.append((positive_scores[:, None] > negative_scores[None, :]).mean())
    point = CurvePoint(train_size=10, score=0.76, num_test_images=100, num_positives=num_positives)
    assert np.sqrt(auroc_variance(np.mean(areas), point)) == pytest.approx(np.std(areas), rel=0.1)


def test_an_auroc_of_few_positives_is_less_certain(tmp_path):
    rows = "train_size,auc,test_size,num_positives\n100,0.7,400,{0}\n200,0.76,400,{0}\n"
    widths = {}
    for num_positives in (20, 200):
        score = answers_of_csv(tmp_path, rows.format(num_positives)).curves[0].score
        widths[num_positives] = score.high - score.low
    assert widths[20] > widths[200]


def test_an_uncertain_target_gets_a_median_estimate_and_a_lower_bound():
    question = CurveQuestion(target=0.2)
    curve_answer = answer(curve_points([100, 200, 400], [0.9, 0.8, 0.72]), "net", question)
    document = curve_answer.to_json()
    assert document["likely_train_size"] > document["least_train_size"] > 400
    assert "the median estimate is" in curve_answer.lines()[-1]
    assert "or train with 800 images and predict again." in curve_answer.lines()[-1]
    low, high = document["needed_interval"]
    assert high is None
    two_figures = 100 * (low // 100)  # the interval is rounded to the larger one
    assert 1000 < low < 10_000
    bounds = f"90% interval begins at {two_figures:,.0f} and has no upper bound."
    assert bounds in curve_answer.lines()[-1]


@pytest.mark.parametrize(
    ("target", "opening", "advice"),
    [
        (0.5, "For a test loss of 0.5: If the target is reached", "Train with 800 images"),
        (0.2, "For a test loss of 0.2: With a probability of", "Choose an easier target"),
    ],
)
def test_a_target_without_a_plan_begins_with_what_is_more_likely(target, opening, advice):
    points = curve_points([100, 200, 400], [0.9, 0.8, 0.72])
    curve_answer = answer(points, "net", CurveQuestion(target=target, assurance=0.95))
    assert curve_answer.to_json()["needed_train_size"] is None
    line = curve_answer.images_line
    assert line.startswith(opening)
    assert "Even 12,800 images reach it only with a probability of" in line
    assert f". {advice}" in line


def test_the_interval_of_needed_images_covers_nine_tenths_of_the_curves():
    curve = LearningCurve(curve_points([100, 200, 400, 800], [0.6, 0.42, 0.29, 0.2]), "loss")
    num_images = answer(curve.points, "net", CurveQuestion(target=0.17)).images
    assert curve.probability_met(0.17, num_images.low) == pytest.approx(0.05, abs=0.003)
    assert curve.probability_met(0.17, num_images.high) == pytest.approx(0.95, abs=0.003)
    assert num_images.low < num_images.middle < num_images.assured < num_images.high


@pytest.mark.parametrize(
    ("target", "interval"),
    [
        (
            0.605,
            r"estimate is at most 100 images, your smallest train size\. .* the 90% interval ends at [\d,]+\.",
        ),
        (0.55, r"90% interval ends at [\d,]+\."),
        (0.2, r"90% interval is [\d,]+ to [\d,]+\."),
        (0.15, r"90% interval begins at [\d,]+ and has no upper bound\."),
        (0.7, r"at most 100 images are needed, with a probability of \d\d%"),
    ],
)
def test_every_needed_number_of_images_has_an_interval_or_a_bound(target, interval):
    measured = curve_points([100, 200, 400, 800], [0.6, 0.42, 0.29, 0.2])
    curve_answer = answer(measured, "net", CurveQuestion(target=target))
    assert re.search(interval, curve_answer.lines()[-1])


@pytest.mark.parametrize(
    ("target", "met"),
    [
        (0.3, "Your test loss of 0.29 at 400 images meets the target already."),
        (0.2, "Your test loss of 0.2 at 800 images meets the target already."),
        (0.19, ""),
    ],
)
def test_a_target_that_a_measured_score_meets_is_called_so(target, met):
    measured = curve_points([100, 200, 400, 800], [0.6, 0.42, 0.29, 0.2])
    line = answer(measured, "net", CurveQuestion(target=target)).images_line
    assert met in line
    assert ("meets the target already" in line) == bool(met)


@pytest.mark.parametrize(
    ("num_sizes", "target", "remark"),
    [
        (
            4,
            0.18,
            "with 4 train sizes, the numbers of images for a probability of 80% were large enough in 57 of 100 cases",
        ),
        (
            3,
            0.28,
            "with 3 train sizes, the numbers of images for a probability of 80% were large enough in 44 of 100 cases",
        ),
        (4, 0.3, ""),  # 400 images have reached it
        (4, 0.06, r"The probabilities of reaching the target may be too high. In a benchmark"),
        (4, 0.0001, ""),  # No number of images reaches it, almost surely.
        (4, None, ""),
    ],
)
def test_an_extrapolated_number_has_the_share_of_the_benchmark(num_sizes, target, remark):
    losses = [0.6, 0.42, 0.29, 0.2][:num_sizes]
    table = pd.DataFrame({"train_size": [100, 200, 400, 800][:num_sizes], "test_loss": losses})
    report = answers(table, CurveQuestion(target=target))
    remarks = " ".join(report.remarks)
    assert remark in remarks
    assert ("In a benchmark" in remarks) == bool(remark)


def test_the_smallest_train_size_is_no_lower_bound_of_the_needed_images():
    measured = curve_points([100, 200, 400, 800], [0.6, 0.42, 0.29, 0.2])
    document = answer(measured, "net", CurveQuestion(target=0.55)).to_json()
    assert document["needed_interval"][0] is None
    assert document["smallest_train_size_may_suffice"]
    far = answer(measured, "net", CurveQuestion(target=0.15)).to_json()
    assert far["needed_interval"][0] > 100
    assert not far["smallest_train_size_may_suffice"]


def test_a_target_that_hardly_any_curve_reaches_has_no_infinite_bound():
    """JSON has no infinite numbers, so an infinite bound would stop a report."""
    measured = curve_points([110, 220, 450, 900], [0.4, 0.4, 0.4, 0.4])
    curve_answer = answer(measured, "net", CurveQuestion(target=0.001))
    assert curve_answer.images.low == float("inf")
    document = curve_answer.to_json()
    assert document["needed_interval"] == [None, None]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_a_curve_that_improves_has_the_probability_of_a_gain():
    measured = curve_points([100, 200, 400, 800], [0.6, 0.42, 0.29, 0.2])
    curve_answer = answer(measured, "net", CurveQuestion())
    gain = 1 - curve_answer.probability_flat
    assert gain >= 0.9
    percent = "over 99%" if gain > 0.995 else f"{gain:.0%}"
    conclusion = f"The test loss probably still improves with more images ({percent})."
    assert conclusion in curve_answer.expected_line


def test_a_prediction_below_the_measured_sizes_gets_a_remark():
    table = pd.DataFrame({"train_size": [100, 200, 400], "test_loss": [0.6, 0.42, 0.29]})
    (remark,) = answers(table, CurveQuestion(train_size=50)).remarks
    assert remark.startswith("The requested train size of 50 is below your smallest train size of")
    assert answers(table, CurveQuestion(train_size=100)).remarks == ()


def test_a_model_cannot_be_selected_in_a_table_without_the_column():
    table = pd.DataFrame({"train_size": [100, 200], "test_loss": [0.6, 0.42]})
    with pytest.raises(
        ConfigError, match=r"no column model, so the model vgg13 cannot be selected"
    ):
        answers(table, CurveQuestion(), "vgg13")


@pytest.mark.parametrize(
    ("metric", "target", "better"),
    [("accuracy", 0.2, "above 0.25"), ("loss", 1.5, "below 1.39"), ("error", 0.75, "below 0.75")],
)
def test_a_target_that_guessing_reaches_gets_a_remark(metric, target, better):
    table = pd.DataFrame(
        {
            "train_size": [100, 200, 400],
            "test_loss": [0.9, 0.7, 0.6],
            "test_accuracy": [0.6, 0.7, 0.75],
            "num_classes": 4,
        }
    )
    report = answers(table, CurveQuestion(metric, target=target))
    assert report.remarks[0].startswith("A network that guesses reaches the target")
    assert report.remarks[0].endswith(f"for 4 classes. Choose a target {better}.")
    # Without the number of classes, chance level is unknown.
    unknown = table.drop(columns="num_classes")
    question = CurveQuestion(metric, target=target, test_size=200)
    assert answers(unknown, question).remarks == ()


def test_a_sweep_file_in_place_of_a_table_is_refused_with_the_right_command(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("name: mine\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"Leave out --curve: type `isweep predict .*mine\.yaml`"):
        read_curve(file)


def test_a_file_that_is_no_table_is_refused_without_the_parsers_words(tmp_path):
    file = tmp_path / "notes.csv"
    file.write_text("a,b\n1,2,3,4\n1,2\n1,2,3,4,5,6\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="rows have different numbers of cells") as caught:
        read_curve(file)
    assert "tokenizing" not in str(caught.value)


def test_the_two_plain_fits_are_those_of_their_formulas():
    sizes = np.array([50.0, 100.0, 200.0, 400.0])
    straight = np.log(3 * sizes**-0.4)
    assert power_law(sizes, straight, 1600) == pytest.approx(np.log(3 * 1600**-0.4))
    floored = np.log(5 * sizes**-0.72 + 0.1)
    expected = np.log(5 * 1600**-0.72 + 0.1)
    assert floored_power_law(sizes, floored, 1600) == pytest.approx(expected, abs=0.02)
