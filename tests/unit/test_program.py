import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from igrun.errors import GadgetError, ImageError, MetadataError, ParamError
from igrun.metadata import GadgetMetadata
from igrun.program import Program
from igrun.record import At, Kind, Rest
from tests.compiled import HEAD, compiled

EVENTS = """
struct event { gadget_timestamp timestamp_raw; struct gadget_process proc; gadget_errno error_raw; u32 length; };
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 4096); } events SEC(".maps");
GADGET_TRACER(open, events, event);
"""
PROGRAM = 'SEC("tracepoint/syscalls/sys_enter_openat") int enter(void *ctx) { return 0; }\n'
TABLE = """
struct table_key { u32 pid; u32 __pad; }; struct table_value { u64 count; gadget_comm comm[16]; };
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 99); __type(key, struct table_key);
         __type(value, struct table_value); } counts SEC(".maps");
GADGET_MAPITER(table, counts);
"""


def yaml(text: str) -> GadgetMetadata:
    return GadgetMetadata.parse(text.encode(), strict=False)


def opened(source: str, metadata: str = "", **how) -> Program:
    return Program.open(compiled(source, **how), yaml(metadata))


def refused(source: str, problem: str, metadata: str = "", error: type[GadgetError] = ImageError) -> None:
    with pytest.raises(error) as found:
        opened(source, metadata)
    assert problem in str(found.value)
    assert str(found.value).isprintable()


def param(program: Program, key: str):
    return next(one for one in program.params if one.key == key)


def encoded(program: Program, key: str, text: str) -> bytes:
    return program.setters[key][1](text)


# ------------------------------------------------------------------------------------------------ sources


def test_a_tracer_is_a_source_of_events():
    program = opened(EVENTS + PROGRAM)
    source = program.sources["open"]

    assert (source.name, source.kind, source.size) == ("open", Kind.EVENTS, 80)
    assert [(one.source, one.map) for one in program.tracers] == [("open", "events")]
    assert [one.name for one in source.fields if "." not in one.name] == [
        "timestamp_raw",
        "proc",
        "error_raw",
        "length",
    ]
    assert source.get("proc.pid").place == At(24)
    assert program.license == "GPL"


def test_a_source_shows_by_default_what_the_ecosystem_shows():
    shown = [one.name for one in opened(EVENTS + PROGRAM).sources["open"].fields if not one.hidden]

    assert [name for name in shown if name not in ("proc.creds.uid", "proc.creds.gid")] == [
        *("proc.comm", "proc.pid", "proc.tid", "error_raw", "length")
    ]


def test_the_members_of_a_user_stack_are_not_shown():
    fields = opened(EVENTS.replace("u32 length;", "struct gadget_user_stack ustack;") + PROGRAM).sources["open"].fields

    assert all(one.hidden for one in fields if one.name.startswith("ustack"))


def test_gadget_yaml_describes_sources_and_fields():
    source = opened(
        EVENTS + PROGRAM,
        """
        datasources:
          open:
            annotations: {cli.default-output-mode: json}
            fields:
              length: {annotations: {columns.hidden: true, description: Bytes}}
              proc.pid: {annotations: {columns.width: 9}}
        """,
    ).sources["open"]

    assert source.annotations["cli.default-output-mode"] == "json"
    assert source.field("length").hidden and source.field("length").annotations["description"] == "Bytes"
    assert source.field("proc.pid").annotations["columns.width"] == "9"


def test_a_map_iterator_has_the_fields_of_the_key_and_then_of_the_value():
    program = opened(TABLE + PROGRAM)
    source = program.sources["table"]

    assert (source.kind, source.size) == (Kind.TABLE, 32)
    assert [(one.name, one.place) for one in source.fields] == [("pid", At(0)), ("count", At(8)), ("comm", At(16))]
    assert [one.name for one in source.fields if "role:key" in one.tags] == ["pid"]
    found = program.map_iterators[0]
    assert (found.source, found.map, found.key_size, found.value_size) == ("table", "counts", 8, 24)


