import ast
import errno
import os
import threading
from pathlib import Path

import pytest

from tasks.atomic import replacing, write_atomic, write_once


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "x.json"
    write_atomic(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x\.json'"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x.json"]


def test_an_error_inside_the_block_leaves_the_old_file_and_no_litter(tmp_path):
    path = tmp_path / "x"
    write_atomic(path, b"old")

    def stop_half_way():
        with replacing(path) as file:
            file.write(b"ne")
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        stop_half_way()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("write", [write_atomic, write_once])
def test_the_file_is_flushed_before_its_name_and_its_folder_after(tmp_path, monkeypatch, write):
    steps = []

    def spy(name):
        real = getattr(os, name)

        def call(*arguments, **options):
            if name == "fsync":
                target = os.readlink(f"/proc/self/fd/{arguments[0]}")
                steps.append("folder" if target == str(tmp_path) else "file")
            else:
                steps.append("name")
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link"):
        spy(name)
    write(tmp_path / "x", b"new")
    assert steps == ["file", "name", "folder"]


def test_of_many_that_write_once_one_wins_whole(tmp_path):
    path = tmp_path / "new" / "key"
    texts = [bytes([65 + number]) * 1000 for number in range(8)]
    threads = [threading.Thread(target=write_once, args=(path, text)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = path.read_bytes()
    assert first in texts
    write_once(path, b"late")
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["key"]
    write_once(tmp_path / "private", b"", mode=0o600)
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_without_hard_links_the_first_content_remains_too(tmp_path, monkeypatch):
    def refuse_link(*_):
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse_link)
    write_once(tmp_path / "key", b"first", mode=0o600)
    write_once(tmp_path / "key", b"late")
    assert (tmp_path / "key").read_bytes() == b"first"
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]


MOVES = ("replace", "rename", "link")


def moves_files(tree: ast.AST) -> bool:
    """Return whether code calls os.replace, os.rename or os.link, or a path's ``replace(target)``."""
    return any(
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in MOVES
        and (
            (isinstance(node.func.value, ast.Name) and node.func.value.id == "os")
            or (len(node.args) == 1 and not node.keywords)
        )
        for node in ast.walk(tree)
    )


def test_one_module_puts_files_in_place_and_one_a_whole_folder():
    root = Path(__file__).parents[3]
    modules_that_move_files = set()
    for package in ("search_spaces", "tasks", "orchestrator"):
        for path in (root / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            # Parsing all modules takes seconds. Most contain none of these method names.
            has_word = any(f".{name}(" in text for name in MOVES)
            if has_word and moves_files(ast.parse(text)):
                modules_that_move_files.add(path.relative_to(root).as_posix())
    assert modules_that_move_files == {"tasks/atomic.py", "tasks/prepared/publish.py"}


def test_a_folder_in_place_of_the_file_is_named_and_not_the_temporary_file(tmp_path):
    path = tmp_path / "results.csv"
    path.mkdir()
    with pytest.raises(IsADirectoryError, match="Is a directory") as caught:
        write_atomic(path, b"new")
    assert (caught.value.filename, caught.value.filename2) == (str(path), None)
    assert list(tmp_path.iterdir()) == [path]
