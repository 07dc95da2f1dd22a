"""What was worked out once is found again, and only what nobody else could have written."""

import os
import subprocess
import sys

import pytest

from igrun import caches
from igrun.metadata import GadgetMetadata


class Made(int):
    """Something worth keeping."""


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setattr(caches, "home", lambda: tmp_path / "cache")
    return tmp_path / "cache" / "parsed"


def never() -> Made:
    raise AssertionError("it was known")


def test_what_was_made_is_found_again(home):
    assert caches.remembered(Made, (b"one", "two"), lambda: Made(3)) == 3
    assert caches.remembered(Made, (b"one", "two"), never) == 3


def test_it_depends_on_everything_it_was_made_from(home):
    assert caches.remembered(Made, (b"ab", "c"), lambda: Made(1)) == 1
    assert caches.remembered(Made, (b"a", "bc"), lambda: Made(2)) == 2
    assert caches.remembered(bool, (b"ab", "c"), lambda: True) is True


def test_other_code_makes_its_own(home, monkeypatch):
    caches.remembered(Made, ("x",), lambda: Made(1))
    monkeypatch.setattr(caches, "code", lambda: b"newer")

    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2


@pytest.mark.parametrize("damage", [b"", b"\x80\x04", b"cos\nsystem\n", b"\x80\x04K\x07."])
def test_a_damaged_entry_is_none(home, damage):
    caches.remembered(Made, ("x",), lambda: Made(1))
    (entry,) = home.iterdir()
    entry.write_bytes(damage)

    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2


@pytest.mark.parametrize("mode", [0o620, 0o602])
def test_an_entry_that_others_can_write_is_not_read(home, mode):
    caches.remembered(Made, ("x",), lambda: Made(1))
    (entry,) = home.iterdir()
    entry.chmod(mode)

    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2


def test_a_folder_that_others_can_write_is_neither_read_nor_written(home):
    caches.remembered(Made, ("x",), lambda: Made(1))
    home.chmod(0o777)

    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2
    assert caches.remembered(Made, ("y",), lambda: Made(3)) == 3
    assert len(list(home.iterdir())) == 1


def test_a_link_is_not_followed(home, tmp_path):
    caches.remembered(Made, ("x",), lambda: Made(1))
    (entry,) = home.iterdir()
    entry.rename(tmp_path / "elsewhere")
    entry.symlink_to(tmp_path / "elsewhere")

    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2


def test_where_nothing_can_be_kept_it_is_made_each_time(home):
    home.parent.mkdir()
    home.write_text("no folder")

    assert caches.remembered(Made, ("x",), lambda: Made(1)) == 1
    assert caches.remembered(Made, ("x",), lambda: Made(2)) == 2


def test_the_oldest_go(home, monkeypatch):
    monkeypatch.setattr(caches, "MOST", 3)
    for number in range(5):
        caches.remembered(Made, (str(number),), lambda number=number: Made(number))
        for entry in home.iterdir():
            if caches.key((str(number),)) in entry.name:
                os.utime(entry, ns=(number, number))

    assert len(list(home.iterdir())) == 3
    assert caches.remembered(Made, ("4",), never) == 4
    assert caches.remembered(Made, ("0",), lambda: Made(9)) == 9


def test_a_process_that_ends_while_it_writes_leaves_no_entry(home):
    script = (
        "import os, sys; from pathlib import Path; from igrun import caches\n"
        "caches.home = lambda: Path(sys.argv[1]); os.fdopen = lambda *_: os.kill(os.getpid(), 9)\n"
        "caches.remembered(int, ('x',), lambda: 5)"
    )
    done = subprocess.run([sys.executable, "-c", script, str(home.parent)], check=False)

    assert done.returncode == -9
    assert caches.remembered(int, ("x",), lambda: 6) == 6


def test_metadata_comes_back_as_it_was(home):
    text = b"name: x\ndatasources:\n  open:\n    fields:\n      comm:\n        annotations: {columns.width: 4}\n"
    first = caches.remembered(GadgetMetadata, (text,), lambda: GadgetMetadata.parse(text, strict=False))

    assert caches.remembered(GadgetMetadata, (text,), never) == first
