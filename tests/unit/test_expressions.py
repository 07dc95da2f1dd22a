"""`--filter-expr`: the language expr over the fields of a row."""

import logging
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun import engine
from igrun.engine.reference import ENGINE
from igrun.errors import ParamError
from igrun.expressions import FAILURES, ExpressionError, compiled
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, filter
from igrun.record import At, Batch, DataSource, Facts, Field, Framing, Kind, Reason, Region

VALUES = {
    "pid": ("<u4", 42),
    "ret": ("<i4", -2),
    "ratio": ("<f8", 0.5),
    "ok": ("?", True),
    "proc.comm": ("|S16", "cat"),
    "proc.parent.comm": ("|S16", "bash"),
    "fname": ("|S64", "/etc/passwd"),
    "addr": ("T", "10.1.2.3"),
    "ports": ("(3,)<u2", [80, 443, 8080]),
}
FIELDS = {name: Field(name, dtype, At(0)) for name, (dtype, _) in VALUES.items()}


def judged(text: str) -> bool:
    found = compiled(text, FIELDS.get)
    return found.judge(tuple(VALUES[field.name][1] for field in found.fields))


TRUE = """
pid == 42
pid != 43 and ret < 0
pid in [1, 42] && !(pid in 1..10)
pid not in [1, 2]
not (pid == 1) and not false
pid > 41.5
pid % 5 == 2
7 / 2 == 3.5
2 ** 3 ** 2 == 512
-pid == -42
ret == -2
1_000 == 0x3e8 and 0b11 == 3 and 0o17 == 15 and 1e3 == 1000
ratio * 2 == 1
ok
ok == true or false
proc.comm == "cat"
proc?.comm == 'cat'
proc.comm + "!" == `cat!`
fname startsWith "/etc" and fname endsWith "wd" and fname contains "pass"
fname matches "^/etc/p.*d$"
fname not matches "^/usr"
"bash" == proc.parent.comm
len(proc.comm) == 3
upper(proc.comm) == "CAT"
split(fname, "/")[1] == "etc"
fname[1:4] == "etc" and fname[:4] == "/etc" and fname[5:] == "passwd"
trimPrefix(fname, "/etc/") == "passwd"
indexOf(fname, "passwd") == 5
any(ports, {# == 443}) and all(ports, # > 1) and none(ports, {# > 9000})
count(ports, # > 100) == 2
filter(ports, # > 100)[0] == 443
sum(map(ports, # - # + 1)) == 3
ports[0] == 80 and ports[-1] == 8080
max(1, 3, 2) == 3 and min([4, 2]) == 2
addr in cidr("10.0.0.0/8", "fd00::/8")
not (addr in cidr("192.168.0.0/16"))
CidrMatches(addr, cidr("10.1.0.0/16"))
addr in cidr(proc.comm == "cat" ? "10.0.0.0/8" : "11.0.0.0/8")
pid == 42 ? ok : false
nil == nil
(nil ?? 3) == 3
int("42") == pid and string(pid) == "42" and float("0.5") == ratio
"\\x41\\u0042\\n" == "AB" + "\\n"
"a" < "b" and "é" > "z"
9223372036854775807 + 1 == 9223372036854775808
round(2.5) == 3 and floor(2.7) == 2 and ceil(2.1) == 3 and abs(ret) == 2
pid == 42 /* the answer */ and true // of all
""".strip().splitlines()


@pytest.mark.parametrize("text", TRUE)
def test_it_is_true(text):
    assert judged(text) is True
    assert judged(f"not ({text.partition('//')[0]})") is False


WRONG = {
    "nothing == 1": "unknown name nothing",
    "proc.nothing": "unknown name proc.nothing",
    "pid == ": "unexpected the end",
    "pid = 1": "unexpected '='",
    "pid": "expected a boolean expression, got int",
    "pid + 1": "expected a boolean expression",
    'pid == "42"': "int == string compares different types",
    "not pid": "not is not for int",
    "pid and ok": "and is not for int",
    "fname + 1 == ''": r"\+ is not for int",
    "fname contains 1": "contains is not for int",
    'fname matches "("': "invalid regular expression",
    "len() == 1": r"len\(\) has 0 arguments",
    "exit(1)": "unknown name exit",
    "__import__('os')": "unknown name __import__",
    'addr in cidr("10.0.0.0/99")': "cidr",
    "(pid == 1": "unexpected the end",
    "# == 1": "unexpected #",
    '"abc': "unexpected",
    "pid == 1 pid": "unexpected pid",
    "(" * 100 + "ok" + ")" * 100: "nested too deeply",
    "9" * 30 + " == 1": "more than 64 bits",
    "ok " + " " * 20000: "longer than",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: text[:30])
def test_what_is_wrong_is_told_before_anything_runs(text):
    with pytest.raises(ExpressionError, match=WRONG[text]):
        compiled(text, FIELDS.get)


@pytest.mark.parametrize(
    "text", ["pid / 0 > 1", "pid % 0 == 1", "ports[9] == 1", "addr in cidr(fname)", "len(pid) == 1"]
)
def test_a_row_without_an_answer_says_so(text):
    with pytest.raises(FAILURES):
        judged(text)


@given(st.text(st.sampled_from("pidok 01.()[]{}#\"'`\\+-*/%<>=!&|?:,notarmtches"), max_size=40))
@settings(max_examples=1500)
def test_no_text_does_anything_but_judge_or_be_refused(text):
    try:
        judged(text)
    except (ExpressionError, *FAILURES):
        pass


COMM = Field("proc.comm", "|S4", At(4), annotations={"columns.alias": "comm"})
SOURCE = DataSource("s", Kind.EVENTS, (Field("pid", "<u4", At(0)), COMM), size=8)


def kept(made, **values: str) -> tuple[list[int], dict]:
    (step,) = filter.bind(Given(GadgetMetadata(), None, {"s": SOURCE}, values))
    memory = b"".join(struct.pack("<I4s", pid, comm) for pid, comm in ((1, b"cat"), (2, b"ls"), (3, b"cat"), (0, b"x")))
    batch = Batch(SOURCE, Region(memory, Framing.FIXED, 8), made.columns(Facts({}))).where(step.keep["s"])
    return list(batch.values("pid")), batch.lost


@pytest.mark.parametrize("which", ["reference", "fast"])
def test_only_rows_for_which_it_is_true_are_kept(which):
    made = ENGINE if which == "reference" else engine.open()

    assert kept(made, **{"filter-expr": 'proc.comm == "cat" and pid > 1'}) == ([3], {Reason.FILTERED: 3})
    assert kept(made, **{"filter-expr.s": "pid in [2, 3]", "filter": "comm==cat"}) == ([3], {Reason.FILTERED: 3})
    assert kept(made, **{"filter-expr": "true"}) == ([1, 2, 3, 0], {})


def test_a_row_without_an_answer_does_not_pass_and_is_told_once(caplog):
    with caplog.at_level(logging.WARNING):
        assert kept(ENGINE, **{"filter-expr": "6 % pid == 0"})[0] == [1, 2, 3]
        assert kept(ENGINE, **{"filter-expr": "6 / pid < 4 or pid == 0"})[0] == [2, 3]

    assert [record.message.count("no answer for some rows") for record in caplog.records] == [1, 1]


def test_a_wrong_expression_is_a_wrong_flag():
    with pytest.raises(ParamError, match="filter-expr: unknown name nothing") as caught:
        kept(ENGINE, **{"filter-expr": "nothing == 1"})

    assert "pid" in caught.value.hint
