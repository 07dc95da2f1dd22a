"""The columns that formatters, user names and env add: the same as the ecosystem's, in the same order."""

import json
import struct
from contextlib import ExitStack
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest

from igrun.btf import Enumeration
from igrun.engine.reference import ENGINE
from igrun.host import Host
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, env, formatters, uidgid
from igrun.program import Plan
from igrun.record import (
    Batch,
    DataSource,
    Derived,
    Duration,
    Facts,
    Field,
    Framing,
    Kind,
    Lookup,
    Region,
    Side,
    Size,
    Time,
    WallClock,
)

NONE = GadgetMetadata.parse(b"name: test\n", strict=False)


def host(machine: str = "x86_64", root: Path = Path("/nonexistent")) -> Host:
    return Host(root, machine, "6.12.0", {}, 1000, frozenset(), "none", 4096, (0,), (0,), None)


def given(source: DataSource, metadata: GadgetMetadata = NONE, enums=(), **values: str) -> Given:
    program = SimpleNamespace(enums={(source.name, name): enum for name, enum in dict(enums).items()})
    return Given(metadata, program, {source.name: source}, values, env={"NODE": "n1"})


def formatted(source: DataSource, metadata: GadgetMetadata = NONE, enums=()) -> DataSource:
    (step,) = formatters.bind(given(source, metadata, enums))
    return step.sources[source.name]


def field(name: str, dtype: str | None = "<u4", *types: str, place=None, **annotations: str) -> Field:
    tags = (*(f"type:{one}" for one in types), f"name:{name.rpartition('.')[2]}")
    described = {key.replace("__", "."): value for key, value in annotations.items()}
    return Field(name, dtype, place or Side(name), tags, described, described.get("columns.hidden") == "true")


def source(*fields: Field, kind: Kind = Kind.EVENTS, **annotations: str) -> DataSource:
    return DataSource("s", kind, fields, annotations)


def yaml(**fields: dict[str, str]) -> GadgetMetadata:
    described = {name.replace("__", "."): {"annotations": annotations} for name, annotations in fields.items()}
    return GadgetMetadata.parse(json.dumps({"datasources": {"s": {"fields": described}}}).encode(), strict=False)


def tables(
    *fields: Field, machine: str = "x86_64", enums=(), root: Path = Path("/nonexistent"), btf: Path | None = None
):
    (step,) = formatters.bind(given(source(*fields), enums=enums))
    with ExitStack() as stack:
        plan = Plan(None, host(machine, root), step.sources, stack, kernel_btf=str(btf) if btf else None)
        step.prepare(plan)
        return plan.tables


def shown(columns: DataSource) -> list[str]:
    ordered = sorted(columns.fields, key=lambda one: one.order)
    return [one.name for one in ordered if not one.hidden and one.dtype is not None]


# ---------------------------------------------------------------------------------------------- each format


@pytest.mark.parametrize(
    ("kind", "dtype", "rule"),
    [
        ("signal", "<u4", Lookup("signal")),
        ("errno", "<u4", Lookup("errno")),
        ("syscall", "<u8", Lookup("syscall")),
        ("timestamp", "<u8", Time()),
        ("bytes", "<u8", Size()),
        ("duration", "<u8", Duration()),
        ("file_mode", "<u4", Lookup("file_mode")),
        ("file_flags", "<u4", Lookup("file_flags")),
    ],
)
def test_a_field_of_a_known_type_gets_a_text_beside_it(kind, dtype, rule):
    out = formatted(source(field("a.x_raw", dtype, f"gadget_{kind}", "__u32"), field("other")))

    text = out.field("a.x")
    assert text.dtype == "T"
    assert text.place.rule == rule
    assert text.place.sources == (out.field("a.x_raw"),)
    assert out.field("a.x_raw").hidden
    assert not out.field("other").hidden
    assert [one.name for one in out.fields] == ["a.x_raw", "other", "a.x"]


def test_a_timestamp_is_replaced_by_wall_clock_time_in_place():
    raw = field("timestamp_raw", "<u8", "gadget_timestamp", columns__hidden="true")
    out = formatted(source(field("pid"), raw))

    assert out.fields[1].name == "timestamp_raw"
    assert out.fields[1].place == Derived((raw,), WallClock())
    assert out.field("timestamp").place.sources == (out.fields[1],)