@pytest.mark.parametrize("kind", ["PERCPU_HASH", "LRU_PERCPU_HASH"])
def test_rows_of_a_per_cpu_map_end_with_the_number_of_the_cpu(kind):
    program = opened((TABLE + PROGRAM).replace("BPF_MAP_TYPE_HASH", f"BPF_MAP_TYPE_{kind}"))
    source = program.sources["table"]

    assert source.size == 40
    assert (source.fields[-1].name, source.fields[-1].dtype, source.fields[-1].place) == ("cpu", "<u8", At(32))
    assert program.map_iterators[0].per_cpu


def test_an_iterator_is_a_table():
    source = """
    struct row { u32 pid; };
    GADGET_ITER(rows, row, one, two);
    SEC("iter/task") int one(void *ctx) { return 0; }
    SEC("iter/tcp") int two(void *ctx) { return 0; }
    """
    program = opened(source)

    assert program.sources["rows"].kind is Kind.TABLE
    assert [(one.source, one.programs) for one in program.iterators] == [("rows", ("one", "two"))]
    assert program.needs_kernel_btf


def test_the_old_name_of_iterators_is_read_with_a_warning(caplog):
    program = opened("""
    struct row { u32 pid; }; struct row *keep;
    const void *gadget_snapshotter_rows___row___one;
    SEC("iter/task") int one(void *ctx) { return 0; }
    """)

    assert program.iterators[0].source == "rows"
    assert caplog.messages == ["gadget_snapshotter_ prefix is deprecated; please use gadget_iter_ instead"]


def test_what_follows_the_struct_is_a_field_if_gadget_yaml_names_it():
    names = "ebpf.rest.name: payload, ebpf.rest.len: length"
    source = opened(EVENTS + PROGRAM, f"datasources: {{open: {{annotations: {{{names}}}}}}}").sources["open"]
    rest = source.field("payload")

    assert rest.dtype == "O"
    assert rest.place == Rest(source.field("length"))
    assert source.fields[-1] == rest


def test_a_rest_whose_length_no_field_tells_is_refused():
    names = "ebpf.rest.name: payload, ebpf.rest.len: lenght"
    problem = "datasources.open.annotations.ebpf.rest.len: data source 'open' has no integer 'lenght'"

    refused(EVENTS + PROGRAM, problem, f"datasources: {{open: {{annotations: {{{names}}}}}}}", MetadataError)


def test_a_kernel_stack_needs_its_map():
    source = EVENTS.replace("u32 length;", "gadget_kernel_stack kstack_raw;") + PROGRAM
    stacks = """struct { __uint(type, BPF_MAP_TYPE_STACK_TRACE); __uint(max_entries, 9); __uint(key_size, 4);
                         __uint(value_size, 1016); } ig_kstack SEC(".maps");"""

    refused(source, "field 'kstack_raw' of data source 'open' is a gadget_kernel_stack: that needs the map ig_kstack")
    assert opened(source + stacks).sources["open"].get("kstack_raw")


def test_enumerations_are_told_by_source_and_field():
    program = opened(
        EVENTS.replace("u32 length;", "enum kind kind_raw; kind_t other; kind_t third_raw;").replace(
            "struct event", "enum kind { ONE = 1 }; typedef enum kind kind_t; struct event", 1
        )
        + PROGRAM
    )

    # one behind a typedef is shown as a number by others; as text it needs a name of its own
    assert sorted(program.enums) == [("open", "kind_raw"), ("open", "third_raw")]
    assert program.enums["open", "kind_raw"].members == (("ONE", 1),)


# ------------------------------------------------------------------------------------------------ markers


