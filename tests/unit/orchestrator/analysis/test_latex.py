import pytest

from orchestrator.analysis.tables.latex import escape, to_latex
from orchestrator.analysis.tables.layout import Table

TABLE = Table(
    "levels", "Height of K_F", "R² in %", ("model", "on", "value"), (("a_b", "1/d & K", "−0.5"),), 2
)


def test_a_table_is_a_tabular_with_caption_and_label():
    text = to_latex(TABLE)
    assert r"\caption{Height of K\_F. R$^2$ in \%.}" in text
    assert r"\label{tab:levels}" in text
    assert r"\begin{tabular}{llr}" in text
    assert r"a\_b & 1/d \& K & $-$0.5 \\" in text
    assert text.count(r"\begin") == text.count(r"\end") == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a_b", r"a\_b"),
        ("50 %", r"50 \%"),
        ("x\\y", r"x\textbackslash{}y"),
        ("d ≲ 3", r"d $\lesssim$ 3"),
    ],
)
def test_special_characters_of_latex_are_escaped(text, expected):
    assert escape(text) == expected
