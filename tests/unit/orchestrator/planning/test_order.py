"""Order against what it promises: longest first, arrays in memory bounded."""

from orchestrator.planning.predict import longest_first_within

CELLS = [(array, seconds) for seconds in (1, 5, 3) for array in "abcd"]


def ordered(budget):
    return longest_first_within(
        CELLS,
        seconds=lambda cell: cell[1],
        array=lambda cell: cell[0],
        array_bytes=lambda cell: 10,
        budget=budget,
    )


def test_the_longest_go_first_over_all_arrays_where_all_fit():
    assert ordered(40) == [(array, seconds) for seconds in (5, 3, 1) for array in "abcd"]


def test_where_they_do_not_fit_a_shelf_is_what_fits_half_the_budget():
    assert [cell[0] for cell in ordered(39)] == sorted("abcd" * 3)  # one array of 10 in 19.5
    assert [cell[1] for cell in ordered(39)] == [5, 3, 1] * 4


def test_an_array_larger_than_the_budget_has_a_shelf_of_its_own():
    assert [cell[0] for cell in ordered(5)] == sorted("abcd" * 3)


def test_every_cell_comes_once():
    for budget in (0, 15, 25, 100):
        assert sorted(ordered(budget)) == sorted(CELLS)
