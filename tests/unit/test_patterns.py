"""RE2 expressions mean the same here."""

import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.patterns import python_pattern


def matches(pattern: str, text: str) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return re.search(python_pattern(pattern), text) is not None


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        (r"^/etc/.*\.conf$", "/etc/a.conf", "/etc/a.conf\n"),
        (r"\d\w\s", "1a ", "١a "),
        (r"\bé", "xé", "é"),
        (r"a(?i)b|c", "C", "Ab"),
        (r"(a(?i)b)c", "aBc", "aBC"),
        (r"(?m)^b$", "a\nb\nc", "ab"),
        (r"(?s)a.b", "a\nb", "ab"),
        (r"a.b", "axb", "a\nb"),
        (r"x[[:alpha:]]y", "xqy", "x1y"),
        (r"x[[:^alpha:]]y", "x1y", "xqy"),
        (r"x[^\D]y", "x1y", "xqy"),
        (r"[]a]", "]", "b"),
        (r"[^]a]", "b", "]"),
        (r"[a[&~|]", "&", "b"),
        (r"\Qa.b\E", "a.b", "axb"),
        (r"\x{20ac}\x41", "€A", "€B"),
        (r"a{,3}", "a{,3}", "aaa"),
        (r"(?P<x>a)(?<y>b)", "ab", "ba"),
        (r"end\z", "the end", "end."),
    ],
)
def test_an_expression_matches_as_in_re2(pattern, yes, no):
    assert matches(pattern, yes)
    assert not matches(pattern, no)


FOREIGN = (
    *("(?=a)", "(?!a)", "(?<=a)", "(?>a)", "(?P=x)", "(?#x)", "(?U)a", "(?L)a", "(?P<1>a)"),
    *(r"\1", r"\Z", r"\p{L}", r"\u0041", "\\", "a**", "a++", "a{2}{3}", "*a", "a{1001}", "a{2,1}"),
    *("[a", "(a", "a)", "[z-a]", "[[:foo:]]"),
)


@pytest.mark.parametrize("pattern", FOREIGN)
def test_what_re2_does_not_know_is_refused(pattern):
    with pytest.raises(ValueError, match=r"\w"):
        python_pattern(pattern)


@given(st.text("ab()[]{}|*+?^$.\\-:dwsQEAzbxi1,", max_size=12))
def test_any_text_is_an_expression_or_a_value_error(text):
    try:
        pattern = python_pattern(text)
    except ValueError:
        return
    re.compile(pattern)


@given(st.text("abAB1_ é\n.*", min_size=1, max_size=8), st.text("abAB1_ é\n.*", max_size=8))
def test_escaped_text_matches_itself_only(needle, hay):
    assert matches(rf"\Q{needle}\E", hay) == (needle in hay)