@pytest.mark.parametrize(
    ("marker", "problem"),
    [
        ("gadget_tracer_a___events", 'handling type by prefix "a___events": invalid tracer info: "a___events"'),
        ("gadget_tracer_a___none___event", 'map "none" not found in eBPF object'),
        ("gadget_tracer_a___events___none", 'finding struct "none" in eBPF object'),
        ("gadget_tracer_a___counts___event", 'map "counts" has a wrong type, expected: ringbuf or perf event array'),
        ("gadget_iter_a___event", 'invalid iterator info: "a___event"'),
        ("gadget_iter_a___event___none", 'program "none" not found in eBPF object'),
        ("gadget_iter_a___event___enter", 'program "enter" is no iterator: its section is "tracepoint/'),
        ("gadget_iter_a___none___walk", 'finding struct "none" in eBPF object'),
        ("gadget_mapiter_a", 'invalid map iterator info: "a"'),
        ("gadget_mapiter_a___none", 'map "none" not found in eBPF object'),
        ("gadget_mapiter_a___events", 'map "events" is not a hash map'),
        ("gadget_mapiter_a___plain", 'map "plain" key is not a struct'),
        ("gadget_mapiter_table___counts2", 'duplicate map iterator "table"'),
        ("gadget_mapiter_open___counts2", 'data source "open" is declared twice'),
        ("gadget_mapelem_iter_target_none___counts", 'iter target map references unknown program "none"'),
        (
            "gadget_mapelem_iter_target_enter___counts",
            'iter target map references program "enter" which is not iter/bpf_',
        ),
        ("gadget_mapelem_iter_target_walk___none", 'references unknown map "none" (for program "walk")'),
        ("gadget_mapelem_iter_target_walk___counts2", 'duplicate iter target map for program "walk"'),
        ("gadget_sk_prog_target_enter___counts", 'map "counts" is not a sockmap or sockhash, but a hash'),
        ("gadget_sk_prog_target_none___counts", 'sk target map references unknown program "none"'),
        ("gadget_param_none", 'variable "none" not found in eBPF object'),
    ],
)
def test_a_wrong_marker_is_refused(marker, problem):
    source = """
    struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 9); __type(key, u32); __type(value, u32); }
        plain SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 9); __type(key, struct table_key);
             __type(value, struct table_value); } counts2 SEC(".maps");
    SEC("iter/bpf_map_elem") int walk(void *ctx) { return 0; }
    GADGET_ITER_TARGET_MAP(walk, counts);
    """
    refused(f"{EVENTS}{TABLE}{source}{PROGRAM}const void *{marker};", problem)


def test_a_marker_that_is_no_pointer_to_const_void_is_none():
    program = opened(
        EVENTS + PROGRAM + "int gadget_tracer_a; static const void *volatile gadget_tracer_b; void *gadget_param_c;"
    )

    assert list(program.sources) == ["open"]


def test_target_maps_are_told_to_the_hooks():
    program = opened(
        TABLE + 'SEC("iter/bpf_map_elem") int walk(void *ctx) { return 0; }\nGADGET_ITER_TARGET_MAP(walk, counts);'
    )

    assert [(one.program, one.target_map) for one in program.hooks] == [("walk", "counts")]


# ------------------------------------------------------------------------------------------------ maps and programs


def test_maps_are_read_from_their_types():
    program = opened(
        TABLE
        + """
    struct { __uint(type, BPF_MAP_TYPE_PERF_EVENT_ARRAY); } perf SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_LRU_HASH); __uint(max_entries, 7); __uint(map_flags, 1); __uint(key_size, 4);
             __uint(value_size, 12); __uint(pinning, LIBBPF_PIN_BY_NAME); } sizes SEC(".maps");
    struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u8[300]); }
        area SEC(".maps");
    struct inner { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, u32); __type(value, u32); };
    struct { __uint(type, BPF_MAP_TYPE_HASH_OF_MAPS); __uint(max_entries, 2); __type(key, u64);
             __array(values, struct inner); } outer SEC(".maps");
    """
        + PROGRAM
    )
    read = {name: (one.type, one.key_size, one.value_size, one.max_entries) for name, one in program.maps.items()}

    assert read == {
        "counts": (1, 8, 24, 99),
        "perf": (4, 4, 4, 0),
        "sizes": (9, 4, 12, 7),
        "area": (2, 4, 300, 1),
        "outer": (13, 8, 0, 2),
    }
    assert (program.maps["sizes"].flags, program.maps["sizes"].pinning) == (1, 1)