def test_a_timestamp_may_have_its_own_layout():
    raw = field("t_raw", "<u8", "gadget_timestamp", **{"formatters.timestamp.format": "15:04:05"})

    assert formatted(source(raw)).field("t").place.rule == Time("15:04:05")


def test_the_target_annotation_names_the_text():
    raw = field("p.latency", "<u8", "gadget_duration", **{"formatters.duration.target": "took"})

    assert formatted(source(raw)).get("p.took") is not None


def test_without_a_name_for_its_text_a_field_stays_as_it_is():
    untouched = source(field("error", "<u4", "gadget_errno"), field("t", "<u8", "gadget_timestamp"))

    assert formatted(untouched) == untouched


def test_a_name_that_is_taken_is_left_alone():
    taken = source(field("error_raw", "<u4", "gadget_errno"), field("error"))

    assert formatted(taken) == taken


@pytest.mark.parametrize("dtype", ["<u4", "(2,)<u8", "|S8", "T", None])
def test_a_field_of_another_size_or_kind_stays_as_it_is(dtype):
    other = source(field("x_raw", dtype, "gadget_bytes"))

    assert formatted(other) == other


def test_yaml_may_show_the_raw_field_and_hide_the_text():
    raw = field("error_raw", "<u4", "gadget_errno", **{"columns.hidden": "false"})
    out = formatted(source(raw), yaml(error={"columns.hidden": "true", "columns.alias": "err"}))

    assert not out.field("error_raw").hidden
    assert out.field("error").hidden
    assert out.field("error").annotations["columns.alias"] == "err"


def test_texts_have_the_widths_of_their_templates():
    out = formatted(source(field("e_raw", "<u4", "gadget_errno"), field("b_raw", "<u8", "gadget_bytes")))

    assert out.field("e").annotations["columns.width"] == "12"
    assert out.field("e").annotations["value.one-of"].startswith("EPERM, ENOENT")
    assert out.field("b").annotations["columns.alignment"] == "right"


def test_a_timestamps_text_is_hidden_by_its_template():
    out = formatted(source(field("t_raw", "<u8", "gadget_timestamp")))

    assert out.field("t").hidden


def test_a_syscalls_text_has_the_width_that_yaml_gives_it():
    out = formatted(source(field("call_raw", "<u8", "gadget_syscall")), yaml(call={"template": "syscall"}))

    assert out.field("call").annotations["columns.width"] == "18"


# ---------------------------------------------------------------------------------------------- endpoints


def endpoint(name: str, layer: int) -> tuple[Field, ...]:
    struct = f"gadget_l{layer}endpoint_t"
    fields = [
        field(name, "|V32", struct),
        field(f"{name}.addr_raw", "|V16", "gadget_ip_addr_t"),
        field(f"{name}.addr_raw.v4", "<u4", "__u32"),
        field(f"{name}.version", "|u1", "__u8"),
    ]
    if layer == 4:
        fields += [field(f"{name}.port", "<u2", "__u16"), field(f"{name}.proto_raw", "<u2", "__u16")]
    return tuple(fields)


def test_a_layer_3_endpoint_shows_its_address():
    out = formatted(source(*endpoint("dst", 3)))

    assert [one.name for one in out.fields] == ["dst", "dst.version", "dst.addr"]
    assert shown(out) == ["dst"]
    assert out.field("dst").annotations["columns.replace"] == "dst.addr"
    assert [one.name for one in out.field("dst.addr").place.sources] == ["dst.addr_raw", "dst.version"]


def test_a_layer_4_endpoint_shows_address_and_port():
    out = formatted(source(*endpoint("dst", 4)))

    assert {one.name for one in out.fields} == {
        *("dst", "dst.version", "dst.addr", "dst.port", "dst.proto_raw", "dst.proto", "dst.endpoint")
    }
    assert shown(out) == ["dst"]
    assert out.field("dst").annotations["columns.replace"] == "dst.endpoint"
    assert out.field("dst.endpoint").annotations["json.skip"] == "true"
    assert out.field("dst.endpoint").tags == ("endpoint",)
    assert out.field("dst.proto").place.rule == Lookup("protocol")


def test_an_endpoint_that_yaml_hides_stays_hidden():
    fields = endpoint("src", 4)
    hidden = field("src", "|V32", "gadget_l4endpoint_t", **{"columns.hidden": "true"})

    assert shown(formatted(source(hidden, *fields[1:]))) == []


