"""uprobes and USDT probes: in programs of the test, in containers' roots, in one file that several of them share."""

import ctypes
import logging
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from igrun import attach
from igrun.attach import inodes, uprobe
from igrun.attach.usdt import has_cookies
from igrun.bpfcall import UPROBE_MULTI, has_attach_type
from igrun.clib import PROT_READ, libc
from igrun.errors import AttachError, UnsupportedError
from igrun.host import HOST_TARGET, Target
from igrun.objects import Hook
from tests.binaries import GO, PROGRAM, WATCHED, build, build_go, objcopy, with_debug_link
from tests.counting import close_and_check, counting, hits, mine

pytestmark = pytest.mark.kernel

CONTEXT = "struct pt_regs *ctx"


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("uprobe") / "program", PROGRAM)


def run(path, *arguments, **kwargs):
    return subprocess.run([str(path), *arguments], check=True, **kwargs)


@pytest.mark.fires
@pytest.mark.parametrize(
    ("section", "times"),
    [
        ("uprobe/{}:once", 3),
        ("uretprobe/{}:once", 3),
        ("uprobe.s/{}:once", 3),
        ("uretprobe.s/{}:once", 3),
        ("uprobe/{}:hidden", 3),
        ("uprobe/{}:once+0x0", 3),
        ("uprobe.multi/{}:once", 3),
        ("uprobe.multi/{}:{{once,twice}}", 6),
        ("uprobe.multi/{}:*wice", 3),
        ("uretprobe.multi/{}:onc?", 3),
        ("uprobe.multi.s/{}:once", 3),
        ("uretprobe.multi.s/{}:once", 3),
        ("uprobe.session/{}:once", 6),
        ("uprobe.session.s/{}:once", 6),
        ("usdt/{}:test:bare", 1),
        ("usdt.s/{}:test:bare", 1),
        ("usdt/{}:test:three", 2),
    ],
)
def test_a_program_runs_while_it_is_attached_and_leaves_nothing(start, program, section, times):
    started = start(counting(section.format(program), CONTEXT))
    assert len(started.loaded.links) == 1

    run(program, "more")
    assert hits(started) == times

    started.loaded.detach()
    run(program, "more")
    assert hits(started) == times
    close_and_check(started)


def test_a_place_in_a_function_has_an_offset_or_is_one(start, program):
    started = start(counting(f"uprobe/{program}:once", CONTEXT))
    (link,) = started.loaded.links
    link.close()
    (hook,) = started.loaded.hooks
    (place,) = uprobe.places(hook, HOST_TARGET)
    hook.attach_to = f"{program}:{place.spots[0].offset:#x}"
    (same,) = uprobe.places(hook, HOST_TARGET)
    assert same == place

    link = uprobe.attach(hook, same)
    run(program)
    link.close()

    assert hits(started) == 3


@pytest.mark.parametrize("file", ["libc", "libc.so.6", "{}!libc"])
def test_a_library_is_found_by_its_name(start, program, file):
    started = start(counting(f"uprobe/{file.format(program)}:getppid", CONTEXT), constants=mine())

    ctypes.CDLL(None).getppid()

    assert hits(started) == 1
    close_and_check(started)


def test_a_cookie_reaches_the_program(start, program):
    source = counting(f"uprobe/{program}:once", CONTEXT, "bpf_get_attach_cookie(ctx) == 4711")
    started = start(source, yaml="name: test\nprograms: {count: {cookie: 4711}}\n")

    run(program)

    assert hits(started) == 3


def test_a_cookie_reaches_the_program_at_many_functions(start, program):
    source = counting(f"uprobe.multi/{program}:*ce", CONTEXT, "bpf_get_attach_cookie(ctx) == 4711")
    started = start(source, yaml="name: test\nprograms: {count: {cookie: 4711}}\n")

    run(program)

    assert hits(started) == 6


