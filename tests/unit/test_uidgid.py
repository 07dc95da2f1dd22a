"""Users and groups get names from the host's files."""

import os
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import given as always
from hypothesis import strategies as st

from igrun.host import Host
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, uidgid
from igrun.program import Plan
from igrun.record import DataSource, Field, Kind, Lookup, Side

PASSWD = b"""root:x:0:0:root:/root:/bin/bash
daemon:x:1:1::/:
again:x:0:0::/:

# comment
broken
also:broken
minus:x:-2:0::/:
last:x:65534:65534::/nonexistent:/usr/sbin/nologin"""


def field(name: str, typedef: str = "gadget_uid", dtype: str = "<u4", **annotations: str) -> Field:
    described = {key.replace("__", "."): value for key, value in annotations.items()}
    return Field(name, dtype, Side(name), (f"type:{typedef}",), described)


def bound(*fields: Field, yaml: bytes = b"name: test\n"):
    source = DataSource("s", Kind.EVENTS, fields)
    (step,) = uidgid.bind(Given(GadgetMetadata.parse(yaml, strict=False), None, {"s": source}, {}))
    return step


def names(*fields: Field, yaml: bytes = b"name: test\n") -> list[str]:
    return [one.name for one in bound(*fields, yaml=yaml).sources["s"].fields[len(fields) :]]


@pytest.fixture
def root(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_bytes(PASSWD)
    (tmp_path / "etc/group").write_bytes(b"wheel:x:10:root\n")
    return tmp_path


def table(root: Path, name: str = "uid"):
    step = bound()
    host = Host(root, "x86_64", "6.12.0", {}, 0, frozenset(), "", 4096, (0,), (0,), None)
    with ExitStack() as stack:
        plan = Plan(None, host, step.sources, stack)
        step.prepare(plan)
    return plan.tables[name]


def test_ids_get_a_name_beside_them():
    source = bound(field("creds.uid"), field("creds.gid", "gadget_gid")).sources["s"]

    assert [one.name for one in source.fields] == ["creds.uid", "creds.gid", "creds.user", "creds.group"]
    assert source.field("creds.user").place.rule == Lookup("uid")
    assert source.field("creds.group").place.rule == Lookup("gid")
    assert all(one.hidden for one in source.fields)


def test_the_name_is_annotated_or_without_raw():
    assert names(field("loginuid", uidgidresolver__target="loginuser")) == ["loginuser"]
    assert names(field("tracee_uid_raw")) == ["tracee_uid"]


def test_a_second_id_under_one_parent_is_named_after_its_field():
    assert names(field("p.uid"), field("p.euid"), field("suid"), field("p.gid", "gadget_gid")) == [
        *("p.user", "p.euid_name", "user", "p.group")
    ]


def test_a_name_that_is_taken_is_not_replaced():
    user, uid_name = field("user", "gadget_comm", "|S16"), field("uid_name", "gadget_comm", "|S16")

    assert names(field("uid"), user) == ["uid_name"]
    assert names(field("uid"), user, uid_name) == []


def test_yaml_shows_what_it_wants_to_show():
    yaml = b"datasources: {s: {fields: {user: {annotations: {columns.hidden: false, columns.width: 8}}}}}"
    source = bound(field("uid", columns__hidden="false"), yaml=yaml).sources["s"]

    assert not source.field("uid").hidden
    assert not source.field("user").hidden
    assert source.field("user").annotations["columns.width"] == "8"


def test_a_field_of_another_type_stays_as_it_is():
    assert names(field("uid", "gadget_pid"), field("uids", dtype="(2,)<u4")) == []


def test_names_come_from_the_hosts_files(root):
    assert [table(root)(number) for number in (0, 1, 65534)] == [("root",), ("daemon",), ("last",)]
    assert table(root, "gid")(10) == ("wheel",)


def test_an_id_without_a_name_keeps_its_number(root):
    assert table(root)(4294967295) == ("uid:4294967295",)
    assert table(root)(-1) == ("uid:4294967295",)
    assert table(root, "gid")(1111) == ("gid:1111",)


def test_without_the_files_every_id_keeps_its_number(tmp_path):
    assert table(tmp_path)(0) == ("uid:0",)


def test_a_changed_file_is_read_again_after_a_second(root, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(uidgid, "monotonic", lambda: now[0])
    users = table(root)
    assert users(7) == ("uid:7",)
    changed = root / "etc/passwd"
    changed.write_bytes(b"seven:x:7:7::/:\n")
    os.utime(changed, ns=(1, 1))

    now[0] = 0.5
    assert users(7) == ("uid:7",)
    now[0] = 1.5
    assert users(7) == ("seven",)
    assert users(0) == ("uid:0",)


def test_an_unchanged_file_is_read_once(root, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(uidgid, "monotonic", lambda: now[0])
    users = table(root)
    users(0)
    monkeypatch.setattr(uidgid, "parsed", lambda text: {0: "other"})

    now[0] = 5.0

    assert users(0) == ("root",)


@always(st.binary(max_size=200))
def test_any_file_gives_numbers_and_names(text):
    for number, name in uidgid.parsed(text).items():
        assert number >= 0
        assert name


def test_it_looks_like_a_plug_in():
    assert uidgid.NAME == "UidGidResolver"
    assert uidgid.PARAMS == ()
