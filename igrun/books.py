"""The books of a run: every record that its programs made is delivered, or counted with the reason why not.

    made + added by guests = delivered + filtered + cut + dropped by guests + grouped into other sources
                             + left where nobody read any more + lost (kernel, backlog) + invalid

holds wherever each record that finds no room in the kernel is counted; elsewhere what the kernel lost is not countable.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from igrun.record import Batch, Lost, Reason

LOSSES = (Reason.KERNEL, Reason.BACKLOG, Reason.INVALID)
"""What nobody asked for. The other reasons are somebody's wish."""
UNKNOWN = "not countable"


class Books:
    """By source.

    lost:      reason -> records that were not delivered
    lost_on:   CPU -> those of them that the kernel lost there
    delivered: records that were
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self.lost: dict[str, Counter[Reason]] = {name: Counter() for name in sources}
        self.lost_on: dict[str, Counter[int]] = {name: Counter() for name in self.lost}
        self.delivered: Counter[str] = Counter()

    def take(self, batch: Batch, delivered: int, reason: Reason) -> None:
        """A batch, of which so many rows were delivered. reason: why the others were not."""
        lost = self.lost[batch.source.name]
        if batch.lost:
            lost.update(batch.lost)
        if batch.lost_on:
            self.lost_on[batch.source.name].update(batch.lost_on)
        self.delivered[batch.source.name] += delivered
        left_out = len(batch) - delivered
        if left_out:
            lost[reason] += left_out

    def add(self, lost: Mapping[str, Lost]) -> None:
        """Records that no batch tells of."""
        for name, by_reason in lost.items():
            self.lost[name].update(by_reason)

    def made(self, source: str) -> int:
        """All records that are accounted for."""
        return self.delivered[source] + self.lost[source].total()

    def losses(self, source: str) -> Lost:
        """Those that are lost against anybody's wish, by reason."""
        return losses(self.lost[source])


def losses(lost: Lost) -> Lost:
    """Those that nobody asked for."""
    return {reason: lost[reason] for reason in LOSSES if lost.get(reason)}


def by_reason(lost: Mapping[Reason | int, int]) -> dict[Reason, int]:
    return {key: number for key, number in lost.items() if isinstance(key, Reason)}


def by_cpu(lost: Mapping[Reason | int, int]) -> dict[int, int]:
    return {key: number for key, number in lost.items() if isinstance(key, int)}


def loss_record(source: str, lost: Lost, lost_on: Mapping[int, int]) -> bytes:
    """A line of JSON among those of records, which no record can look like: no field's name begins with `@`."""
    cpus = {str(cpu): count for cpu, count in lost_on.items()}
    return said(source, **{reason.value: count for reason, count in lost.items()}, **({"cpus": cpus} if cpus else {}))


def uncountable_record(source: str) -> bytes:
    """Such a line for a source of which it cannot be known what the kernel loses."""
    return said(source, **{Reason.KERNEL.value: UNKNOWN})


def said(source: str, **more: object) -> bytes:
    import json

    return json.dumps({"@lost": {"datasource": source, **more}}, separators=(",", ":"), sort_keys=True).encode() + b"\n"
