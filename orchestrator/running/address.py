"""Whether an address is that of a Ray head, found before Ray is asked: it would wait for minutes."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from search_spaces.errors import ConfigError, SetupError
from tasks.atomic import read_whole

ANSWER_TIMEOUT_S = 5.0
LARGEST_PORT = 65_535


def check_answers(address: str) -> str:
    """Return the address with the host's name looked up: gRPC may not know a name that this machine knows.

    Raises:
        ConfigError: when it is neither ``host:port`` nor ``auto``.
        SetupError: when nothing answers there, or something that is no Ray head, or no token is to be had.
    """
    check_form(address)
    _check_token()
    if address == "auto":
        return address
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=ANSWER_TIMEOUT_S) as connection:
            speaks_http2 = _speaks_http2(connection)
            peer = connection.getpeername()[0]
    except (OSError, OverflowError) as error:
        raise SetupError(
            "The Ray address must answer",
            f"{address}: {error}",
            "start the cluster (`ray up cluster.yaml`) or leave --address out to run on this machine",
        ) from None
    if not speaks_http2:
        raise SetupError(
            "The Ray address must be that of a Ray head",
            f"{address}: something else answers",
            "the head's port is 6379 unless `ray start` was told another; 8265 is the dashboard",
        )
    return address if ":" in peer else f"{peer}:{port}"


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


def _check_token() -> None:
    """Look for the token as Ray would: where it finds none, it ends the process with a stack trace."""
    asked = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    if not asked or os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()
    try:
        found = "" if read_whole(path).strip() else "is empty"
    except OSError as error:
        found = error.strerror or str(error)
    if found:
        raise SetupError(
            "With RAY_AUTH_MODE=token there must be a token",
            f"{path}: {found}",
            'see "Tokens" in docs/cluster.md, or name the file in RAY_AUTH_TOKEN_PATH',
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Tell whether a gRPC server is at the other end: for anything else Ray would wait for minutes."""
    if os.environ.get("RAY_USE_TLS") == "1":
        return True
    empty_settings = b"\0\0\0\4\0\0\0\0\0"
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + empty_settings)
    header = b""
    while len(header) < len(empty_settings) and (received := connection.recv(9 - len(header))):
        header += received
    return header[3:4] == b"\4"  # the first frame of a server is its settings too
