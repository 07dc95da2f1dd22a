"""`ig check`: what follows from its rows, the kernel's configuration, and what a program uses on one kernel."""

import gzip
import json
import os
from pathlib import Path

import pytest

from igrun.btf import Btf
from igrun.checking import check, concluded, config
from igrun.checking.config import Config
from igrun.checking.kernel import Kernel
from igrun.checking.table import FAILS, MISSING, UNKNOWN, WORKS, Report, Row, worst
from igrun.checking.uses import Uses
from igrun.cli import main
from igrun.cli.check import lines
from igrun.dataclass import replace
from igrun.errors import ParamError
from igrun.host import Host
from igrun.metadata import GadgetMetadata
from igrun.objects import Hook
from igrun.program import Program
from igrun.requirements.versions import helper_name
from tests.compiled import compiled

TRACEPOINT = "tracepoint/syscalls/sys_enter_openat"


def hook(program: str, section: str = TRACEPOINT, **options: str) -> Hook:
    return Hook(program, section, section.partition("/")[2], options)


def opened(source: str, yaml: str = "name: test\n") -> Program:
    return Program.open(compiled(source), GadgetMetadata.parse(yaml.encode(), strict=True))


def used(source: str, btf: Btf | None = None, constants: dict[str, bytes] | None = None) -> list[str]:
    program = opened(source)
    (one,) = program.hooks
    return [helper_name(number) for number in Uses(program, btf, constants or {}).of(one.program, one.section).helpers]


# ------------------------------------------------------------------------------------------------ conclusions


def test_what_nothing_runs_without_ends_it():
    left_out, refusals = concluded([Row("map", "events: ringbuf", MISSING, "no such type")], [hook("a")])

    assert not left_out
    assert refusals == ("map events: ringbuf: no such type",)


def test_what_is_not_needed_or_not_predicted_ends_nothing():
    rows = [
        Row("map", "events: ringbuf", MISSING, "a perf buffer is used", needed=False),
        Row("type", "tracepoint", UNKNOWN, "not tried", programs=("a",)),
    ]

    assert concluded(rows, [hook("a")]) == ({}, ())


def test_an_optional_program_is_left_out():
    rows = [Row("target", "b", MISSING, "no such function", programs=("b",))]

    left_out, refusals = concluded(rows, [hook("a"), hook("b", optional="true")])

    assert left_out == {"b": "target b: no such function"}
    assert not refusals


def test_of_alternatives_one_is_enough_and_none_is_too_few():
    hooks = [hook("a", any_of="open"), hook("b", any_of="open")]
    first, second = (Row("type", one, MISSING, "why", programs=(one,)) for one in "ab")

    assert concluded([first], hooks)[1] == ()
    assert concluded([first, second], hooks)[1] == (
        "none of the alternatives 'open' works: a: type a: why; b: type b: why",
    )


def test_a_program_is_as_good_as_the_worst_that_it_needs():
    rows = (
        Row("type", "tracepoint", WORKS, "", programs=("a", "b")),
        Row("helper", "bpf_loop", MISSING, "", programs=("b",)),
        Row("map", "m", UNKNOWN, ""),
        Row("verifier", "2 programs", UNKNOWN, ""),
    )
    report = Report("Linux 1", rows, {}, ())

    assert report.of_program("a") is UNKNOWN
    assert report.of_program("b") is MISSING
    assert worst([]) is WORKS
    assert worst([MISSING, FAILS, WORKS]) is FAILS


# ------------------------------------------------------------------------------------------------ configuration