def test_many_functions_are_probed_one_by_one_where_the_kernel_cannot_do_it_at_once(start, program):
    started = start(counting(f"uprobe.multi/{program}:{{once,twice}}", CONTEXT))

    assert bool(started.loaded.hooks[0].handle.attach_type) == has_attach_type(UPROBE_MULTI)
    run(program)
    assert hits(started) == 6


# ------------------------------------------------------------------------------------------------ USDT

ARGUMENTS = """
#include <bpf/usdt.bpf.h>
struct {{
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, __s64);
}} seen SEC(".maps");

static void keep(__u32 key, __s64 value)
{{
	bpf_map_update_elem(&seen, &key, &value, 0);
}}

SEC("usdt/{}:test:three")
int BPF_USDT(three, int count, long large, int constant)
{{
	keep(0, count);
	keep(1, large);
	keep(2, constant);
	keep(3, bpf_usdt_arg_cnt(ctx) + bpf_usdt_cookie(ctx));
	return 0;
}}
"""


def seen(started):
    values = (started.loaded.map("seen").lookup(number.to_bytes(4, "little")) for number in range(4))
    return [int.from_bytes(value, "little", signed=True) for value in values]


@pytest.mark.fires
def test_the_arguments_of_a_probe_reach_the_program(start, program):
    started = start(ARGUMENTS.format(program), yaml="name: test\nprograms: {three: {cookie: 100}}\n")

    run(program, "a", "b")

    assert seen(started) == [3, -5, 42, 103]
    close_and_check(started)


def test_the_arguments_of_a_probe_at_a_fixed_address_need_no_cookies(start, tmp_path):
    program = build(tmp_path / "program", PROGRAM, "-no-pie")
    started = start(ARGUMENTS.format(program))

    run(program, "a", "b")

    assert seen(started) == [3, -5, 42, 3]
    if not has_cookies():
        numbers = started.loaded.map("__bpf_usdt_ip_to_spec_id")
        assert len(list(numbers.keys())) == 2
        started.loaded.detach()
        assert not list(numbers.keys())
    close_and_check(started)


def test_a_kernel_without_cookies_says_so_of_arguments_in_a_library(start, program):
    try:
        start(ARGUMENTS.format(program))
    except UnsupportedError as error:
        assert not has_cookies() and "5.15" in str(error)
    else:
        assert has_cookies()


def test_a_semaphore_counts_while_the_program_is_attached(start, tmp_path):
    program = build(tmp_path / "watched", WATCHED)
    assert subprocess.run([str(program)]).returncode == 0
    started = start(counting(f"usdt/{program}:test:watched", CONTEXT))

    assert subprocess.run([str(program)]).returncode == 1
    assert hits(started) == 1
    started.loaded.detach()
    assert subprocess.run([str(program)]).returncode == 0


def test_a_probe_that_is_at_more_places_than_anybody_needs_is_refused(start, tmp_path):
    source = "#include <sys/sdt.h>\nint main(void) {\n" + "STAP_PROBE(test, bare);\n" * 1025 + "return 0; }\n"
    program = build(tmp_path / "program", source)

    with pytest.raises(AttachError, match="1025 places, more than the 1024"):
        start(counting(f"usdt/{program}:test:bare", CONTEXT))


# ------------------------------------------------------------------------------------------------ stripped programs


def test_a_stripped_program_has_its_symbols_in_a_debug_file_beside_it(start, tmp_path, program):
    data = program.read_bytes()
    debug, stripped = tmp_path / "program.debug", tmp_path / "program"
    debug.write_bytes(objcopy(data, "--only-keep-debug"))
    stripped.write_bytes(objcopy(data, "--strip-all"))
    with_debug_link(stripped, debug)
    stripped.chmod(0o755)
    started = start(counting(f"uprobe/{stripped}:hidden", CONTEXT))

    run(stripped)

    assert hits(started) == 3