def test_a_struct_that_only_looks_like_an_endpoint_stays_as_it_is():
    other = source(field("dst", "|V32", "gadget_l4endpoint_t"), field("dst.port", "<u2"))

    assert formatted(other) == other


# ---------------------------------------------------------------------------------------------- enumerations

COLOR = Enumeration("color", (("RED", 0), ("BLUE", 1)), False)
MODE = Enumeration("mode_set", (("R", 1), ("W", 2)), True)


def test_an_enumeration_gets_a_text():
    out = formatted(source(field("p.color_raw")), enums={"p.color_raw": COLOR})

    assert out.field("p.color").place.rule == Lookup("enum/s/p.color_raw")
    assert out.field("p.color_raw").hidden
    answers = tables(field("p.color_raw"), enums={"p.color_raw": COLOR})["enum/s/p.color_raw"]
    assert [answers(number) for number in (0, 1, 2)] == [("RED",), ("BLUE",), ("UNKNOWN",)]


def test_a_set_is_joined_by_the_annotated_separator():
    raw = field("mode", "<u4", **{"ebpf.formatter.enum": "modes", "ebpf.formatter.bitfield.separator": " "})
    out = formatted(source(raw), enums={"mode": MODE})

    assert out.get("modes") is not None
    assert tables(raw, enums={"mode": MODE})["enum/s/mode"](3) == ("R W",)


def test_an_enumeration_without_a_name_for_its_text_is_hidden_and_reported(caplog):
    out = formatted(source(field("color")), enums={"color": COLOR})

    assert [(one.name, one.hidden) for one in out.fields] == [("color", True)]
    assert "enum field color of s" in caplog.text


def test_an_enumeration_behind_a_typedef_without_a_name_for_its_text_stays_a_number(caplog):
    plain = source(field("color", "<u4", "color_t", "color"))

    assert formatted(plain, enums={"color": COLOR}) == plain
    assert caplog.text == ""