def test_maps_in_the_old_form_are_refused():
    refused(
        'struct { u32 type, key; } old SEC("maps") = {1, 4};' + PROGRAM, "section 'maps' holds maps in the old form"
    )


def test_every_global_function_of_a_program_section_is_a_program():
    program = opened(
        PROGRAM
        + """
    static __attribute__((noinline)) int helper(int *n) { return *n + 1; }
    SEC("kprobe/a") int first(void *ctx) { int n = 1; return helper(&n); }
    SEC("kprobe/a") int second(void *ctx) { return 0; }
    SEC("socket1") int bare(void *ctx) { return 0; }
    """,
        "programs: {second: {attach_to: b}, first: {attach_to: gadget_program_disabled}}",
    )

    assert sorted((one.program, one.section, one.attach_to) for one in program.hooks) == [
        ("bare", "socket1", ""),
        ("enter", "tracepoint/syscalls/sys_enter_openat", "syscalls/sys_enter_openat"),
        ("first", "kprobe/a", "gadget_program_disabled"),
        ("second", "kprobe/a", "b"),
    ]


def test_the_options_of_samples_stand_under_the_name_of_their_section():
    program = opened(
        'SEC("perf_event/profiler") int sample(void *ctx) { return 0; }',
        "programs: {profiler: {sampler: {frequency: 49}, perf: {type: software, sampleType: sample_raw}}}",
    )

    assert program.hooks[0].attach_to == "profiler"
    assert program.hooks[0].options == {
        "sampler.frequency": "49",
        "perf.type": "software",
        "perf.sampleType": "sample_raw",
    }


def test_variables_have_their_initial_bytes():
    found = opened(
        PROGRAM
        + """
    const volatile u32 limit = 7; u64 counter = 9; u16 zero[3]; static volatile u8 local = 4;
    const volatile char text[4] = "ab";
    SEC("kprobe/a") int use(void *ctx) { return limit + counter + zero[0] + local + text[0]; }
    """
    ).variables

    assert {name: (one.section, one.value) for name, one in found.items()} == {
        "limit": (".rodata", b"\7\0\0\0"),
        "counter": (".data", b"\t" + bytes(7)),
        "zero": (".bss", bytes(6)),
        "local": (".data", b"\4"),
        "text": (".rodata", b"ab\0\0"),
    }


def test_core_relocations_need_the_kernels_btf():
    plain, core = (
        HEAD + "#include <bpf/bpf_core_read.h>\n" + PROGRAM,
        'SEC("kprobe/b") int core(struct pt_regs *ctx) { return bpf_core_type_exists(struct task_struct); }',
    )

    assert not opened("", head=plain).needs_kernel_btf
    assert opened(core, head=plain).needs_kernel_btf


def test_an_object_without_types_is_refused():
    with pytest.raises(ImageError, match=r"no section \.BTF") as error:
        Program.open(compiled(PROGRAM, "-g0"), yaml(""))

    assert error.value.hint == "compile with `clang -g`"


# ------------------------------------------------------------------------------------------------ params

PARAMS = """
const volatile bool flag = true; const volatile s16 small = -3; const volatile u64 big = 1ULL << 63;
const volatile float ratio = 0.5; const volatile double wide = 0.1; const volatile char name[4] = "ab";
enum mode { FAST, SLOW = 5 }; const volatile enum mode mode = SLOW; const volatile u16 ports[3] = {53, 5353};
const volatile struct gadget_l3endpoint_t addr = {}; const volatile gadget_pid targ_pid = 0;
const volatile gadget_comm targ_comm[16] = ""; const volatile bool collect_ustack = false; void *pointer;
GADGET_PARAM(flag); GADGET_PARAM(small); GADGET_PARAM(big); GADGET_PARAM(ratio); GADGET_PARAM(wide);
GADGET_PARAM(name); GADGET_PARAM(mode); GADGET_PARAM(ports); GADGET_PARAM(addr); GADGET_PARAM(targ_pid);
GADGET_PARAM(targ_comm); GADGET_PARAM(collect_ustack); GADGET_PARAM(pointer);
"""