def test_a_configuration_is_read_packed_or_not(tmp_path: Path):
    text = '# Linux\nCONFIG_BPF_SYSCALL=y\nCONFIG_NET_CLS_BPF=m\n# CONFIG_KPROBES is not set\nCONFIG_LSM="yama,bpf"\n'
    plain, packed = tmp_path / "config", tmp_path / "config.gz"
    plain.write_text(text)
    packed.write_bytes(gzip.compress(text.encode()))

    one, other = Config.at(str(plain)), Config.at(str(packed))

    assert one.values == other.values
    assert one.values == {"BPF_SYSCALL": "y", "NET_CLS_BPF": "m", "KPROBES": "n", "LSM": "yama,bpf"}
    assert [one.is_on(name) for name in ("BPF_SYSCALL", "NET_CLS_BPF", "KPROBES", "NEVER_HEARD")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("data", [b"", b"hello\n", b"\x1f\x8bnot gzip", b"\x7fELF\x02"])
def test_what_is_no_configuration_is_refused(tmp_path: Path, data: bytes):
    path = tmp_path / "config"
    path.write_bytes(data)

    with pytest.raises(ParamError, match="config"):
        Config.at(str(path))
    with pytest.raises(ParamError, match="No such file"):
        Config.at(str(tmp_path / "nothing"))


def test_the_running_kernels_configuration_is_looked_for_where_distributions_put_it(tmp_path: Path):
    assert Config.here(tmp_path, "6.1.0").values is None
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/config-6.1.0").write_text("CONFIG_BPF=y\n")

    assert Config.here(tmp_path, "6.1.0").values == {"BPF": "y"}


def rows_of(values: dict[str, str], *hooks: Hook) -> dict[str, str]:
    return {row.name: row.verdict for row in config.rows(Config(values, "here"), list(hooks))}


def test_each_type_of_program_needs_its_options():
    values = {"BPF_SYSCALL": "y", "BPF_EVENTS": "y", "KPROBES": "y", "FTRACE_SYSCALLS": "n"}

    found = rows_of(values, hook("a", TRACEPOINT), hook("b", "kprobe/vfs_read"))

    assert found == {
        "CONFIG_BPF_SYSCALL": WORKS,
        "CONFIG_BPF_EVENTS": WORKS,
        "CONFIG_FTRACE_SYSCALLS": MISSING,
        "CONFIG_KPROBES": WORKS,
        "CONFIG_KPROBE_EVENTS": MISSING,
    }


def test_of_several_ways_to_attach_one_is_enough():
    by_filter = {"BPF_SYSCALL": "y", "NET_CLS_BPF": "m", "NET_SCH_INGRESS": "m"}

    assert set(rows_of(by_filter, hook("a", "classifier/ingress/x")).values()) == {WORKS}
    assert set(rows_of({"BPF_SYSCALL": "y", "NET_XGRESS": "y"}, hook("a", "tcx/ingress")).values()) == {WORKS}
    assert MISSING in rows_of({"BPF_SYSCALL": "y"}, hook("a", "classifier/ingress/x")).values()


def test_a_configuration_that_nobody_tells_is_not_predicted():
    (row,) = config.rows(Config(None, "nowhere"), [hook("a")])

    assert row.verdict is UNKNOWN


# ------------------------------------------------------------------------------------------------ what is used

GUARDED = """
enum bpf_func_id___x { BPF_FUNC_loop___x = 1, BPF_FUNC_never___x = 2 };
const volatile bool verbose = false;
const volatile int level = 3;

SEC("raw_tp/sys_enter")
int count(void *ctx)
{
	if (bpf_core_enum_value_exists(enum bpf_func_id___x, %s))
		bpf_get_prandom_u32();
	else
		bpf_ktime_get_ns();
	if (verbose)
		bpf_get_current_pid_tgid();
	if (level > 2)
		bpf_get_smp_processor_id();
	return 0;
}
"""
CORE = "#include <bpf/bpf_core_read.h>\n"
VMLINUX = Path("/sys/kernel/btf/vmlinux")
SMALL = 'SEC("raw_tp/sys_enter") int a(void *ctx) { bpf_get_current_pid_tgid(); return 0; }'


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
@pytest.mark.parametrize(
    ("asked", "helper"), [("BPF_FUNC_loop___x", "bpf_get_prandom_u32"), ("BPF_FUNC_never___x", "bpf_ktime_get_ns")]
)
def test_what_core_and_constants_rule_out_is_not_used(asked: str, helper: str):
    btf = Btf.parse(VMLINUX.read_bytes())

    assert used(CORE + GUARDED % asked, btf) == [helper, "bpf_get_smp_processor_id"]


def test_what_nobody_decides_is_all_used():
    found = used(CORE + GUARDED % "BPF_FUNC_loop___x", None, {"verbose": b"\1", "level": bytes(4)})

    assert sorted(found) == ["bpf_get_current_pid_tgid", "bpf_get_prandom_u32", "bpf_ktime_get_ns"]


def test_values_of_the_configuration_and_structs_of_functions_are_found():
    source = """
    extern int CONFIG_HZ __kconfig;
    extern int CONFIG_NEVER __kconfig __weak;
    SEC("struct_ops/x") void start(void *ctx) {}
    SEC("raw_tp/sys_enter") int count(void *ctx) { return CONFIG_HZ + CONFIG_NEVER; }
    SEC(".struct_ops") struct tcp_congestion_ops steady = { .init = (void *)start, .name = "steady" };
    """
    program = opened(source)
    uses = Uses(program, None, {})

    assert [(one.name, one.weak) for one in uses.externs()] == [("CONFIG_HZ", False), ("CONFIG_NEVER", True)]
    assert uses.members() == {"start": ("tcp_congestion_ops", "init")}


# ------------------------------------------------------------------------------------------------ another machine


@pytest.mark.skipif(not VMLINUX.exists(), reason="this kernel has no BTF")
def test_another_machine_is_checked_by_its_files(tmp_path: Path):
    config_file = tmp_path / "config"
    config_file.write_text("CONFIG_BPF_SYSCALL=y\nCONFIG_BPF_EVENTS=y\n# CONFIG_KPROBES is not set\n")
    source = """
    SEC("kprobe/vfs_read") int probe(void *ctx) { return 0; }
    SEC("tp_btf/sys_enter") int enter(void *ctx) { return 0; }
    SEC("tp_btf/sys_entry") int entry(void *ctx) { return 0; }
    SEC("fentry/nothing_like_this") int nothing(void *ctx) { return 0; }
    """
    kernel = Kernel.of_file(Host.current(), str(VMLINUX), config=str(config_file))
    report = check(opened(source), kernel, values={})
    found = {(row.kind, row.name.partition(":")[0]): row for row in report.rows}

    assert not report.runs
    assert found["target", "enter"].verdict is WORKS
    assert found["target", "entry"].verdict is MISSING
    assert "sys_enter" in found["target", "entry"].hint
    assert found["target", "nothing"].verdict is MISSING
    assert found["type", "kprobe"].verdict is UNKNOWN
    assert found["config", "CONFIG_KPROBES"].verdict is MISSING
    assert {row.of for row in report.rows} == {"the BTF file", "the config file", "this machine", "the image"}
    assert not [row for row in report.rows if row.of == "this machine" and row.kind in ("type", "map", "helper")]


def test_a_file_that_is_no_btf_is_refused(tmp_path: Path):
    path = tmp_path / "btf"
    path.write_bytes(b"hello")

    with pytest.raises(ParamError, match="btf"):
        Kernel.of_file(Host.current(), str(path))


# ------------------------------------------------------------------------------------------------ the command


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["check", *args])
    return int(end.value.code or 0)


