"""The address of a Ray head, looked at before Ray is asked: it would wait where nobody listens."""

from __future__ import annotations

import socket

from search_spaces.errors import ConfigError, SetupError

ANSWER_TIMEOUT_S = 5.0
LARGEST_PORT = 65_535


def check_form(address: str) -> None:
    """Refuse what cannot be an address, before anything starts.

    Raises:
        ConfigError: when it is neither ``host:port`` nor ``auto``.
    """
    host, _, port = address.rpartition(":")
    if address != "auto" and (
        "://" in address or not host or not port.isdecimal() or int(port) > LARGEST_PORT
    ):
        raise ConfigError(
            "--address must be host:port of a Ray head, or auto",
            address,
            "on the head itself use auto; from elsewhere submit the command with `ray job submit`",
        )


def check_answers(address: str) -> str:
    """Return the address with the host's name looked up: gRPC may not know a name that this machine knows.

    Raises:
        ConfigError: when it is neither ``host:port`` nor ``auto``.
        SetupError: when nothing answers there.
    """
    check_form(address)
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as connection:
            peer = connection.getpeername()[0]
    except (OSError, OverflowError) as error:
        raise SetupError(
            "The Ray address must answer",
            f"{address}: {error}",
            "start the cluster (`ray up cluster.yaml`) or leave --address out to run on this machine",
        ) from None
    return address if ":" in peer else f"{peer}:{port}"
