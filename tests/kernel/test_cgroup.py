"""Programs of cgroups see what processes in them do, and nobody else's; beside those of other tools."""

import os
import socket
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from igrun import attach
from igrun.attach import cgroup as family
from igrun.attach import common
from igrun.attach.cgroup import CGROUP2, PLACES, attach_types
from igrun.bpfcall import F_MULTI, prog_attach, prog_detach, prog_query
from igrun.errors import AttachError, GadgetError, UnsupportedError
from igrun.host import HOST_TARGET, Target
from igrun.mounts import magic
from igrun.program import Hook
from tests.kernel.killing import killed
from tests.kernel.networks import HITS
from tests.kernel.test_network import hits, waited

pytestmark = pytest.mark.kernel


@pytest.fixture
def cgroup() -> Iterator[Path]:
    """A cgroup of its own."""
    root = next((Path("/", place) for place in PLACES if magic(Path("/", place)) == CGROUP2), None)
    if root is None:
        pytest.fail("no cgroup file system of version 2 is mounted")
    path = root / f"igrun-test-{os.getpid()}"
    path.mkdir()
    yield path
    if path.exists():
        path.rmdir()


def inside(cgroup: Path, code: str, *, check: bool = True) -> str:
    """What Python code prints in a process of that cgroup."""
    before = f"import os, socket, sys\nopen({str(cgroup / 'cgroup.procs')!r}, 'w').write('0')\n"
    done = subprocess.run([sys.executable, "-c", before + textwrap.dedent(code)], capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done.stdout


def counting(section: str, context: str, result: str = "1", see: str = "0") -> str:
    """A program that counts its runs in hits[0] and leaves what it saw in hits[1]."""
    return f"""{HITS}
SEC("{section}")
int count({context} *ctx)
{{
	hit(0, 1);
	see(1, {see});
	return {result};
}}
"""


UDP4 = """
a = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); a.bind(('127.0.0.1', 0)); a.settimeout(2)
a.sendto(b'x', a.getsockname()); a.recvfrom(9)
"""
UDP6 = UDP4.replace("AF_INET,", "AF_INET6,").replace("127.0.0.1", "::1")
TCP4 = """
a = socket.create_server(('127.0.0.1', 0)); b = socket.create_connection(a.getsockname()); c, _ = a.accept()
b.getpeername(); b.getsockname(); b.sendall(b'hello'); c.recv(5)
"""
TCP6 = """
a = socket.create_server(('::1', 0), family=socket.AF_INET6); b = socket.create_connection(a.getsockname()[:2])
c, _ = a.accept(); b.getpeername(); b.getsockname()
"""
UNIX = """
a = socket.socket(socket.AF_UNIX); a.bind('\\0igrun-test'); a.listen(); b = socket.socket(socket.AF_UNIX)
b.connect('\\0igrun-test'); c, _ = a.accept(); b.getpeername(); a.getsockname()
"""
UNIX_DATAGRAMS = """
a = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); a.bind('\\0igrun-test'); a.settimeout(2)
b = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); b.bind('\\0igrun-other'); b.sendto(b'x', '\\0igrun-test')
a.recvfrom(9)
"""
DEVICE = "os.open('/dev/null', os.O_RDONLY)"
SYSCTL = "open('/proc/sys/kernel/ostype').read()"
OPTION = "a = socket.socket(); a.{}sockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR{})"
ADDRESS, SOCKET, PACKET = "struct bpf_sock_addr", "struct bpf_sock", "struct __sk_buff"

# section -> context, what makes it run, what it sees and what that must be
TYPES = {
    "cgroup_skb/ingress": (PACKET, UDP4, "ctx->protocol", 0x0008),
    "cgroup_skb/egress": (PACKET, UDP4, "ctx->protocol", 0x0008),
    "cgroup/skb": (PACKET, UDP4, "ctx->protocol", 0x0008),
    "cgroup/sock": (SOCKET, UDP4, "ctx->type", 2),
    "cgroup/sock_create": (SOCKET, UDP4, "ctx->family", socket.AF_INET),
    "cgroup/sock_release": (SOCKET, UDP4, "ctx->family", socket.AF_INET),
    "cgroup/post_bind4": (SOCKET, UDP4, "ctx->src_ip4", 0x0100007F),
    "cgroup/post_bind6": (SOCKET, UDP6, "ctx->src_ip6[3]", 0x01000000),
    "cgroup/bind4": (ADDRESS, UDP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/bind6": (ADDRESS, UDP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/connect4": (ADDRESS, TCP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/connect6": (ADDRESS, TCP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/connect_unix": (ADDRESS, UNIX, "ctx->user_family", socket.AF_UNIX),
    "cgroup/sendmsg4": (ADDRESS, UDP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/sendmsg6": (ADDRESS, UDP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/sendmsg_unix": (ADDRESS, UNIX_DATAGRAMS, "ctx->user_family", socket.AF_UNIX),
    "cgroup/recvmsg4": (ADDRESS, UDP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/recvmsg6": (ADDRESS, UDP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/recvmsg_unix": (ADDRESS, UNIX_DATAGRAMS, "ctx->user_family", socket.AF_UNIX),
    "cgroup/getpeername4": (ADDRESS, TCP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/getpeername6": (ADDRESS, TCP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/getpeername_unix": (ADDRESS, UNIX, "ctx->user_family", socket.AF_UNIX),
    "cgroup/getsockname4": (ADDRESS, TCP4, "ctx->user_ip4", 0x0100007F),
    "cgroup/getsockname6": (ADDRESS, TCP6, "ctx->user_ip6[3]", 0x01000000),
    "cgroup/getsockname_unix": (ADDRESS, UNIX, "ctx->user_family", socket.AF_UNIX),
    "cgroup/sysctl": ("struct bpf_sysctl", SYSCTL, "ctx->write + 7", 7),
    "cgroup/getsockopt": ("struct bpf_sockopt", OPTION.format("get", ""), "ctx->optname", socket.SO_REUSEADDR),
    "cgroup/setsockopt": ("struct bpf_sockopt", OPTION.format("set", ", 1"), "ctx->optname", socket.SO_REUSEADDR),
    "cgroup/dev": ("struct bpf_cgroup_dev_ctx", DEVICE, "ctx->major", 1),
    "sockops": ("struct bpf_sock_ops", TCP4, "ctx->family", socket.AF_INET),
}


@pytest.mark.fires
@pytest.mark.parametrize("section", TYPES)
def test_a_program_sees_its_cgroup_alone_and_is_gone_afterwards(start, cgroup, section):
    context, code, see, seen = TYPES[section]
    started = start(counting(section, context, see=see), target=Target("web", cgroup=cgroup))

    subprocess.run([sys.executable, "-c", "import os, socket, sys\n" + code], check=True)
    assert hits(started) == 0
    inside(cgroup, code)
    assert hits(started) > 0
    assert hits(started, 1) == seen

    attached = list(attach_types(Hook("count", section, "")))
    assert any(attached_programs(cgroup, kind) for kind in attached)
    started.loaded.detach()
    assert waited(lambda: not any(attached_programs(cgroup, kind) for kind in attached))


def test_a_device_that_is_made_is_seen_with_its_numbers_and_may_be_refused(start, cgroup, tmp_path):
    see = "(__u64)ctx->access_type << 32 | ctx->major << 16 | ctx->minor"
    source = counting("cgroup/dev", "struct bpf_cgroup_dev_ctx", see=see, result="ctx->minor != 5")
    started = start(source, target=Target("web", cgroup=cgroup))
    made = f"""
    import stat
    for minor in (5, 3):
        try:
            os.mknod({str(tmp_path)!r} + f"/{{minor}}", stat.S_IFCHR | 0o600, os.makedev(1, minor))
        except PermissionError:
            print("refused", minor)
    """

    assert inside(cgroup, made) == "refused 5\n"
    # BPF_DEVCG_ACC_MKNOD, BPF_DEVCG_DEV_CHAR; /dev/null
    assert hits(started, 1) == (1 << 16 | 2) << 32 | 1 << 16 | 3
    assert hits(started) == 2


def test_a_sysctl_is_seen_by_its_name(start, cgroup):
    source = f"""{HITS}
SEC("cgroup/sysctl")
int count(struct bpf_sysctl *ctx)
{{
	char name[8] = {{}};

	bpf_sysctl_get_name(ctx, name, sizeof(name), BPF_F_SYSCTL_BASE_NAME);
	hit(0, 1);
	see(1, *(__u64 *)name);
	return 1;
}}
"""
    started = start(source, target=Target("web", cgroup=cgroup))

    inside(cgroup, SYSCTL)

    assert hits(started, 1).to_bytes(8, "little") == b"ostype\0\0"


def test_a_destination_may_be_changed(start, cgroup):
    """Where there is nobody, the server here answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = socket.htons(server.getsockname()[1])
        change = counting("cgroup/connect4", ADDRESS).replace("return", f"ctx->user_port = {port};\n\treturn")
        start(change, target=Target("web", cgroup=cgroup))

        inside(cgroup, "socket.create_connection(('127.0.0.1', 9))")


def attached_programs(cgroup: Path, kind: int) -> list[int]:
    fd = os.open(cgroup, os.O_RDONLY)
    try:
        return prog_query(fd, kind)
    finally:
        os.close(fd)


def test_a_program_of_the_host_sees_every_cgroup(start, cgroup):
    started = start(counting("cgroup/connect4", ADDRESS), target=HOST_TARGET)

    inside(cgroup, TCP4)

    assert hits(started) > 0


def test_a_program_may_refuse(start, cgroup):
    start(counting("cgroup/connect4", ADDRESS, result="0"), target=Target("web", cgroup=cgroup))

    said = inside(cgroup, "try: socket.create_connection(('127.0.0.1', 9))\nexcept PermissionError: print('refused')")

    assert said == "refused\n"


def test_two_gadgets_and_another_tool_share_a_cgroup(start, cgroup):
    first = start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup))
    second = start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup))
    inside(cgroup, TCP4)
    assert hits(first) == hits(second) == 1

    first.loaded.detach()
    inside(cgroup, TCP4)
    assert (hits(first), hits(second)) == (1, 2)


def test_who_holds_a_cgroup_for_itself_is_told(start, cgroup):
    """As old tools attach: without a link, and without letting others in."""
    other = start(counting("cgroup/connect4", ADDRESS), target=None)
    handle = other.loaded.hooks[0].handle
    with ExitStack() as stack:
        fd = os.open(cgroup, os.O_RDONLY)
        stack.callback(os.close, fd)
        prog_attach(handle.fd, fd, 10)
        stack.callback(prog_detach, handle.fd, fd, 10)

        with pytest.raises(AttachError, match=r"program 'count' \(\d+\) holds cgroup .* for itself"):
            start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup))


def test_who_holds_a_cgroup_above_for_itself_is_told(start, cgroup):
    handle = start(counting("cgroup/connect4", ADDRESS), target=None).loaded.hooks[0].handle
    below = cgroup / "below"
    below.mkdir()
    with ExitStack() as stack:
        stack.callback(below.rmdir)
        fd = os.open(cgroup, os.O_RDONLY)
        stack.callback(os.close, fd)
        prog_attach(handle.fd, fd, 10)
        stack.callback(prog_detach, handle.fd, fd, 10)

        with pytest.raises(AttachError, match=rf"program 'count' \(\d+\) holds cgroup {cgroup} for itself"):
            start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=below))


def test_a_tool_that_lets_others_in_is_not_in_the_way(start, cgroup):
    handle = start(counting("cgroup/connect4", ADDRESS), target=None).loaded.hooks[0].handle
    with ExitStack() as stack:
        fd = os.open(cgroup, os.O_RDONLY)
        stack.callback(os.close, fd)
        prog_attach(handle.fd, fd, 10, flags=F_MULTI)
        stack.callback(prog_detach, handle.fd, fd, 10)

        started = start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup))
        inside(cgroup, TCP4)

        assert hits(started) == 1
        started.loaded.detach()
        assert len(attached_programs(cgroup, 10)) == 1


def test_without_the_capabilities_the_user_is_told_which(start, cgroup):
    """Of the others the kernel asks for them at load alone."""
    started = start(counting("cgroup_skb/egress", PACKET), target=None)
    said = without_capabilities(
        lambda: attach.attach(started.loaded.hooks, Target("web", cgroup=cgroup), started.loaded)
    )

    assert "Operation not permitted" in said
    assert "CAP_NET_ADMIN" in said


def without_capabilities(function: Callable[[], object]) -> str:
    """The error, and its hint, of the function in a process that may do nothing."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.setresuid(65534, 65534, 65534)
            function()
        except GadgetError as error:
            os.write(write, f"{error} {error.hint}".encode())
        except BaseException as error:
            os.write(write, repr(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read) as told:
        said = told.read()
    os.waitpid(child, 0)
    return said


def test_a_cgroup_that_goes_away_takes_nothing_else_along(start, cgroup):
    other = cgroup / "other"
    other.mkdir()
    started = start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup))
    attach.attach(started.loaded.hooks, Target("other", cgroup=other), started.loaded)
    other.rmdir()

    inside(cgroup, TCP4)

    assert hits(started) == 1
    started.loaded.detach()
    assert waited(lambda: not attached_programs(cgroup, 10))


def test_a_cgroup_that_is_gone_is_told(start, cgroup):
    with pytest.raises(AttachError, match=r"attach 'count' \(cgroup/connect4\) to 'web': its cgroup .*/none"):
        start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=cgroup / "none"))


def test_a_cgroup_that_goes_before_it_is_attached_to_is_told(start, cgroup):
    started = start(counting("cgroup/connect4", ADDRESS), target=None)
    (hook,) = started.loaded.hooks
    (place,) = family.places(hook, Target("web", cgroup=cgroup))
    cgroup.rmdir()

    with pytest.raises(AttachError, match=r"the cgroup is gone$"):
        family.attach(hook, place)
    cgroup.mkdir()
    with pytest.raises(AttachError, match="the cgroup is gone, and another one has its name"):
        family.attach(hook, place)


def test_what_is_no_cgroup_is_told(start, cgroup, tmp_path):
    for path in (tmp_path, cgroup / "cgroup.procs"):
        with pytest.raises(AttachError, match="is no cgroup of version 2"):
            start(counting("cgroup/connect4", ADDRESS), target=Target("web", cgroup=path))


def test_a_cgroup_by_two_paths_is_attached_to_once(start, cgroup, tmp_path):
    (tmp_path / "link").symlink_to(cgroup)
    hook = Hook("count", "cgroup/connect4", "")

    assert family.places(hook, Target("a", cgroup=cgroup)) == family.places(hook, Target("b", cgroup=tmp_path / "link"))


def test_a_program_ends_with_a_process_that_is_killed(cgroup, compiled):
    killed(compiled(counting("cgroup/connect4", ADDRESS)), target=Target("web", cgroup=cgroup))

    assert waited(lambda: not attached_programs(cgroup, 10))


LSM = f"""{HITS}
SEC("lsm_cgroup/socket_bind")
int count(unsigned long long *ctx)
{{
	hit(0, 1);
	return 1;
}}
"""


@pytest.mark.parametrize(("section", "since"), [("cgroup/connect_unix", "6.7"), ("lsm_cgroup/socket_bind", "6.0")])
@pytest.mark.guest
def test_a_kernel_that_is_too_old_says_which_is_not(start, cgroup, section, since):
    source = LSM if section.startswith("lsm") else counting(section, ADDRESS)
    try:
        start(source, target=Target("web", cgroup=cgroup))
    except UnsupportedError as error:
        assert error.since == since
        assert section in str(error)


@pytest.mark.fires
@pytest.mark.guest
def test_an_lsm_hook_is_of_a_cgroup_alone(start, cgroup):
    started = start(LSM, target=Target("web", cgroup=cgroup))

    subprocess.run([sys.executable, "-c", "import socket\n" + UDP4], check=True)
    assert hits(started) == 0
    inside(cgroup, UDP4)
    assert hits(started) == 1


def test_an_lsm_program_that_would_never_run_is_refused(monkeypatch, cgroup):
    monkeypatch.setattr(common, "active_lsms", lambda: ["lockdown", "yama"])
    hook = Hook("count", "lsm_cgroup/socket_bind", "socket_bind")
    (place,) = family.places(hook, Target("web", cgroup=cgroup))

    with pytest.raises(UnsupportedError, match="it would never run") as caught:
        family.attach(hook, place)
    assert caught.value.hint == "boot with lsm=lockdown,yama,bpf"