@pytest.mark.skipif(GO is None, reason="no Go: install it from go.dev")
def test_a_function_of_a_stripped_go_program_is_found(start, tmp_path):
    goes = build_go(tmp_path, "-ldflags=-s -w")
    started = start(counting(f"uprobe/{goes}:main.work", CONTEXT))
    run(goes)
    assert hits(started) == 3

    with pytest.raises(AttachError, match="return of a Go function"):
        start(counting(f"uretprobe/{goes}:main.work", CONTEXT))
    with pytest.raises(AttachError, match="return of a Go function"):
        start(counting(f"uretprobe.multi/{goes}:main.w*", CONTEXT))
    with pytest.raises(AttachError) as error:
        start(counting(f"uprobe/{goes}:main.wrok", CONTEXT))
    assert "main.work" in error.value.hint


# ------------------------------------------------------------------------------------------------ containers


def container(folder, *files):
    """A root directory with these files in /bin."""
    (folder / "bin").mkdir(parents=True)
    for file in files:
        (folder / "bin" / file.name).write_bytes(file.read_bytes())
        (folder / "bin" / file.name).chmod(0o755)
    return folder


def hook(section):
    return Hook("count", section, section.partition("/")[2])


def test_a_program_in_another_root_directory_is_attached_to(start, tmp_path, program):
    root = container(tmp_path / "root", program)
    (root / "bin/link").symlink_to("/bin/program")
    (root / "bin/out").symlink_to("../../../../../bin/program")
    started = start(counting("uprobe//bin/link:once", CONTEXT), target=Target("box", root))

    run(root / "bin/program")
    run(program)
    assert hits(started) == 3

    (here,) = uprobe.places(hook("uprobe//bin/link:once"), Target("box", root))
    assert uprobe.places(hook("uprobe//bin/out:once"), Target("box", root)) == (here,)


