"""What `ig check` finds: a row for each thing that an image needs, and what follows from all of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, NamedTuple

from igrun.dataclass import dataclass

HERE, BTF_FILE, CONFIG_FILE, IMAGE = "this machine", "the BTF file", "the config file", "the image"


class Verdict(StrEnum):
    """What is known of a thing."""

    WORKS = "works"
    MISSING = "missing"
    FAILS = "fails"
    UNKNOWN = "not predicted"

    @property
    def bad(self) -> bool:
        return self in (Verdict.MISSING, Verdict.FAILS)


WORKS, MISSING, FAILS, UNKNOWN = Verdict


class Answer(NamedTuple):
    """A verdict, why, and what can be done."""

    verdict: Verdict
    why: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """One thing that an image needs.

    kind:     type, target, map, helper, kfunc, BTF, config, capability, lockdown, memory or verifier
    programs: that need it, in the object's order; none: nothing runs without it
    needed:   False: where it is missing, something else is used
    of:       what was looked at: HERE, BTF_FILE, CONFIG_FILE or IMAGE
    """

    kind: str
    name: str
    verdict: Verdict
    why: str
    hint: str = ""
    programs: tuple[str, ...] = ()
    needed: bool = True
    of: str = HERE

    @property
    def stops(self) -> bool:
        """Whether what needs it cannot run."""
        return self.needed and self.verdict.bad


@dataclass(frozen=True, slots=True)
class Report:
    """What came out.

    kernel:   which one it is about
    left_out: program that the run can do without -> why it is not used
    refusals: why it will not run; none: it will, as far as that can be predicted
    """

    kernel: str
    rows: tuple[Row, ...]
    left_out: Mapping[str, str]
    refusals: tuple[str, ...]

    @property
    def runs(self) -> bool:
        """False: it was seen that it will not."""
        return not self.refusals

    def of_program(self, name: str) -> Verdict:
        """The worst of all that a program needs; what only the verifier knows is not counted."""
        return worst(row.verdict for row in self.rows if concerns(row, name))

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        rows = [
            {
                "kind": one.kind,
                "name": one.name,
                "result": str(one.verdict),
                "why": one.why,
                "hint": one.hint,
                "programs": list(one.programs),
                "needed": one.needed,
                "of": one.of,
            }
            for one in self.rows
        ]
        return {
            "kernel": self.kernel,
            "runs": self.runs,
            "refusals": list(self.refusals),
            "leftOut": dict(self.left_out),
            "rows": rows,
        }


def concerns(row: Row, program: str) -> bool:
    """Whether a program can run depends on it."""
    return row.needed and row.kind != "verifier" and (not row.programs or program in row.programs)


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The worst of them; WORKS where there are none."""
    order = (FAILS, MISSING, UNKNOWN, WORKS)
    return min(verdicts, key=order.index, default=WORKS)