def test_params_have_the_types_and_values_of_their_variables():
    program = opened(PARAMS + PROGRAM)
    found = {one.key: (one.type.name, one.default) for one in program.params if one.group == "operator.oci.ebpf"}

    assert found == {
        "flag": ("bool", "true"),
        "small": ("int16", "-3"),
        "big": ("uint64", str(1 << 63)),
        "ratio": ("float32", "0.5"),
        "wide": ("float64", "0.1"),
        "name": ("string", "ab"),
        "mode": ("mode", "SLOW"),
        "ports": ("[]uint16", "53,5353"),
        "addr": ("ip", "0.0.0.0"),
        "pid": ("uint32", "0"),
        "comm": ("string", ""),
        "collect-ustack": ("bool", "false"),
        "pointer": ("unknown", ""),
        "trace-pipe": ("bool", "false"),
    }
    assert param(program, "pid").description == "Show only events generated by processes with this pid"
    assert param(program, "pid").tags == ("group:Process",)


@pytest.mark.parametrize(
    ("key", "text", "raw"),
    [
        ("flag", "false", b"\0"),
        ("small", "-2", b"\xfe\xff"),
        ("big", "258", b"\2\1" + bytes(6)),
        ("ratio", "0.25", b"\0\0\x80\x3e"),
        ("wide", "2", bytes(7) + b"\x40"),
        ("name", "x", b"x\0\0\0"),
        ("name", "full", b"full"),
        ("name", "", bytes(4)),
        ("mode", "FAST", bytes(4)),
        ("mode", "5", b"\5\0\0\0"),
        ("ports", "80, 443", b"\x50\0\xbb\1\0\0"),
        ("addr", "1.2.3.4", b"\1\2\3\4" + bytes(12) + b"\4" + bytes(15)),
        ("addr", "::1", bytes(15) + b"\1\6" + bytes(15)),
        ("comm", "bash", b"bash" + bytes(12)),
    ],
)
def test_the_text_of_a_param_becomes_the_bytes_of_its_variable(key, text, raw):
    program = opened(PARAMS + PROGRAM)

    assert encoded(program, key, text) == raw
    variable = program.setters[key][0]
    assert len(raw) == program.variables[variable].size
    if raw != program.variables[variable].value:
        assert program.constants({key: text}) == {variable: raw}


@pytest.mark.parametrize(
    ("key", "text", "problem"),
    [
        ("flag", "maybe", "expected 'true' or 'false'"),
        ("small", "40000", "number out of range"),
        ("small", "x", "expected numeric value"),
        ("ratio", "1e300", "number out of range"),
        ("name", "fünf", 'string param "name" too long: 5 > 4'),
        ("mode", "MEDIUM", "expected a number or one of: FAST, SLOW"),
        ("mode", "-5", "expected a number or one of"),
        ("ports", "1,2,3,4", "4 values, there is room for 3"),
        ("ports", "1,x", "expected numeric value"),
        ("addr", "1.2.3", "is not a valid IP address"),
        ("pointer", "1", "which no text stands for"),
    ],
)
def test_a_wrong_value_is_told_with_its_flag(key, text, problem):
    with pytest.raises(ParamError) as error:
        opened(PARAMS + PROGRAM).constants({key: text})

    assert problem in str(error.value)
    assert (error.value.key, error.value.value) == (key, text)


def test_gadget_yaml_wins_over_the_object():
    program = opened(
        PARAMS + PROGRAM,
        """
        params:
          ebpf:
            small:
              {key: number, defaultValue: 12, description: Many, alias: n, title: Number, possibleValues: [12, 13]}
            flag: {key: flag, defaultValue: ""}
        """,
    )
    small = param(program, "number")

    assert (small.default, small.description, small.alias, small.title) == ("12", "Many", "n", "Number")
    assert small.choices == ("12", "13")
    assert param(program, "flag").default == "true"
    assert program.constants({}) == {"small": b"\x0c\0"}
    with pytest.raises(ParamError, match="valid values are: 12, 13"):
        program.constants({"number": "14"})


