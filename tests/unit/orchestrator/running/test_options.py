"""What is wrong with options is said when they are made: before MLflow, Ray or a download starts."""

import pytest

from orchestrator.running.options import RunOptions
from search_spaces.errors import ConfigError


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "head:", ":6379", "head:port", ""])
def test_an_address_that_cannot_be_one_is_refused_before_anything_starts(address):
    with pytest.raises(ConfigError, match="--address must be host:port of a Ray head, or auto"):
        RunOptions(address=address)


@pytest.mark.parametrize("address", [None, "auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_what_may_be_an_address_is_looked_for_later(address):
    assert RunOptions(address=address).address == address
