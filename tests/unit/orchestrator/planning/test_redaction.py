import pytest

from orchestrator.planning.paths import without_secrets


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("s3://key:hush@bucket/x", "s3://…@bucket/x"),
        ("postgresql://me:hu@sh@host:5432/db is away", "postgresql://…@host:5432/db is away"),
        ("https://host/x?sig=hush&b=1 'y'", "https://host/x?… 'y'"),
        ("two: a://u:p@h and b://u:p@h", "two: a://…@h and b://…@h"),
        ("what?", "what?"),
        ("me@host and /a/path@2", "me@host and /a/path@2"),
    ],
)
def test_urls_say_no_more_than_host_and_path(text, left):
    assert without_secrets(text) == left


def test_values_of_variables_that_hold_secrets_are_left_out(monkeypatch, tmp_path):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush")
    monkeypatch.setenv("my_password", "swordfish")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("SOME_TOKEN", "true")
    monkeypatch.setenv("PLAIN", "plain words")
    said = f"hush-hush and swordfish at {tmp_path}, true, plain words"
    assert without_secrets(said) == f"… and … at {tmp_path}, true, plain words"