def test_what_is_not_set_is_not_written():
    assert opened(PARAMS + PROGRAM).constants({"pid": "", "trace-pipe": "true"}) == {}


def test_a_text_may_be_set_to_nothing():
    assert opened(PARAMS + PROGRAM).constants({"name": ""}) == {"name": bytes(4)}


def test_a_mandatory_param_must_be_given():
    program = opened(PARAMS + PROGRAM, "params: {ebpf: {targ_comm: {key: comm, isMandatory: true}}}")

    with pytest.raises(ParamError, match="'comm' must be given"):
        program.constants({})


def test_two_variables_with_one_key_are_refused():
    metadata = "params: {ebpf: {flag: {key: x}, small: {key: x}}}"

    refused(PARAMS + PROGRAM, 'variables "flag" and "small" are both the param "x"', metadata)


def test_only_objects_with_such_parts_have_the_flags_for_them():
    plain = {one.key for one in opened(EVENTS + PROGRAM).params}
    network = {one.key for one in opened('SEC("classifier/ingress/main") int tc(void *ctx) { return 0; }').params}
    table = {one.key: one.default for one in opened(TABLE + PROGRAM).params}

    assert plain == {"trace-pipe"}
    assert network == {"trace-pipe", "iface"}
    assert table == {"trace-pipe": "false", "map-fetch-interval": "1000ms", "map-fetch-count": "0"}


def test_a_packet_filter_is_a_flag_and_checked_before_anything_is_loaded():
    program = opened("""
    static __attribute__((noinline)) int gadget_pf_dns(void *a) { return a != 0; }
    static __attribute__((noinline)) int gadget_pf_(void *a) { return a != 0; }
    SEC("classifier/ingress/main") int tc(void *ctx) { return gadget_pf_dns(ctx) + gadget_pf_(ctx); }
    """)

    assert {(one.key, one.description) for one in program.params if one.key.startswith("pf")} == {
        *(("pf", "packet filter"), ("pf-dns", "packet filter dns"))
    }
    assert program.constants({"pf": ""}) == {}
    assert program.filters({"pf-dns": "udp port 53", "pf": " "}) == {"dns": "udp port 53"}
    with pytest.raises(ParamError, match="--pf-dns: 'prot' cannot stand here, at character 5 of 'udp prot 53'"):
        program.constants({"pf-dns": "udp prot 53"})


def test_a_variable_may_tell_the_size_of_a_map():
    program = opened(
        TABLE + "const volatile u32 counts_max_entries = 5; const volatile int nothing_max_entries = 6;"
        "GADGET_PARAM(counts_max_entries);" + PROGRAM
    )

    assert program.map_sizes({}) == {"counts": 5}
    assert program.map_sizes(program.constants({"counts_max_entries": "300"})) == {"counts": 300}


# ------------------------------------------------------------------------------------------------ at build

GOOD = """
datasources:
  open:
    fields:
      timestamp: {annotations: {description: When}}
      error: {annotations: {description: Why}}
      proc: {annotations: {description: Who}}
      proc.creds.user: {annotations: {columns.hidden: false}}
      runtime.containerName: {annotations: {columns.width: 10}}
      length: {}
params: {ebpf: {flag: {key: flag}}}
programs: {enter: {attach_to: syscalls/sys_enter_open}}
"""
FLAG = """
const volatile bool flag; GADGET_PARAM(flag); const volatile u32 other; const u32 fixed = 1; u32 loose;
static volatile const u32 own;
"""
USE = 'SEC("kprobe/x") int use(void *ctx) { return flag + other + *(volatile u32 *)&fixed + loose + own; }\n'


def checked(metadata: str, source: str = EVENTS + FLAG + USE + PROGRAM, **how) -> None:
    opened(source, metadata).check(yaml(metadata), **how)


def test_what_fits_to_the_object_passes_the_check():
    checked(GOOD)
    checked("")


