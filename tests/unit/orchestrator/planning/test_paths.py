"""Where a root may lie, and what is not said."""

import stat

import pytest

from orchestrator.planning.paths import RootPaths, without_secrets
from orchestrator.planning.plan import Workspace
from search_spaces.errors import ConfigError


def test_a_root_in_a_session_folder_of_ray_is_refused(tmp_path):
    session = tmp_path / "session_2026-11-25_04-16-00_123456_1"
    inside = session / "runtime_resources" / "working_dir_files" / "isweep-root"
    inside.parent.mkdir(parents=True)
    (tmp_path / "session_latest").symlink_to(session)
    (tmp_path / "results").symlink_to(inside.parent)
    for root in (inside, tmp_path / "results" / "isweep-root"):
        with pytest.raises(ConfigError, match=r"must outlive the cluster.*--root, absolute"):
            RootPaths.create(root)
    for storage in (inside, tmp_path / "results" / "stored", f"file://{inside}"):
        workspace = Workspace.open("smoke", str(tmp_path / "root"), str(storage))
        with pytest.raises(ConfigError, match=r"result store must outlive the cluster.*--storage, absolute"):
            workspace.make()
    assert not inside.exists()
    assert not (tmp_path / "root").exists()


def test_a_folder_that_is_only_called_like_a_session_is_taken(tmp_path):
    assert RootPaths.create(tmp_path / "session_1" / "root").exist


@pytest.mark.parametrize("storage", ["s3://", "s3:", "gs:///", "file://"])
def test_a_storage_without_a_place_is_no_folder_here(tmp_path, storage):
    with pytest.raises(ConfigError, match=f"--storage must name a bucket or host; found: {storage}; e.g. s3"):
        Workspace.open("smoke", str(tmp_path), storage)


def test_a_root_is_made_for_this_user_alone_and_keeps_modes_that_it_has(tmp_path):
    new, old = tmp_path / "new", tmp_path / "old"
    old.mkdir()
    old.chmod(0o750)
    for root in (new, old):
        RootPaths.create(root)
    assert [stat.S_IMODE(root.stat().st_mode) for root in (new, old)] == [0o700, 0o750]


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