def btf(*enumerations: Enumeration) -> bytes:
    """A BTF file with these enumerations of 4 bytes each."""
    types, texts = b"", b"\0"

    def text(name: str) -> int:
        nonlocal texts
        texts += name.encode() + b"\0"
        return len(texts) - len(name) - 1

    for one in enumerations:
        members = b"".join(struct.pack("<Ii", text(name), value) for name, value in one.members)
        types += struct.pack("<III", text(one.name), 6 << 24 | len(one.members), 4) + members
    return struct.pack("<HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(texts)) + types + texts


def test_the_kernels_values_win_unless_only_the_name_is_the_same(tmp_path):
    path = tmp_path / "sys/kernel/btf/vmlinux"
    path.parent.mkdir(parents=True)
    other, newer = Enumeration("color", (("OTHER", 0),), False), Enumeration("color", (("GREEN", 0), ("RED", 7)), False)
    path.write_bytes(btf(other, newer))

    answers = tables(field("color_raw"), enums={"color_raw": COLOR}, root=tmp_path)["enum/s/color_raw"]

    assert [answers(number) for number in (0, 7, 1)] == [("GREEN",), ("RED",), ("UNKNOWN",)]


def test_the_whole_of_the_kernels_own_is_asked_although_the_program_is_loaded_with_a_part_of_it(tmp_path):
    whole, part = tmp_path / "sys/kernel/btf/vmlinux", tmp_path / "part"
    whole.parent.mkdir(parents=True)
    whole.write_bytes(btf(Enumeration("color", (("GREEN", 0), ("RED", 7)), False)))
    part.write_bytes(btf())

    answers = tables(field("color_raw"), enums={"color_raw": COLOR}, root=tmp_path, btf=part)["enum/s/color_raw"]

    assert answers(7) == ("RED",)


def test_without_kernel_btf_the_objects_values_are_used_and_that_is_said(caplog):
    answers = tables(field("color_raw"), enums={"color_raw": COLOR})["enum/s/color_raw"]

    assert answers(1) == ("BLUE",)
    assert "of the gadget, not of this kernel" in caplog.text


def test_without_enumerations_the_kernels_btf_is_not_read(caplog):
    tables(field("error_raw", "<u4", "gadget_errno"))

    assert caplog.text == ""


def test_the_parts_of_a_user_stack_are_hidden():
    stack = [field("ustack", "|V72", "gadget_user_stack", columns__hidden="true"), field("ustack.major")]

    assert shown(formatted(source(*stack, field("ustacks")))) == ["ustacks"]


# ---------------------------------------------------------------------------------------------- tables


def test_the_tables_answer_for_the_architecture_of_the_host():
    amd64, arm64 = tables(), tables(machine="aarch64")

    assert (amd64["syscall"](56), arm64["syscall"](56)) == (("SYS_CLONE",), ("SYS_OPENAT",))
    assert amd64["file_flags"](0o200000) == ("O_RDONLY|O_DIRECTORY",)
    assert arm64["file_flags"](0o200000) == ("O_RDONLY|O_DIRECT",)
    assert amd64["errno"](2) == ("ENOENT",)
    assert amd64["signal"](9) == ("SIGKILL",)
    assert amd64["protocol"](6) == ("TCP",)
    assert amd64["file_mode"](0o644) == ("-rw-r--r--",)


def test_the_engine_prints_what_the_declarations_say():
    raw = [field("error_raw", "<u4", "gadget_errno"), field("t_raw", "<u8", "gadget_timestamp"), *endpoint("dst", 4)]
    (step,) = formatters.bind(given(source(*raw)))
    with ExitStack() as stack:
        plan = Plan(None, host(), step.sources, stack)
        step.prepare(plan)
    sides = {
        "error_raw": [2, 0],
        "t_raw": [5, 6],
        "dst.addr_raw": [bytes([1, 2, 3, 4]) + bytes(12), bytes(15) + b"\1"],
        "dst.version": [4, 6],
        "dst.port": [53, 80],
        "dst.proto_raw": [17, 6],
    }
    columns = ENGINE.columns(Facts(plan.tables, plan.host.wall_minus_boot_ns))
    batch = Batch(step.sources["s"], Region(bytes(2), Framing.FIXED, 1), columns, sides=sides)

    assert list(batch.values("error")) == ["ENOENT", ""]
    assert list(batch.values("t_raw")) == [1005, 1006]
    assert list(batch.values("dst.addr")) == ["1.2.3.4", "::1"]
    assert list(batch.values("dst.endpoint")) == ["1.2.3.4:53", "::1:80"]
    assert list(batch.values("dst.proto")) == ["UDP", "TCP"]


# ---------------------------------------------------------------------------------------------- whole gadgets


def hidden(one: Field) -> Field:
    return field(one.name, one.dtype, *(tag[5:] for tag in one.tags if tag[:5] == "type:"), columns__hidden="true")


def process(name: str = "proc") -> tuple[Field, ...]:
    """struct gadget_process, with what its templates hide (of the parent everything, its second TID too)."""
    dot = f"{name}." if name else ""
    head = [hidden(field(name, "|V64", "gadget_process"))] if name else []
    return (
        *head,
        field(f"{dot}comm", "|S16", "gadget_comm"),
        field(f"{dot}pid", "<u4", "gadget_pid"),
        field(f"{dot}tid", "<u4", "gadget_tid"),
        hidden(field(f"{dot}mntns_id", "<u8", "gadget_mntns_id")),
        hidden(field(f"{dot}creds", "|V8", "gadget_creds")),
        field(f"{dot}creds.uid", "<u4", "gadget_uid"),
        field(f"{dot}creds.gid", "<u4", "gadget_gid"),
        hidden(field(f"{dot}parent", "|V24", "gadget_parent")),
        *(hidden(field(f"{dot}parent.{one}")) for one in ("comm", "pid", "tid")),
    )


TIMESTAMP = hidden(field("timestamp_raw", "<u8", "gadget_timestamp"))
GADGETS = {
    "trace_open": (
        [
            *(TIMESTAMP, *process(), field("error_raw", "<u4", "gadget_errno"), field("fd")),
            *(field("flags_raw", "<u4", "gadget_file_flags"), field("mode_raw", "<u4", "gadget_file_mode")),
            *(
                hidden(field("ustack", "|V72", "gadget_user_stack")),
                field("ustack.major"),
                field("ustack.inode", "<u8"),
            ),
            *(field("fname", "|S255"), field("fpath", "|S512")),
        ],
        {"flags": {"columns.hidden": "true"}},
        {},
    ),
    "trace_signal": (
        [
            *(TIMESTAMP, *process(), field("tpid"), field("sig_raw", "<u4", "gadget_signal")),
            field("error_raw", "<u4", "gadget_errno"),
        ],
        {},
        {},
    ),
    "snapshot_process": (process(""), {}, {}),
    "snapshot_socket": (
        [*endpoint("src", 4), *endpoint("dst", 4), field("state"), hidden(field("ino")), hidden(field("netns_id"))],
        {},
        {},
    ),
    "snapshot_file": (
        [
            *(hidden(field("mntns_id", "<u8")), field("comm", "|S16"), field("pid"), field("tid"), field("fd")),
            *(field("type_raw"), field("path", "|S256"), hidden(field("inode", "<u8"))),
            field("flags_raw", "<u4", "gadget_file_flags"),
        ],
        {},
        {"type_raw": COLOR},
    ),
    "trace_tcp": (
        [
            *(TIMESTAMP, *process(), hidden(field("netns_id")), *endpoint("src", 4), *endpoint("dst", 4)),
            *(field("type_raw"), field("error_raw", "<u4", "gadget_errno"), hidden(field("fd", "<i4"))),
            hidden(field("accept_fd", "<i4")),
        ],
        {},
        {"type_raw": COLOR},
    ),
    "trace_bind": (
        [
            *(TIMESTAMP, *endpoint("addr", 4), *process(), field("error_raw", "<u4", "gadget_errno")),
            *(field("opts_raw"), field("bound_dev_if")),
        ],
        {"opts": {"columns.hidden": "true"}},
        {"opts_raw": MODE},
    ),
    "top_file": (
        [
            *(hidden(field("inode", "<u8")), hidden(field("dev")), *process(), field("reads", "<u8")),
            *(field("rbytes_raw", "<u8", "gadget_bytes"), field("writes", "<u8")),
            *(field("wbytes_raw", "<u8", "gadget_bytes"), field("file", "|S512"), field("t_raw", "|u1")),
        ],
        {},
        {"t_raw": COLOR},
    ),
    "trace_ssl": (
        [
            *(TIMESTAMP, *process(), field("operation_raw"), field("latency_ns_raw", "<u8", "gadget_duration")),
            *(hidden(field("len")), field("error_raw", "<u4", "gadget_errno"), field("buf", "(8192,)|u1")),
        ],
        {},
        {"operation_raw": COLOR},
    ),
    "trace_tcpdrop": (
        [
            *(TIMESTAMP, hidden(field("netns_id")), *endpoint("src", 4), *endpoint("dst", 4)),
            *(hidden(field("mount_ns_id", "<u8")), field("comm", "|S16"), field("pid"), field("tid")),
            *(field("uid", "<u4", "gadget_uid"), field("gid", "<u4", "gadget_gid"), field("state_raw")),
            *(field("tcpflags_raw"), field("reason_raw"), hidden(field("kernel_stack_raw"))),
        ],
        {},
        {"state_raw": COLOR, "tcpflags_raw": MODE, "reason_raw": COLOR},
    ),
}


def every_step(name: str, order=(formatters, uidgid, env), **annotations: str) -> DataSource:
    fields, described, enums = GADGETS[name]
    current = source(*fields, **annotations)
    for operator in order:
        (step,) = operator.bind(given(current, yaml(**described), enums, **{"env-vars": "NODE"}))
        current = step.sources["s"]
    return current


@pytest.mark.parametrize("name", GADGETS)
def test_a_gadget_has_the_columns_of_the_ecosystem(name, captured):
    out = every_step(name)

    assert {one.name for one in out.fields if not one.name.startswith("ustack")} == captured[name].fields
    assert shown(out) == captured[name].shown


@pytest.mark.parametrize("name", GADGETS)
def test_the_order_in_which_they_are_bound_does_not_change_the_columns(name):
    annotations = {"env.fields.node": "NODE"}
    orders = list(permutations((formatters, uidgid, env)))

    outcomes = [every_step(name, order, **annotations) for order in orders]

    assert len({tuple(shown(one)) for one in outcomes}) == 1
    assert shown(outcomes[0])[-1] == "node"
    assert len({frozenset((one.name, one.hidden, one.order) for one in out.fields) for out in outcomes}) == 1


@pytest.fixture(scope="module")
def captured():
    """What the ecosystem has (0.55.1): the fields without containers and stack text, and the shown ones of them."""
    path = Path(__file__).parent / "captured_columns.json"
    said = json.loads(path.read_text())
    return {name: SimpleNamespace(fields=set(one["fields"]), shown=one["shown"]) for name, one in said.items()}
