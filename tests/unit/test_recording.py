"""Recordings: what was read comes back, and nothing in a file is trusted."""

import json
import os
import random
import struct
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun import recording
from igrun.engine.reference import ENGINE
from igrun.errors import GadgetError
from igrun.host import Host
from igrun.image import GadgetImage
from igrun.metadata import GadgetMetadata
from igrun.record import TICK, At, Batch, DataSource, Derived, Facts, Field, Framing, Kind, Lookup, Reason, Region
from igrun.recording import MAGIC, Answers, Recorder, Recording, coded, decoded, set_zone

RAW = Field("n", "<u4", At(0))
NAME = Field("name", "T", Derived((RAW,), Lookup("names")))
SOURCE = DataSource("s", Kind.EVENTS, (RAW, NAME), size=4)
SOURCES = {"s": SOURCE}
IMAGE = GadgetImage(GadgetMetadata(name="x"), b"name: x\n", b"ELF", None, None, "sha256:1")
FACTS = Facts({"names": lambda key: (f"name {key}", b"\xff")}, 5)


def batch(*numbers: int, **more) -> Batch:
    memory = b"".join(struct.pack("<II", 4, 0) + struct.pack("<I4x", number) for number in numbers)
    return Batch(SOURCE, Region(memory, Framing.RING), ENGINE.columns(FACTS), **more)


def recorded(path: Path, *batches: Batch, ends: bool = True) -> Path:
    recorder = Recorder(path, IMAGE, Host.current(), SOURCES, FACTS.tables)
    assert list(recorder.taken(iter(batches))) == list(batches)
    if ends:
        recorder.end({"s": {Reason.KERNEL: 3}}, 7)
    recorder.close()
    return path


def played(path: Path) -> tuple[Recording, list[Batch], Answers]:
    answers = Answers()
    with Recording(path) as one:
        facts = Facts(answers, one.host.wall_minus_boot_ns)
        return one, list(one.batches(SOURCES, ENGINE.columns(facts), answers.known)), answers


def test_what_was_read_comes_back(tmp_path):
    tick = Batch(TICK, Region(b"", Framing.RING))
    first, second = batch(1, 2, lost={Reason.KERNEL: 4}), batch(2, 3)
    one, found, answers = played(recorded(tmp_path / "x", first, tick, second))

    assert [one.source.name for one in found] == ["s", "", "s"]
    assert [bytes(one.region.memory) for one in found if one.source.name] == [first.region.memory, second.region.memory]
    assert found[0].lost == {Reason.KERNEL: 4}
    assert list(found[0].values("name")) == ["name 1", "name 2"]
    assert answers["names"](3) == ("name 3", b"\xff")
    assert (one.untold(), one.missed, one.truncated) == ({"s": {Reason.KERNEL: 3}}, 7, False)
    assert one.image.metadata.name == "x"
    assert (one.image.ebpf, one.image.wasm, one.image.digest) == (b"ELF", None, "sha256:1")
    assert one.host.wall_minus_boot_ns == Host.current().wall_minus_boot_ns or one.host.machine


def test_each_answer_is_asked_for_once_and_written_before_who_asks(tmp_path):
    asked = []

    def table(key):
        asked.append(key)
        return (str(key),)

    recorder = Recorder(tmp_path / "x", IMAGE, Host.current(), SOURCES, {"names": table})
    for one in (batch(1, 2, 1), batch(2, 3)):
        recorder.add(one)
    recorder.close()

    assert sorted(asked) == [1, 2, 3]


def test_a_key_that_was_never_asked_about_is_its_own_answer():
    assert Answers()["names"](9)[0] == "9"


def test_a_run_that_was_killed_leaves_the_frames_that_are_whole(tmp_path):
    data = recorded(tmp_path / "x", batch(1), batch(2), ends=False).read_bytes()
    for cut in (len(data), len(data) - 1):
        (tmp_path / "cut").write_bytes(data[:cut])
        one, found, _ = played(tmp_path / "cut")
        assert one.truncated
        assert len(found) == (2 if cut == len(data) else 1)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "is no recording"),
        (b"PAR1", "is no recording"),
        (MAGIC, "is broken: it has no head"),
        (MAGIC + b"H\x02\0\0\0[]", "is broken: a frame that is no JSON"),
        (MAGIC + b"H\x02\0\0\0{}", "is broken: it has no image"),
        (MAGIC + b"H\xff\xff\xff\xff", "is broken: a frame of 4294967295 bytes"),
        (MAGIC + b'H\x0c\0\0\0{"image":{}}', "its head does not say what the machine was"),
    ],
)
def test_what_is_no_recording_is_one_clear_line(tmp_path, data, problem):
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(GadgetError, match=problem):
        Recording(tmp_path / "x")


def test_a_file_that_is_not_there_is_told(tmp_path):
    with pytest.raises(GadgetError, match="No such file"):
        Recording(tmp_path / "none")
    with pytest.raises(GadgetError, match="cannot write"):
        recorded(tmp_path / "none" / "x")


def test_a_changed_file_is_broken_or_plays_and_never_does_anything_else(tmp_path):
    whole = recorded(tmp_path / "x", batch(1, 2), batch(3)).read_bytes()
    chance = random.Random(7)
    for _ in range(600):
        data = bytearray(whole)
        for _ in range(chance.randrange(1, 5)):
            at = chance.randrange(len(MAGIC), len(data))
            data[at : at + chance.randrange(3)] = chance.randbytes(chance.randrange(3))
        (tmp_path / "changed").write_bytes(data)
        try:
            _, found, _ = played(tmp_path / "changed")
            for one in found:
                if one.source.name:
                    list(one.values("name"))
        except GadgetError:
            pass


KEYS = st.recursive(st.integers() | st.binary() | st.text(), lambda inner: st.tuples(inner, inner), max_leaves=4)


@given(KEYS | st.lists(st.integers() | st.booleans() | st.floats(allow_nan=False)))
@settings(max_examples=200)
def test_values_come_back_from_json(value):
    assert decoded(json.loads(recording.as_json(coded(value)))) == value


def test_times_are_those_of_the_machine_that_recorded(tmp_path, monkeypatch):

    monkeypatch.setenv("TZ", "XYZ-3")
    path = recorded(tmp_path / "x", batch(1))
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    with Recording(path) as one, ExitStack() as stack:
        set_zone(one, stack)
        assert time.localtime(0).tm_hour == 3
        assert os.environ["TZ"] == "XYZ-3"
        stack.close()
        assert time.localtime(0).tm_hour == 0
