"""Where each record lies in a region, for every framing; any bytes at all give an answer in bounded time."""

from __future__ import annotations

from array import array
from struct import Struct

from igrun.record import Framing, Records, Region

# kernel/bpf/ringbuf.c: the header's first word is the length with two flags above it
_RING_HEADER = 8
_BUSY = 1 << 31
_DISCARD = 1 << 30
_LENGTH = _DISCARD - 1

# include/uapi/linux/perf_event.h
_PERF_HEADER = Struct("<IHH")  # type, misc, size of the whole record
_PERF_SAMPLE = 9  # PERF_RECORD_SAMPLE; with PERF_SAMPLE_RAW: u32 size, data
_RAW_SIZE = Struct("<I")


def walk(region: Region) -> Records:
    """The records of a region; busy (and all behind it), discarded, lost and malformed ones are left out."""
    match region.framing:
        case Framing.RING:
            return _ring(memoryview(region.memory).cast("B"))
        case Framing.PERF:
            return _perf(memoryview(region.memory).cast("B"))
        case Framing.FIXED:
            return _fixed(len(region.memory), region.stride)


def _ring(memory: memoryview) -> Records:
    offsets, lengths = array("Q"), array("I")
    end = len(memory)
    words = memory[: end & ~3].cast("I")
    at = 0
    while at + _RING_HEADER <= end:
        word = words[at >> 2]
        if word & _BUSY:
            break
        length = word & _LENGTH
        start = at + _RING_HEADER
        if start + length > end:
            break
        if not word & _DISCARD:
            offsets.append(start)
            lengths.append(length)
        at = start + ((length + 7) & ~7)
    return Records(offsets, lengths)


def _perf(memory: memoryview) -> Records:
    offsets, lengths = array("Q"), array("I")
    end = len(memory)
    at = 0
    while at + _PERF_HEADER.size <= end:
        kind, _, size = _PERF_HEADER.unpack_from(memory, at)
        if size < _PERF_HEADER.size or at + size > end:
            break
        start = at + _PERF_HEADER.size + _RAW_SIZE.size
        if kind == _PERF_SAMPLE and start <= at + size:
            (length,) = _RAW_SIZE.unpack_from(memory, at + _PERF_HEADER.size)
            if start + length <= at + size:
                offsets.append(start)
                lengths.append(length)
        at += size
    return Records(offsets, lengths)


def _fixed(end: int, stride: int) -> Records:
    count = end // stride if stride > 0 else 0
    if count == 0:
        return Records(array("Q"), array("I"))
    return Records(array("Q", range(0, count * stride, stride)), array("I", [stride]) * count)