@pytest.mark.parametrize(
    ("metadata", "problem", "hint"),
    [
        ("datasources: {opne: {}}", 'datasources.opne: data source "opne" not found', "did you mean open?"),
        (
            "datasources: {open: {fields: {lenght: {annotations: {description: x}}}}}",
            'datasources.open.fields.lenght: data source "open" has no field "lenght"',
            "did you mean length?",
        ),
        (
            "datasources: {open: {fields: {proc.pdi: {annotations: {description: x}}}}}",
            'datasources.open.fields.proc.pdi: data source "open" has no field "proc.pdi"',
            "did you mean proc.pid?",
        ),
        (
            "params: {ebpf: {flga: {key: x}}}",
            'params.ebpf.flga: variable "flga" not found in eBPF object',
            "did you mean flag?",
        ),
        ("params: {ebpf: {own: {key: x}}}", '"own" is not a global variable', ""),
        ("params: {ebpf: {loose: {key: x}}}", '"loose" is not const', "declare it `const volatile`"),
        ("params: {ebpf: {fixed: {key: x}}}", '"fixed" is not volatile', "declare it `const volatile`"),
        ("params: {ebpf: {other: {key: x}}}", '"other" is no param', "add GADGET_PARAM(other);"),
        ("params: {ebpf: {flag: {description: x}}}", 'param "flag" has an empty key', "add `key: flag`"),
        ("programs: {entre: {attach_to: x}}", 'programs.entre: program "entre" not found', "did you mean enter?"),
    ],
)
def test_what_does_not_fit_is_refused_at_build(metadata, problem, hint):
    with pytest.raises(MetadataError) as error:
        checked(metadata)

    assert problem in str(error.value)
    assert error.value.hint == hint


def test_a_guest_may_bring_sources_and_fields():
    checked("datasources: {other: {}, open: {fields: {call: {annotations: {description: x}}}}}", has_guest=True)


def test_a_section_that_nobody_knows_is_refused_at_build():
    program = opened('SEC("kprob/x") int a(void *ctx) { return 0; }')

    with pytest.raises(ImageError, match="section 'kprob/x' is none that can be attached") as error:
        program.check(yaml(""))
    assert error.value.hint == "did you mean kprobe?"


@pytest.mark.parametrize(
    "section", ["socket1", "kprobe.multi/x", "uprobe.s//bin/sh:main", "tp_btf/x", "xdp", "iter/task"]
)
def test_sections_that_are_known_pass_the_check(section):
    opened(f'SEC("{section}") int a(void *ctx) {{ return 0; }}').check(yaml(""))


# ------------------------------------------------------------------------------------------------ hostile

EVERYTHING = EVENTS + TABLE + PARAMS + PROGRAM


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_broken_object_gives_nothing_but_an_image_error(data):
    raw = bytearray(compiled(EVERYTHING))
    spots = [raw.find(word) for word in (b"gadget_tracer_open", b"\x9f\xeb\x01\x00", b".maps")]
    table = int.from_bytes(raw[40:48], "little")
    near = st.sampled_from(spots).flatmap(lambda spot: st.integers(spot, spot + 3000))
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(near, near, st.integers(table, len(raw) - 1), st.integers(0, len(raw) - 1)))
        raw[min(at, len(raw) - 1)] = data.draw(st.integers(0, 255))
    if data.draw(st.integers(0, 9)) == 0:
        del raw[data.draw(st.integers(0, len(raw))) :]
    try:
        program = Program.open(bytes(raw), yaml(""))
        program.check(yaml(GOOD))
        program.map_sizes(program.constants({"pid": "1"}))
    except (ImageError, MetadataError, ParamError) as error:
        assert str(error).isprintable()


def test_opening_imports_nothing_heavy(tmp_path):
    path = tmp_path / "o.o"
    path.write_bytes(compiled(EVERYTHING))
    code = f"""
import sys
from igrun.metadata import GadgetMetadata
from igrun.program import Program
Program.open(open({str(path)!r}, "rb").read(), GadgetMetadata())
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not set(done.stdout.split()) & {"numpy", "yaml", "difflib", "logging", "subprocess", "socket"}
