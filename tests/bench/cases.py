"""The cases of the bench: what is made, who reads it, what of it must be so, and what it may cost."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from statistics import median

from consumers import BrokenRunError, Load, Sample

IG, C, POLL = "igrun", "C, same tick", "C, libbpf poll"
MASKED = re.compile(rb'"timestamp":"[^"]*","timestamp_raw":\d+')
TOP, WEIGHTS = 20, 1 << 20

Results = Mapping[str, Mapping[str, Sequence[Sample]]]
"""Case -> consumer -> samples."""


@dataclass(frozen=True)
class Goal:
    """text: as it is printed; met: of the results, and how much worse than the goal still is good"""

    text: str
    met: Callable[[Results, str, float], bool]


@dataclass(frozen=True)
class Case:
    """One row of the table.

    records: calls, opens or entries
    flags:   of `ig run`
    beside:  consumers in C that read the same
    base:    the case whose C figure it is compared with; "" for its own
    needs:   an output of igrun that may not be there
    file:    in {folder}, what is to be checked instead of what it prints
    spread:  how far what it prints in all may be from as many times an event, whose size was seen in the check
    """

    key: str
    name: str
    records: str
    rate: int
    flags: tuple[str, ...]
    check: Callable[[bytes, bytes], None]
    beside: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    base: str = ""
    needs: str = ""
    file: str = ""
    spread: float = 0.02

    def load(self, seconds: float) -> Load:
        return Load("opens" if self.records == "opens" else "calls", 0, seconds, self.rate)


# ---------------------------------------------------------------------------------------------- figures


def figure(results: Results, key: str, consumer: str, name: str) -> float:
    """The median of a property of the samples; NaN where there are none."""
    samples = results.get(key, {}).get(consumer, ())
    return median(getattr(one, name) for one in samples) if samples else float("nan")


def c_times(times: float, base: str = "", consumer: str = C) -> Goal:
    """At most so many times what C takes. A case that C was not measured for misses it."""

    def met(results: Results, key: str, slack: float) -> bool:
        theirs = figure(results, base or key, consumer, "us")
        return figure(results, key, IG, "us") <= times * slack * theirs

    return Goal(f"<= {times:g}x {'C' if consumer == C else consumer}", met)


def at_most(us: float) -> Goal:
    return Goal(f"<= {us:g} us", lambda results, key, slack: figure(results, key, IG, "us") <= us * slack)


def traced(times: float) -> Goal:
    """The traced program pays no more than with C. It pays little for what is lost: that does not count."""

    def met(results: Results, key: str, slack: float) -> bool:
        if figure(results, key, IG, "lost_share") > max(0.01, figure(results, key, C, "lost_share")):
            return False
        return figure(results, key, IG, "traced_us") <= times * slack * figure(results, key, C, "traced_us")

    return Goal(f"traced <= {times:g}x C's", met)


def cores(most: float) -> Goal:
    return Goal(f"<= {most:g} core", lambda results, key, slack: figure(results, key, IG, "cores") <= most * slack)


def linear(other: str) -> Goal:
    """An entry costs no more than in the other case, where there are fewer; a tenth more is noise."""

    def met(results: Results, key: str, slack: float) -> bool:
        return figure(results, key, IG, "us") <= 1.1 * slack * figure(results, other, IG, "us")

    return Goal("linear in entries", met)


def lossless(rate: int) -> Goal:
    """Nothing is lost, where so many a second were made, a twentieth less at most."""

    def met(results: Results, key: str, slack: float) -> bool:
        samples = results.get(key, {}).get(IG, ())
        return not any(one.lost for one in samples) and figure(results, key, IG, "made_rate") >= 0.95 * rate

    return Goal("no loss", met)


# ---------------------------------------------------------------------------------------------- checks


def same_lines(ours: bytes, theirs: bytes) -> None:
    """Every line is C's, but for the time."""
    equal(masked(ours), masked(theirs))


def denied_lines(ours: bytes, theirs: bytes) -> None:
    """Of C's lines those that the filter lets through."""
    equal(masked(ours), [line for line in masked(theirs) if b'"error_raw":13,' in line])


def as_many_rows(ours: bytes, theirs: bytes) -> None:
    """A header, and a row for each of C's lines that has its file's name, or the beginning of it."""
    header, *rows = ours.splitlines()
    names = [json.loads(line)["fname"] for line in theirs.decode().splitlines()]
    if b"FNAME" not in header or len(rows) != len(names):
        raise BrokenRunError(f"{len(rows)} rows of {len(names)}")
    for row, name in zip(rows, names, strict=True):
        plain = name[:16].replace("/", "").replace(".", "").isalnum() and name.isascii()
        if plain and name[:16].encode() not in row:
            raise BrokenRunError(f"{name} is not in {row.decode()}")


