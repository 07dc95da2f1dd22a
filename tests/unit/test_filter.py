"""`--filter`: what it keeps, and what it refuses."""

import operator
import re

import pytest
from hypothesis import given as always
from hypothesis import strategies as st

from igrun.engine.reference import ENGINE
from igrun.errors import ParamError
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, Stage
from igrun.operators import filter as filters
from igrun.record import And, Batch, Compare, DataSource, Facts, Field, Framing, Kind, Matches, Not, Region, Side

FIELDS = {
    "pid": "<u4",
    "delta": "<i2",
    "tiny": "|i1",
    "big": "<u8",
    "ratio": "<f8",
    "narrow": "<f4",
    "ok": "?",
    "comm": "|S16",
    "fname": "T",
    "buf": "O",
    "stack": "(4,)<u8",
    "src": "|V32",
}
SOURCE = DataSource(
    "open",
    Kind.EVENTS,
    tuple(
        Field(name, dtype, Side(name), annotations={"columns.replace": "src.endpoint"} if name == "src" else {})
        for name, dtype in FIELDS.items()
    ),
)


def bound(*sources: DataSource, **values: str):
    text = {key.replace("__", "."): value for key, value in values.items()}
    return filters.bind(Given(GadgetMetadata(), None, {one.name: one for one in sources}, text))


def keep(text: str):
    (step,) = bound(SOURCE, filter=text)
    return step.keep["open"]


def error(text: str) -> str:
    with pytest.raises(ParamError) as caught:
        keep(text)
    assert caught.value.key == "filter"
    return str(caught.value)


@pytest.mark.parametrize("sign", ["=", "=="])
def test_a_rule_compares_a_field_with_a_value_of_its_type(sign):
    assert keep(f"pid{sign}12") == Compare(SOURCE.field("pid"), "==", 12)
    assert keep(f"delta{sign}-5") == Compare(SOURCE.field("delta"), "==", -5)
    assert keep(f"ratio{sign}2.5e-1") == Compare(SOURCE.field("ratio"), "==", 0.25)
    assert keep(f"ok{sign}1") == Compare(SOURCE.field("ok"), "==", True)
    assert keep(f"comm{sign}cat") == Compare(SOURCE.field("comm"), "==", "cat")


def test_a_single_precision_field_is_compared_in_single_precision():
    predicate = keep("narrow==0.1")

    assert isinstance(predicate, Compare)
    assert predicate.value == 0.10000000149011612


def test_every_operator_is_known():
    comm = SOURCE.field("comm")

    assert keep("comm!=a") == Not(Compare(comm, "==", "a"))
    assert [keep(f"comm{sign}a") for sign in ("<", "<=", ">", ">=")] == [
        Compare(comm, sign, "a") for sign in ("<", "<=", ">", ">=")
    ]
    assert keep("comm~^a") == Matches(comm, "^a")
    assert keep("comm!~a") == Not(Matches(comm, "a"))


def test_rules_between_commas_must_all_hold_and_a_comma_can_be_escaped():
    assert keep(r"comm==a\,b\\c,pid>1") == And(
        (Compare(SOURCE.field("comm"), "==", "a,b\\c"), Compare(SOURCE.field("pid"), ">", 1))
    )


def test_the_value_is_taken_verbatim():
    assert keep('fname== "x=y" ') == Compare(SOURCE.field("fname"), "==", ' "x=y" ')


def test_a_field_is_found_exactly_or_without_case():
    assert keep("COMM==a") == keep("comm==a")


def test_a_backslash_before_anything_else_stands_for_itself():
    assert keep(r"comm~\d") == Matches(SOURCE.field("comm"), "[0-9]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("comm", 'incomplete filter rule: "comm"'),
        ("comm==", 'incomplete filter rule: "comm=="'),
        ("comm=~a", 'invalid operation: "=~"'),
        ("comm===a", 'invalid operation: "==="'),
        ("nope==a", 'field "nope" not found in datasource open'),
        ("pid~1", "regex based filtering can only be used on strings"),
        ("ok~1", "regex based filtering can only be used on strings"),
        ("comm~(", 'invalid regular expression: "("'),
        ("comm~(?=a)", 'invalid regular expression: "(?=a)"'),
        ("ok>1", "boolean values can only be filtered by exact match"),
        ("ok==yes", 'parsing comparison value "yes" as bool'),
        ("pid==-1", 'parsing comparison value as uint: strconv.ParseUint: parsing "-1": invalid syntax'),
        ("pid==0x10", 'parsing comparison value as uint: strconv.ParseUint: parsing "0x10": invalid syntax'),
        (
            "pid==4294967296",
            'parsing comparison value as uint: strconv.ParseUint: parsing "4294967296": value out of range',
        ),
        ("tiny==128", 'parsing comparison value as int: strconv.ParseInt: parsing "128": value out of range'),
        ("tiny== 1", 'parsing comparison value as int: strconv.ParseInt: parsing " 1": invalid syntax'),
        ("delta==1_0", 'parsing comparison value as int: strconv.ParseInt: parsing "1_0": invalid syntax'),
        ("ratio==x", 'parsing comparison value as float: strconv.ParseFloat: parsing "x": invalid syntax'),
        ("ratio==1e999", 'parsing comparison value as float: strconv.ParseFloat: parsing "1e999": value out of range'),
        ("narrow==1e39", 'parsing comparison value as float: strconv.ParseFloat: parsing "1e39": value out of range'),
        ("buf==a", "unsupported field type for comparison: bytes"),
        ("stack==1", "unsupported field type for comparison: array"),
        ("src==1.1.1.1:53", "unsupported field type for comparison: bytes"),
    ],
)
def test_a_wrong_rule_is_refused(text, message):
    assert error(text) == message