def test_the_command_tells_in_text_and_json(capfd: pytest.CaptureFixture[str]):
    status = run("trace_open", "-o", "json")
    told = json.loads(capfd.readouterr().out)

    assert status == (0 if told["runs"] else 1)
    assert told["image"] == "trace_open"
    assert {row["kind"] for row in told["rows"]} >= {"type", "target", "map", "helper", "BTF", "verifier"}
    assert {row["result"] for row in told["rows"]} <= {"works", "missing", "fails", "not predicted"}

    assert run("trace_open") == status
    text = capfd.readouterr().out
    assert text.startswith("WHAT ")
    assert text.count("\n") >= len(told["rows"]) + 2


def test_the_command_is_in_the_help(capfd: pytest.CaptureFixture[str]):
    assert run("--help") == 0
    text = capfd.readouterr().out

    assert "--kernel-config FILE" in text
    assert "ig check trace_open" in text


def test_a_row_that_ends_it_says_what_to_do():
    bad = Row("helper", "bpf_loop", MISSING, "this kernel does not have it", "Linux 5.17 has it", ("a",))
    report = Report("Linux 5.10", (bad,), {"a": "..."}, ("program 'a': helper bpf_loop",))

    text = "\n".join(lines(report, "mine", given=False))

    assert "this kernel does not have it (for a)" in text
    assert "Hint: Linux 5.17 has it" in text
    assert text.endswith("mine will not run on Linux 5.10:\n  program 'a': helper bpf_loop")


def test_a_kernel_that_is_not_asked_works_nowhere():
    report = check(opened(SMALL), Kernel.here(Host.current(), ask=False), values={})

    assert {row.verdict for row in report.rows if row.kind in ("type", "helper")} <= {UNKNOWN, MISSING}


def test_without_root_a_capability_is_not_predicted(monkeypatch: pytest.MonkeyPatch):
    host = replace(Host.current(), capabilities=frozenset())
    found = {}
    for user in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda user=user: user)
        report = check(opened(SMALL), Kernel.here(host), values={})
        found[user] = {row.verdict for row in report.rows if row.kind == "capability"}

    assert found == {0: {MISSING}, 1000: {UNKNOWN}}