def tops(ours: bytes, theirs: bytes) -> None:
    """Each line has the heaviest entries in order."""
    some = 0
    for line in ours.splitlines():
        rows = json.loads(line)
        weights = [row["weight"] for row in rows]
        some += len(rows) == TOP
        if weights != sorted(weights, reverse=True) or len(rows) > TOP:
            raise BrokenRunError(f"not the first {TOP} in order: {weights}")
        if any(row["weight"] != row["number"] * 0x9E375 % WEIGHTS for row in rows):
            raise BrokenRunError("entries that were not made")
    if not some:
        raise BrokenRunError("no entries")


def arrow_rows(ours: bytes, theirs: bytes) -> None:
    import pyarrow.ipc

    same_count(pyarrow.ipc.open_stream(ours).read_all().num_rows, theirs)


def parquet_rows(ours: bytes, theirs: bytes) -> None:
    import pyarrow.parquet

    same_count(pyarrow.parquet.read_table(BytesIO(ours)).num_rows, theirs)


def same_count(rows: int, theirs: bytes) -> None:
    lines = len(theirs.splitlines())
    if rows != lines:
        raise BrokenRunError(f"{rows} rows of {lines}")


def equal(ours: list[bytes], theirs: list[bytes]) -> None:
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        if one != other:
            raise BrokenRunError(f"line {number + 1}:\n  igrun: {one.decode()}\n  C:     {other.decode()}")
    if len(ours) != len(theirs):
        raise BrokenRunError(f"{len(ours)} lines of {len(theirs)}")


def masked(text: bytes) -> list[bytes]:
    return MASKED.sub(b"TIME", text).splitlines()


# ---------------------------------------------------------------------------------------------- the cases

JSON = ("-o", "json")
TABLE = (*JSON, "--sort", "-weight", "--max-entries", str(TOP))
CASES = (
    Case(
        *("calls", "JSON, 336-byte events, flat out", "calls", 0, JSON, same_lines, (C, POLL)),
        (c_times(2), traced(1.1)),
    ),
    Case(
        *("calls-1M", "JSON, 1,000,000 a second", "calls", 1_000_000, JSON, same_lines, (C,)),
        (lossless(1_000_000),),
    ),
    Case(
        *("calls-100k", "JSON, 100,000 a second", "calls", 100_000, JSON, same_lines, (C, POLL)),
        (c_times(2.5), c_times(1, consumer=POLL), traced(1.1)),
    ),
    Case(
        *("calls-10k", "JSON, 10,000 a second", "calls", 10_000, JSON, same_lines, (C, POLL)),
        (c_times(2.5), c_times(1, consumer=POLL)),
    ),
    Case(
        *("columns", "columns, flat out", "calls", 0, ("-o", "columns"), as_many_rows),
        goals=(c_times(1, "calls"),),
        base="calls",
    ),
    Case(
        *("filter", "1.6 % pass a filter, JSON, flat out", "calls", 0, (*JSON, "-F", "error_raw==13"), denied_lines),
        goals=(c_times(0.3, "calls"),),
        base="calls",
    ),
    Case(
        *("opens", "trace_open, JSON, flat out", "opens", 0, JSON, same_lines, (C, POLL)),
        (c_times(3), at_most(0.43), traced(1.1)),
    ),
    Case(
        *("opens-100k", "trace_open, 100,000 a second", "opens", 100_000, JSON, same_lines, (C,)),
        (c_times(3), at_most(0.43)),
    ),
    Case(
        *("opens-300k", "trace_open, 300,000 a second", "opens", 300_000, JSON, same_lines, (C,)), (lossless(300_000),)
    ),
    Case(
        *("arrow", "Arrow, flat out", "calls", 0, ("-o", "arrow"), arrow_rows),
        goals=(at_most(0.8),),
        needs="arrow",
        spread=0.5,  # a batch costs some, and the batches are larger than in the check
    ),
    Case(
        *("parquet", "Parquet zstd, flat out", "calls", 0, ("-o", "parquet={folder}/out.parquet"), parquet_rows),
        goals=(at_most(1.2),),
        needs="parquet",
        file="out.parquet",
    ),
    Case(*("top-25k", "top 20 of 25,000 entries a second", "entries", 25_000, TABLE, tops, (C,))),
    Case(
        *("top", "top 20 of 100,000 entries a second", "entries", 100_000, TABLE, tops, (C,)),
        (cores(1), linear("top-25k"), lossless(100_000)),
    ),
)
