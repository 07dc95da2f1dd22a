"""Regular expressions are compiled when they are first used, and then behave like any other."""

import re

import pytest

from igrun.regex import regex


def test_it_does_what_the_compiled_one_does():
    text, pattern = "a1b22", r"[a-z](\d+)"

    assert regex(pattern).findall(text) == re.compile(pattern).findall(text)
    assert regex(pattern).fullmatch("a1")[1] == "1"
    assert regex(rb"(?x) a ").search(b"bab").start() == 1
    assert regex("A", re.IGNORECASE).sub("x", "aA") == "xx"
    assert regex(pattern).pattern == pattern


def test_a_mistake_is_found_at_the_first_use():
    wrong = regex("(")

    with pytest.raises(re.error):
        wrong.search("")
