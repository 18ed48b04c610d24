"""Test that provenance is that of the code of isweep, wherever a sweep is started."""

import subprocess

import pytest

from orchestrator.results import provenance as module
from orchestrator.results.provenance import provenance


@pytest.fixture
def foreign_repository(tmp_path):
    """Make a Git repository with one commit, which is not that of isweep."""
    folder = tmp_path / "foreign"
    git = ["git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    folder.mkdir()
    for arguments in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "first"]):
        subprocess.run([*git, *arguments], check=True)
    return folder


@pytest.mark.parametrize("variable", ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_variables_of_a_git_hook_do_not_change_the_commit(
    variable, foreign_repository, monkeypatch
):
    """Git sets them for its hooks, so a sweep that a hook starts inherits them."""
    expected = module._checkout()
    values = {
        "GIT_DIR": foreign_repository / ".git",
        "GIT_WORK_TREE": foreign_repository,
        "GIT_INDEX_FILE": foreign_repository / ".git" / "index",
    }
    monkeypatch.setenv(variable, str(values[variable]))
    assert module._checkout() == expected


def test_a_program_without_a_checkout_has_no_commit(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_ROOT", tmp_path)
    monkeypatch.setattr(module, "_PACKAGE", tmp_path)
    assert module._checkout() == module._Checkout(commit="", dirty=False)


def test_an_installed_wheel_has_the_commit_that_was_stored_in_it(monkeypatch, tmp_path):
    (tmp_path / "commit.json").write_text('{"commit": "0123456789abcdef", "dirty": true}')
    monkeypatch.setattr(module, "_PACKAGE", tmp_path)
    monkeypatch.setattr(module, "code_fingerprint", lambda: "code")
    provenance.cache_clear()
    provenance_of_wheel = provenance()
    provenance.cache_clear()
    assert provenance_of_wheel.commit == "0123456789abcdef"
    assert provenance_of_wheel.code_version.endswith("+0123456789ab.dirty")