def test_a_program_in_another_mount_namespace_is_attached_to(start, program):
    script = "mount -t tmpfs t /mnt && cp $0 /mnt/program && echo there && read line && exec /mnt/program"
    command = ["unshare", "-m", "sh", "-c", script, str(program)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"there\n"
        target = Target("box", Path(f"/proc/{process.pid}/root"))
        started = start(counting("uprobe//mnt/program:once", CONTEXT), target=target)
        process.communicate(b"go\n")

    assert process.returncode == 0
    assert hits(started) == 3
    close_and_check(started)


@pytest.mark.parametrize(
    ("section", "reason", "near"),
    [
        ("uprobe//bin/program:onec", "no function 'onec'", "once"),
        ("uprobe//bin/progarm:once", "no file /bin/progarm", "program"),
        ("uprobe//bin/text:once", "no ELF file", ""),
        ("uprobe//bin:once", "no regular file", ""),
        ("uprobe/libnothing:once", "no library or executable 'libnothing'", ""),
        ("usdt//bin/program:test:brae", "no probe 'test:brae'", "test:bare"),
        ("uprobe//bin/program:0xffffff", "no code", ""),
        ("uretprobe//bin/program:once+4", "a return has no offset", ""),
        ("uprobe.multi//bin/program:nothing*", "no function in it fits", ""),
    ],
)
def test_what_a_container_lacks_is_told_to_who_asks_and_what_the_host_lacks_to_everybody(
    tmp_path, program, caplog, section, reason, near
):
    root = container(tmp_path / "root", program)
    (root / "bin/text").write_text("#!/bin/sh\n")

    with caplog.at_level(logging.DEBUG, "igrun"):
        assert uprobe.places(hook(section), Target("box", root)) == ()
    assert reason in caplog.text

    with pytest.raises(AttachError) as error:
        uprobe.places(hook(section), Target("host", root))
    assert reason in str(error.value) and near in error.value.hint


@pytest.mark.parametrize(
    "section", ["uprobe/program", "uprobe/:once", "usdt//bin/program:once", "uprobe//bin/program:"]
)
def test_what_is_no_target_at_all_is_told(section):
    with pytest.raises(AttachError, match="not of the form FILE"):
        uprobe.places(hook(section), Target("box", Path("/")))


def test_a_container_that_is_gone_is_no_error(start, tmp_path, program):
    root = container(tmp_path / "root", program)
    one = hook("uprobe//bin/program:once")
    (place,) = uprobe.places(one, Target("box", root))
    (root / "bin/program").unlink()

    uprobe.attach(one, place).close()
    with pytest.raises(AttachError):
        (place,) = uprobe.places(one, Target("host", container(tmp_path / "host", program)))
        (tmp_path / "host/bin/program").unlink()
        uprobe.attach(one, place)


@pytest.fixture
def overlays(tmp_path, program):
    """Two containers of one image: their roots, and the image's."""
    with ExitStack() as stack:
        fresh = tmp_path / "tmpfs"  # an overlay may not lie on another one
        fresh.mkdir()
        assert libc().mount(b"t", os.fsencode(fresh), b"tmpfs", 0, None) == 0
        stack.callback(libc().umount2, os.fsencode(fresh), 2)
        image = container(fresh / "image", program)
        roots = []
        for name in ("one", "two"):
            upper, work, root = (fresh / name / part for part in ("upper", "work", "root"))
            for folder in (upper, work, root):
                folder.mkdir(parents=True)
            options = f"lowerdir={image},upperdir={upper},workdir={work}"
            assert libc().mount(b"overlay", os.fsencode(root), b"overlay", 0, options.encode()) == 0
            stack.callback(libc().umount2, os.fsencode(root), 2)
            roots.append(root)
        yield *roots, image


def test_a_file_that_containers_share_is_one_place_for_all_of_them(start, overlays):
    one, two, image = overlays
    found = {root: uprobe.places(hook("uprobe//bin/program:once"), Target(root.name, root)) for root in overlays}
    assert found[one] == found[two] == found[image]

    started = start(counting("uprobe//bin/program:once", CONTEXT), target=Target("one", one))
    run(two / "bin/program")
    assert hits(started) == 3


def test_the_kernel_tells_which_layer_a_file_is_of(overlays):
    one, _, image = overlays
    with (one / "bin/program").open("rb") as file, (image / "bin/program").open("rb") as real:
        address = libc().mmap(None, 4096, PROT_READ, inodes.MAP_PRIVATE, file.fileno(), 0)
        try:
            found = inodes.of_vma(address)
        except UnsupportedError:
            # Before Linux 6.1 it cannot be asked, and need not be: /proc has it.
            found = inodes.in_maps(address)
        libc().munmap(address, 4096)
        assert found == inodes.inode_of(real.fileno()) == inodes.inode_of(file.fileno())


def test_a_file_that_containers_share_is_attached_to_once_until_the_last_of_them_is_gone(start, overlays):
    one, two, _ = overlays
    targets = [Target(root.name, root) for root in (one, two)]
    started = start(counting("uprobe//bin/program:once", CONTEXT), target=None)
    for target in targets:
        attach.attach(started.loaded.hooks, target, started.loaded)
    assert len(started.loaded.links) == 1

    run(one / "bin/program")
    assert hits(started) == 3  # not twice
    attach.detach(targets[0], started.loaded)
    run(one / "bin/program")
    assert hits(started) == 6
    attach.detach(targets[1], started.loaded)
    run(two / "bin/program")
    assert hits(started) == 6 and not [*started.loaded.links]


def test_a_file_that_a_container_changes_is_a_place_of_its_own(overlays):
    one, two, _ = overlays
    os.utime(one / "bin/program")
    places = {uprobe.places(hook("uprobe//bin/program:once"), Target("box", root)) for root in (one, two)}

    assert len(places) == 2


def test_looking_for_places_leaves_no_descriptor_open(tmp_path, program):
    root = container(tmp_path / "root", program)
    before = len(list(Path("/proc/self/fd").iterdir()))

    for section in (
        "uprobe//bin/program:once",
        "uprobe//bin/program:onec",
        "uprobe/libc:read",
        "usdt//bin/program:a:b",
    ):
        uprobe.places(hook(section), Target("box", root))

    assert len(list(Path("/proc/self/fd").iterdir())) == before