def test_the_limits_of_a_type_are_still_in_range():
    assert keep("tiny==-128") == Compare(SOURCE.field("tiny"), "==", -128)
    assert keep("big==18446744073709551615") == Compare(SOURCE.field("big"), "==", 2**64 - 1)
    assert keep("ratio==-inf") == Compare(SOURCE.field("ratio"), "==", float("-inf"))


def test_the_hint_for_an_endpoint_names_the_field_to_use():
    with pytest.raises(ParamError) as caught:
        keep("src==1.1.1.1:53")

    assert caught.value.hint == "use src.endpoint"


def test_a_number_of_thousands_of_digits_is_out_of_range():
    assert "value out of range" in error("big==" + "9" * 10_000)


def test_without_a_filter_there_is_no_step():
    assert bound(SOURCE) == ()
    assert bound(SOURCE, filter=",") == ()


def test_filters_of_a_source_and_of_all_must_both_hold():
    (step,) = bound(SOURCE, filter="pid>1", filter__open="pid<9")

    pid = SOURCE.field("pid")
    assert step.keep["open"] == And((Compare(pid, ">", 1), Compare(pid, "<", 9)))


def test_with_two_sources_a_filter_names_its_own():
    other = DataSource("other", Kind.TABLE, SOURCE.fields)
    (step,) = bound(SOURCE, other, filter__other="pid==1")

    assert set(step.keep) == {"other"}
    with pytest.raises(ParamError, match="several data sources"):
        bound(SOURCE, other, filter="pid==1")


def test_a_source_that_is_not_shown_does_not_count():
    inner = DataSource("inner", Kind.TABLE, SOURCE.fields, referenced=False)
    (step,) = bound(SOURCE, inner, filter="pid==1")

    assert set(step.keep) == {"open"}


def test_it_stands_at_the_filter_stage_with_its_flags():
    assert filters.STAGE is Stage.FILTER
    rules, expression = filters.PARAMS
    assert (rules.key, rules.alias, rules.group, rules.per_source) == ("filter", "F", "operator.filter", True)
    assert (expression.key, expression.alias) == ("filter-expr", "E")
    assert (expression.group, expression.per_source) == ("operator.filter", True)


# ---------------------------------------------------------------------------------------------- against the obvious


ROWS = st.fixed_dictionaries(
    {
        "pid": st.integers(0, 20),
        "delta": st.integers(-5, 5),
        "ratio": st.sampled_from([0.0, -1.5, 2.5, 1e300]),
        "ok": st.booleans(),
        "fname": st.text("ab,é\\", max_size=3),
    }
)
SIGNS = {
    "=": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@st.composite
def rules(draw):
    """The text of a rule, and the function of a row that it stands for."""
    name = draw(st.sampled_from(["pid", "delta", "ratio", "ok", "fname"]))
    value = draw(ROWS)[name]
    sign = draw(st.sampled_from(["=", "!="] if name == "ok" else list(SIGNS)))
    if name == "fname":
        value = draw(st.text("ab,é\\", min_size=1, max_size=3))
        text = value.replace("\\", "\\\\").replace(",", "\\,")
        compare = SIGNS[sign]
        return f"{name}{sign}{text}", lambda row: compare(row[name].encode(), value.encode())
    compare = SIGNS[sign]
    text = str(value).lower() if name == "ok" else str(value)
    return f"{name}{sign}{text}", lambda row: compare(row[name], value)


@always(st.lists(ROWS, max_size=8), st.lists(rules(), min_size=1, max_size=4))
def test_it_keeps_the_rows_that_a_plain_comparison_keeps(rows, chosen):
    predicate = keep(",".join(text for text, _ in chosen))

    assert kept(predicate, rows) == [row for row in rows if all(test(row) for _, test in chosen)]


# RE2 expression -> the same for Python
PATTERNS = {"^a": r"\Aa", "b$": r"b\Z", r"\\d": "[0-9]", "[[:alpha:]]+": "[a-zA-Z]", "(?i)A|b": "[aAbB]", ".": "[^\n]"}


@always(st.lists(st.text("aAb1 é\n", max_size=4)), st.sampled_from(sorted(PATTERNS)))
def test_it_keeps_the_rows_whose_text_matches(texts, pattern):
    rows = [{"fname": text} for text in texts]
    matching = [row for row in rows if re.search(PATTERNS[pattern], row["fname"])]

    assert kept(keep(f"fname~{pattern}"), rows) == matching
    assert kept(keep(f"fname!~{pattern}"), rows) == [row for row in rows if row not in matching]


def kept(predicate, rows: list[dict]) -> list[dict]:
    sides = {name: [row.get(name) for row in rows] for name in FIELDS}
    region = Region(bytes(len(rows)), Framing.FIXED, 1)
    batch = Batch(SOURCE, region, ENGINE.columns(Facts({})), sides=sides)
    out = batch.where(predicate)
    assert sum(out.lost.values()) == len(rows) - len(out)
    return [rows[row] for row in out.selected]
