"""The headers that gadgets include compile gadget sources of the ecosystem, for both architectures."""

import io
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from igrun import data
from igrun.build.toolchain import Clang
from igrun.metadata import GadgetMetadata
from igrun.program import Program

ROOT = Path(__file__).parent.parent.parent
SDK = ROOT / "sdk" / "include"
HEADERS = sorted(path.name for path in (SDK / "gadget").glob("*.h"))
GADGETS = sorted(path.parent.name for path in (ROOT / "gadgets").glob("*/program.bpf.c"))
ARCHITECTURES = {"amd64": "x86", "arm64": "arm64"}
PROC = [
    *("proc", "proc.comm", "proc.pid", "proc.tid", "proc.mntns_id", "proc.creds", "proc.creds.uid", "proc.creds.gid"),
    *("proc.parent", "proc.parent.comm", "proc.parent.pid", "proc.parent.tid"),
]
LICENSE = 'char _license[] SEC("license") = "GPL";\n'
Compile = Callable[..., bytes]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compile]:
    """Compile C text, or a file, without a warning."""
    clang = Clang.find(os.environ)
    multiarch = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    folder = tmp_path_factory.mktemp("sdk")

    def compile_(source: str | Path, arch: str = "amd64") -> bytes:
        if isinstance(source, str):
            (folder / "source.bpf.c").write_text(source)
            source = folder / "source.bpf.c"
        command = [clang.path, "-target", "bpf", "-Wall", "-Werror", "-g", "-O2"]
        command += [f"-D__TARGET_ARCH_{ARCHITECTURES[arch]}", f"-I{SDK}/vmlinux/{arch}", f"-I{SDK}", multiarch]
        done = subprocess.run([*command, "-c", source, "-o", folder / "object.o"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return (folder / "object.o").read_bytes()

    yield compile_


def symbols(elf: bytes) -> set[str]:
    table = ELFFile(io.BytesIO(elf)).get_section_by_name(".symtab")
    return {symbol.name for symbol in table.iter_symbols()}


def test_the_headers_of_this_checkout_are_those_that_a_build_uses():
    assert (data.headers() or SDK).joinpath("gadget/types.h").read_text() == (SDK / "gadget/types.h").read_text()


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("header", HEADERS)
def test_each_header_compiles_alone(header, arch, compiled):
    compiled(f"#define GADGET_TYPE_TRACING\n#include <gadget/{header}>\n", arch)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("order", [HEADERS, HEADERS[::-1]], ids=["forwards", "backwards"])
def test_all_headers_compile_together_in_any_order(order, arch, compiled):
    wanted = "".join(
        f"#define GPU_BRIDGE_WANT_{part}\n" for part in ("META", "DEVICE", "PER_PID", "PER_PID_PER_DEVICE")
    )
    compiled(
        f"#include <vmlinux.h>\n#define GADGET_TYPE_TRACING\n{wanted}"
        + "".join(f"#include <gadget/{header}>\n" for header in order),
        arch,
    )


@pytest.mark.parametrize("header", ["sockets-map.h", "filter.h", "mntns_filter.h", "buffer.h", "packetfilter.h"])
def test_headers_for_packets_do_without_the_kernels_own_types(header, compiled):
    compiled(f"#include <linux/bpf.h>\n#define GADGET_TYPE_NETWORKING\n#include <gadget/{header}>\n")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_structs_lie_in_memory_as_the_runtime_reads_them(arch, compiled):
    layouts = {
        "struct gadget_l3endpoint_t": (32, "addr_raw 0 version 16"),
        "struct gadget_l4endpoint_t": (32, "addr_raw 0 port 16 proto_raw 18 version 20"),
        "struct gadget_creds": (8, "uid 0 gid 4"),
        "struct gadget_parent": (24, "comm 0 pid 16 tid 20"),
        "struct gadget_process": (64, "comm 0 pid 16 tid 20 mntns_id 24 creds 32 parent 40"),
        "struct gadget_user_stack": (
            72,
            "major 0 minor 4 inode 8 mtime_sec 16 mtime_nsec 24 base_addr_hash 28 stack_id 32 tgid_level0 36 "
            "pid_level0 40 pidns_level0 44 pid_level1 48 pidns_level1 52 otel_correlation_id 56 boot_timestamp 64",
        ),
        "struct gadget_socket_key": (12, "netns 0 family 4 proto 6 port 8"),
        "struct gadget_socket_value": (
            88 + 2 * 4096,
            "mntns 0 pid_tgid 8 uid_gid 16 task 24 ptask 40 sock 56 deletion_timestamp 64 ppid 72 ptid 76 ipv6only 80 "
            "optional_fields_start 88 cwd 88 exepath 4184",
        ),
        "struct gpu_meta": (32, "schema_version 0 n_devices 4 helper_pid 16 clock_offset_ns 24"),
    }
    facts = ["sizeof(union gadget_ip_addr_t) == 16", "_Alignof(union gadget_ip_addr_t) == 16"]
    for struct, (size, members) in layouts.items():
        facts.append(f"sizeof({struct}) == {size}")
        facts += [
            f"__builtin_offsetof({struct}, {member}) == {offset}"
            for member, offset in re.findall(r"(\w+) (\d+)", members)
        ]
    compiled(
        "#include <vmlinux.h>\n#include <gadget/types.h>\n#include <gadget/gpu_types.h>\n"
        + "".join(f'_Static_assert({fact}, "{fact}");\n' for fact in facts),
        arch,
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_each_macro_leaves_its_marker(arch, compiled):
    elf = compiled(
        """
        #include <vmlinux.h>
        #include <bpf/bpf_helpers.h>
        #include <gadget/buffer.h>
        #include <gadget/macros.h>
        #include <gadget/types.h>

        struct event { gadget_timestamp timestamp_raw; };

        const volatile bool wanted = true;
        GADGET_PARAM(wanted);
        GADGET_TRACER_MAP(events, 1024 * 256);
        GADGET_TRACER(open, events, event);
        GADGET_ITER(one, event, first);
        GADGET_ITER(two, event, first, second);
        GADGET_SNAPSHOTTER(three, event, first, second, third);
        GADGET_MAPITER(counts, totals);
        GADGET_ITER_TARGET_MAP(first, totals);
        GADGET_SK_TARGET_MAP(verdict, totals);
        """,
        arch,
    )

    assert symbols(elf) >= {
        "gadget_param_wanted",
        "gadget_map_tracer_events",
        "events_lost_samples",
        "gadget_tracer_open___events___event",
        "__gadget_tracer_type_open",
        "gadget_iter_one___event___first",
        "gadget_iter_two___event___first___second",
        "gadget_iter_three___event___first___second___third",
        "unusedevent_one___event",
        "unusedevent_three___event",
        "gadget_mapiter_counts___totals",
        "gadget_mapelem_iter_target_first___totals",
        "gadget_sk_prog_target_verdict___totals",
    }


@pytest.mark.parametrize("header", ["common.h", "filter.h", "mntns_filter.h"])
def test_a_gadget_has_the_macros_of_kprobes_without_asking_for_them(header, compiled):
    program = 'SEC("kprobe/vfs_open") int BPF_KPROBE(ig_open, struct path *path) { return path != 0; }\n'

    assert "ig_open" in symbols(compiled(f"#include <vmlinux.h>\n#include <gadget/{header}>\n{program}{LICENSE}"))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_gadget_that_traces_functions_compiles(arch, compiled):
    elf = compiled(
        """
        #include <vmlinux.h>
        #include <bpf/bpf_helpers.h>
        #include <bpf/bpf_tracing.h>
        #define GADGET_TYPE_TRACING
        #include <gadget/bits.bpf.h>
        #include <gadget/buffer.h>
        #include <gadget/common.h>
        #include <gadget/core_fixes.bpf.h>
        #include <gadget/filesystem.h>
        #include <gadget/filter.h>
        #include <gadget/kernel_stack_map.h>
        #include <gadget/macros.h>
        #include <gadget/maps.bpf.h>
        #include <gadget/sockets-map.h>
        #include <gadget/types.h>
        #include <gadget/user_stack_map.h>

        struct event {
            gadget_timestamp timestamp_raw;
            struct gadget_process proc;
            gadget_kernel_stack kstack_raw;
            struct gadget_user_stack ustack;
            __u64 slot;
            char path[GADGET_PATH_MAX];
        };

        struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 10); __type(key, u32); __type(value, u64); }
            counts SEC(".maps");

        GADGET_TRACER_MAP(events, 1024 * 256);
        GADGET_TRACER(calls, events, event);

        SEC("uprobe/libc:malloc")
        int BPF_UPROBE(uprobe_malloc, size_t size)
        {
            struct event *event;
            u64 mntns_id = gadget_get_mntns_id(), zero = 0;
            u32 key = get_slot_idx(size);

            if (gadget_should_discard_mntns_id(mntns_id) || gadget_should_discard_data_current())
                return 0;
            event = gadget_reserve_buf(&events, sizeof(*event));
            if (!event)
                return 0;
            gadget_process_populate(&event->proc);
            event->timestamp_raw = bpf_ktime_get_boot_ns();
            event->kstack_raw = gadget_get_kernel_stack(ctx);
            gadget_get_user_stack(ctx, &event->ustack);
            event->slot = log2(size) + get_task_state((void *)bpf_get_current_task());
            read_full_path_of_open_file_fd(0, event->path, sizeof(event->path));
            if (!bpf_map_lookup_or_try_init(&counts, &key, &zero)) {
                gadget_discard_buf(event);
                return 0;
            }
            gadget_submit_buf(ctx, &events, event, sizeof(*event));
            return 0;
        }

        SEC("perf_event/sampler")
        int sample(struct bpf_perf_event_data *ctx)
        {
            struct event event = {};

            gadget_get_user_stack(ctx, &event.ustack);
            gadget_output_buf(ctx, &events, &event, sizeof(event) - sizeof(event.path));
            return 0;
        }

        SEC("kprobe/tcp_close")
        int BPF_KPROBE(kprobe_tcp_close, struct sock *sk)
        {
            struct gadget_process proc = {};

            gadget_process_populate_from_socket(gadget_socket_lookup(sk, 1), &proc);
            return proc.pid;
        }

        SEC("raw_tracepoint/sys_enter")
        int enter(struct bpf_raw_tracepoint_args *ctx)
        {
            struct pt_regs *regs = (struct pt_regs *)ctx->args[0];

            return gadget_get_syscall_nr(regs) == gadget_get_syscall_arg(regs, 6);
        }
        """.replace("struct event event = {};", "static struct event event;")
        + LICENSE,
        arch,
    )

    assert symbols(elf) >= {
        *("gadget_heap", "gadget_filter_by_mntns", "gadget_mntns_filter_map", "gadget_sockets", "bufs"),
        *("ig_kstack", "ig_ustack", "ig_build_id", "ig_build_id_max_entries", "gadget_param_ig_build_id_max_entries"),
        *("otel_generic_params", "otel_tc_kprobe", "otel_tc_perf", "gadget_param_collect_ustack"),
        *("gadget_param_targ_pid", "gadget_param_targ_tid", "gadget_param_targ_uid", "gadget_param_targ_comm"),
    }


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_gadget_that_sees_packets_compiles(arch, compiled):
    elf = compiled(
        """
        #include <linux/bpf.h>
        #include <linux/if_ether.h>
        #include <linux/in.h>
        #include <linux/ip.h>
        #include <sys/socket.h>
        #include <bpf/bpf_helpers.h>
        #include <bpf/bpf_endian.h>
        #define GADGET_TYPE_NETWORKING
        #define GADGET_NO_BUF_RESERVE
        #include <gadget/buffer.h>
        #include <gadget/macros.h>
        #include <gadget/types.h>
        #include <gadget/sockets-map.h>
        #include <gadget/filter.h>
        #include <gadget/packetfilter.h>

        struct event { gadget_netns_id netns_id; struct gadget_l4endpoint_t src; struct gadget_process proc; };

        GADGET_TRACER_MAP(events, 1024 * 256);
        GADGET_TRACER(packets, events, event);
        GADGET_PF();
        GADGET_PF(second);

        SEC("classifier/ingress/main")
        int ingress(struct __sk_buff *skb)
        {
            struct gadget_socket_value *value = gadget_socket_lookup_with_direction(skb, true);
            void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
            struct event event;

            __builtin_memset(&event, 0, sizeof(event));
            if (!gadget_pf_matches(skb, data, end) || !gadget_pf_matches(second, skb, data, end))
                return 0;
            if (gadget_should_discard_data_by_skb(value))
                return 0;
            event.netns_id = skb->cb[0];
            gadget_process_populate_from_socket(value, &event.proc);
            gadget_output_buf(skb, &events, &event, sizeof(event));
            return 0;
        }

        SEC("socket1")
        int socket_filter(struct __sk_buff *skb)
        {
            return gadget_socket_lookup(skb) != NULL;
        }
        """
        + LICENSE,
        arch,
    )

    assert symbols(elf) >= {"gadget_pf_", "gadget_pf_second", "gadget_sockets"}
    assert "gadget_heap" not in symbols(elf)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("name", GADGETS)
def test_each_gadget_opens(name, arch, compiled):
    folder = ROOT / "gadgets" / name
    metadata = GadgetMetadata.parse((folder / "gadget.yaml").read_bytes(), strict=True)

    program = Program.open(compiled(folder / "program.bpf.c", arch), metadata)

    assert metadata.name == name
    assert len(program.hooks) > 0


@pytest.mark.parametrize(
    ("name", "source", "fields"),
    [
        (
            "trace_open",
            "open",
            ["timestamp_raw", *PROC, "error_raw", "fd", "flags_raw", "mode_raw", "ustack", "fname", "fpath"],
        ),
        (
            "trace_exec",
            "exec",
            [
                *("timestamp_raw", *PROC, "loginuid", "sessionid", "error_raw", "args_count"),
                *("tty", "tty_major", "tty_minor"),
                *("from_rootfs", "file_from_rootfs", "upper_layer", "fupper_layer", "pupper_layer", "args_size"),
                *("cwd", "file", "dev_major", "dev_minor", "inode", "ctime", "fctime", "pctime"),
                *("exepath", "parent_exepath", "args"),
            ],
        ),
        ("trace_signal", "signal", ["timestamp_raw", *PROC, "tpid", "sig_raw", "error_raw"]),
        ("snapshot_process", "processes", [field.removeprefix("proc.") for field in PROC[1:]]),
        ("snapshot_socket", "sockets", ["src", "dst", "state", "ino", "netns_id"]),
    ],
)
def test_fields_are_those_of_the_ecosystems_gadget(name, source, fields, compiled):
    folder = ROOT / "gadgets" / name
    metadata = GadgetMetadata.parse((folder / "gadget.yaml").read_bytes(), strict=True)

    found = Program.open(compiled(folder / "program.bpf.c"), metadata).sources[source].fields

    inner = re.compile(r"(ustack|src|dst)\.")
    assert [field.name for field in found if not inner.match(field.name)] == fields
