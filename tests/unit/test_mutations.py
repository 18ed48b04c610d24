"""The source has the text that every mutation of the simulation replaces."""

import ast
from pathlib import Path

import pytest

from tests.simulation.mutations import MUTATIONS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[mutation.promise for mutation in MUTATIONS])
def test_a_mutation_changes_one_place_and_leaves_python(mutation):
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.before) == 1
    ast.parse(source.replace(mutation.before, mutation.after))
