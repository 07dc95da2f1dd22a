"""Symbols of programs and libraries: which file a name stands for, and where in it a function is."""

import lzma
import os
import shutil
import subprocess
import zlib
from contextlib import suppress
from pathlib import Path
from struct import pack

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from igrun.errors import GadgetError, ImageError, KernelError, NotFoundError
from igrun.symbols import Opened, paths
from igrun.symbols.binary import AARCH64, X86_64, Binary, Section
from igrun.symbols.debugfiles import companions, link
from igrun.symbols.golang import GoFunctions, searched
from igrun.symbols.ldcache import ABI, NATIVE, Entry, entries
from igrun.symbols.libraries import fits
from igrun.symbols.rooted import File, Memory, Root, walked
from igrun.symbols.tables import Table, tables
from igrun.symbols.usdt import SPEC_BYTES, argument, probes, spec
from tests.binaries import GO, GOS, PROGRAM, WATCHED, build, build_go, go_environment, objcopy, with_debug_link

MACHINE = os.uname().machine
HERE = Path("/")


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    return build(tmp_path_factory.mktemp("symbols") / "program", PROGRAM)


def opened(path, root=HERE):
    return Opened(Root(root), str(path), MACHINE)


def put(path, data=b""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# ------------------------------------------------------------------------------------------------ ld.so.cache


def cache(libraries, form):
    """ld.so.cache with these (name, path, flags): old, new, or combined."""
    new_header, new_entry, old_header, old_entry = 48, 24, 16, 12
    texts, places = b"", []
    for name, path, _ in libraries:
        places.append((len(texts), len(texts) + len(name) + 1))
        texts += name.encode() + b"\0" + path.encode() + b"\0"
    count = len(libraries)
    old = b"ld.so-1.7.0\0" + pack("<I", count)
    before_new = -(-(old_header + old_entry * count) // 8) * 8
    new_table = new_header + new_entry * count
    new = b"glibc-ld.so.cache1.1" + pack("<II20x", count, len(texts))
    new += b"".join(
        pack("<iIIIQ", row[2], new_table + at, new_table + to, 0, 0)
        for row, (at, to) in zip(libraries, places, strict=True)
    )
    if form == "new":
        return new + texts
    skipped = before_new - (old_header + old_entry * count) + new_table if form == "combined" else 0
    old += b"".join(
        pack("<iII", row[2], skipped + at, skipped + to) for row, (at, to) in zip(libraries, places, strict=True)
    )
    return old + texts if form == "old" else old.ljust(before_new, b"\0") + new + texts


NAMES = st.text("abcxyz.-_0123456789/", min_size=1, max_size=30)
LIBRARIES = st.lists(st.tuples(NAMES, NAMES, st.integers(0, 0x7FFFFFFF)), max_size=20)


@pytest.mark.parametrize("form", ["old", "new", "combined"])
@given(libraries=LIBRARIES)
def test_every_format_of_the_cache_is_read(form, libraries):
    assert entries(cache(libraries, form)) == [Entry(*row) for row in libraries]


@pytest.mark.parametrize("form", ["old", "new", "combined"])
@given(libraries=LIBRARIES, data=st.data())
def test_a_broken_cache_is_an_image_error(form, libraries, data):
    whole = bytearray(cache(libraries, form))
    for _ in range(data.draw(st.integers(0, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(ImageError):
        entries(bytes(whole[: data.draw(st.integers(0, len(whole)))]))


def test_the_cache_of_this_machine_is_read_as_ldconfig_does():
    ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin")
    if not ldconfig or not Path("/etc/ld.so.cache").exists():
        pytest.skip("this machine has no ld.so.cache")
    printed = subprocess.run([ldconfig, "-p"], capture_output=True, text=True, check=True).stdout
    expected = [line.split(" (", 1)[0].strip() + " => " + line.split(" => ")[1] for line in printed.splitlines()[1:-1]]

    found = entries(Path("/etc/ld.so.cache").read_bytes())

    assert [f"{one.name} => {one.path}" for one in found] == expected


@pytest.mark.parametrize(
    ("name", "yes", "no"),
    [
        ("libssl", ["libssl.so.3", "libssl.so.1.1", "libssl.so"], ["libssl3.so", "libsslx.so.1"]),
        ("libssl.so.3", ["libssl.so.3", "libssl.so.3.1"], ["libssl.so.30", "libssl.so"]),
        ("libc", ["libc.so.6"], ["libcap.so.2", "libc-2.31.so"]),
    ],
)
def test_a_name_stands_for_every_version_of_a_library_or_for_the_one_it_says(name, yes, no):
    assert all(fits(name, one) for one in yes)
    assert not any(fits(name, one) for one in no)


# ------------------------------------------------------------------------------------------------ which file


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def test_libraries_of_this_machine_come_before_others(root):
    libraries = [("libx.so.1", "/lib32/libx.so.1", 0x0003), ("libx.so.1", "/lib/libx.so.1", 0x0003 | NATIVE[MACHINE])]
    put(root / "etc/ld.so.cache", cache(libraries, "combined"))

    with Root(root) as inside:
        assert paths(inside, "libx", MACHINE) == ["/lib/libx.so.1", "/lib32/libx.so.1"]
    assert NATIVE[MACHINE] & ABI


def test_a_root_without_a_cache_is_searched(root):
    put(root / "usr/lib/x86_64-linux-gnu/libssl.so.3")
    put(root / "usr/lib/x86_64-linux-gnu/libssl.so.3-gdb.py")

    with Root(root) as inside:
        assert paths(inside, "libssl", "x86_64") == ["/usr/lib/x86_64-linux-gnu/libssl.so.3"]


def test_musl_looks_where_its_file_says_or_in_its_usual_directories(root):
    put(root / "lib/ld-musl-x86_64.so.1")
    put(root / "usr/lib/libssl.so.3")
    put(root / "opt/libssl.so.1.1")
    with Root(root) as inside:
        assert paths(inside, "libssl", "x86_64") == ["/usr/lib/libssl.so.3"]
        assert paths(inside, "libc", "x86_64") == paths(inside, "libpthread", "x86_64") == ["/lib/ld-musl-x86_64.so.1"]

        put(root / "etc/ld-musl-x86_64.path", b"/opt:/lib\n/usr/lib\n")
        assert paths(inside, "libssl", "x86_64") == ["/opt/libssl.so.1.1", "/usr/lib/libssl.so.3"]


def test_a_program_is_found_by_its_name(root):
    put(root / "usr/bin/bash")

    with Root(root) as inside:
        assert paths(inside, "bash", MACHINE) == ["/usr/bin/bash"]
        with pytest.raises(NotFoundError, match="no library or executable 'basch'"):
            paths(inside, "basch", MACHINE)


@pytest.mark.parametrize("file", ["", "bin/bash", "./bash", "!libc", "/bin/bash!", "/bin/bash!/lib/libc.so"])
def test_a_file_is_a_path_or_a_name(file):
    with Root(HERE) as inside, pytest.raises(NotFoundError, match="no absolute path"):
        paths(inside, file, MACHINE)


LOADED = "int value(void) { return 7; }"
LOADS = "int value(void); int main(void) { return value(); }"


@pytest.mark.parametrize("tag", ["--enable-new-dtags", "--disable-new-dtags"])
def test_a_library_is_found_as_the_program_that_loads_it_would(root, tag):
    for folder in ("app/bin", "app/lib"):
        (root / folder).mkdir(parents=True)
    library = build(root / "app/lib/libvalue.so.2", LOADED, "-shared", "-Wl,-soname,libvalue.so.2")
    flags = [str(library), f"-Wl,{tag}", "-Wl,-rpath,$ORIGIN/../lib"]
    build(root / "app/bin/program", LOADS, *flags)
    put(root / "usr/lib/libvalue.so.2", library.read_bytes())
    put(root / "etc/ld.so.cache", cache([("libvalue.so.2", "/usr/lib/libvalue.so.2", 0x0303)], "new"))

    with Root(root) as inside:
        assert paths(inside, "/app/bin/program!libvalue", MACHINE) == ["/app/bin/../lib/libvalue.so.2"]
        assert paths(inside, "libvalue", MACHINE) == ["/usr/lib/libvalue.so.2"]
        library.unlink()
        assert paths(inside, "/app/bin/program!libvalue", MACHINE) == ["/usr/lib/libvalue.so.2"]


def test_a_library_of_a_library_is_found(root):
    for folder in ("bin", "lib/inner"):
        (root / folder).mkdir(parents=True)
    inner = build(root / "lib/inner/libinner.so.1", LOADED, "-shared", "-Wl,-soname,libinner.so.1")
    middle = "int value(void); int more(void) { return value() + 1; }"
    outer = build(root / "lib/libouter.so.1", middle, "-shared", "-Wl,-soname,libouter.so.1", str(inner),
                  "-Wl,-rpath,$ORIGIN/inner")  # fmt: skip
    use = "int more(void); int main(void) { return more(); }"
    build(root / "bin/program", use, str(outer), "-Wl,-rpath,/lib", "-Wl,--allow-shlib-undefined")

    with Root(root) as inside:
        assert paths(inside, "/bin/program!libinner", MACHINE) == ["/lib/inner/libinner.so.1"]


# ------------------------------------------------------------------------------------------------ inside of a root

PARTS = st.sampled_from(["a", "b", "c", "..", ".", "l0", "l1", "l2", "f", ""])
TARGETS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200, deadline=None)
@given(links=st.lists(st.tuples(TARGETS, st.booleans()), min_size=3, max_size=3), path=TARGETS)
@example(links=[("c/f", False), ("a", False), ("a", False)], path="l0/..")
@example(links=[("c/f", False), ("a", False), ("a", False)], path="l0/")
def test_a_kernel_without_openat2_opens_the_same_files(tmp_path, links, path):
    root = tmp_path / "root"
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("a/b/c", "b/c", "c"):
        put(root / folder / "f")
    put(tmp_path / "f")
    for number, (target, absolute) in enumerate(links):
        for folder in ("", "a", "b/c"):
            (root / folder / f"l{number}").symlink_to(("/" if absolute else "") + target or ".")

    def way(open_):
        try:
            fd = open_()
        except KernelError as error:
            return error.errno
        found = os.fstat(fd)
        os.close(fd)
        return found.st_dev, found.st_ino

    with Root(root) as inside:
        if path:
            assert way(lambda: inside._way(path)) == way(lambda: walked(inside._fd, path))


@pytest.mark.parametrize("old", [False, True])
def test_no_path_leads_out_of_a_root(root, monkeypatch, old):
    put(root / "etc/passwd", b"inside")
    (root / "up").symlink_to("../../../../../../etc/passwd")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "round").symlink_to("round")
    (root / "proc").symlink_to("/proc/self/root")
    if old:
        monkeypatch.setattr("igrun.symbols.rooted.syscall", not_there)
    with Root(root) as inside:
        for path in ("/etc/passwd", "etc/passwd", "../../etc/passwd", "/up", "/absolute"):
            assert inside.read(path, 100) == b"inside"
        with pytest.raises(KernelError, match="Too many levels"):
            inside.open("/round")
        with pytest.raises(KernelError):
            inside.open("/proc/etc/passwd")
    with Root(HERE) as inside, pytest.raises(KernelError, match="Too many levels"):
        inside.open("/proc/self/exe")


def not_there(*arguments, **kwargs):
    raise KernelError(38, "openat2")


def test_only_regular_files_are_opened(root):
    (root / "folder").mkdir(parents=True)
    os.mkfifo(root / "pipe")
    with Root(root) as inside:
        for path in ("/folder", "/pipe"):
            with pytest.raises(KernelError, match="no regular file"):
                inside.open(path)
        with pytest.raises(KernelError):
            inside.names("/pipe")
    with Root(HERE) as inside, pytest.raises(KernelError, match="no regular file"):
        inside.open("/dev/zero")


# ------------------------------------------------------------------------------------------------ symbol tables


def readelf(path):
    """(name, version or "", address) of each defined function, told by binutils; the table has all in it."""
    done = subprocess.run(["readelf", "-sW", str(path)], capture_output=True, text=True, check=True)
    found = set()
    for line in done.stdout.splitlines():
        parts = line.split()
        if len(parts) >= 8 and parts[3] in ("FUNC", "IFUNC") and parts[6] != "UND" and int(parts[1], 16):
            name, _, version = parts[7].partition("@")
            found.add((name, version.lstrip("@"), int(parts[1], 16), parts[3] == "IFUNC"))
    return found


@pytest.mark.parametrize("path", ["/lib/x86_64-linux-gnu/libc.so.6", "/bin/bash", "{program}"])
def test_functions_are_those_that_readelf_prints(path, program):
    path = Path(path.format(program=program))
    if not path.exists():
        pytest.skip(f"no {path} here")
    with opened(path) as one:
        found = [function for table in tables(one.binary) for function in table.all()]

    assert {(one.name, one.version, one.address, one.chosen) for one in found} == readelf(path)


@pytest.mark.parametrize("path", ["/lib/x86_64-linux-gnu/libc.so.6", "{program}"])
def test_a_function_is_found_by_each_of_its_names(path, program):
    path = Path(path.format(program=program))
    if not path.exists():
        pytest.skip(f"no {path} here")
    with opened(path) as one:
        every = [function for table in tables(one.binary) for function in table.all()]
        for function in every[::7]:
            if not function.chosen:
                name = f"{function.name}@{function.version}" if function.version else function.name
                assert one.binary.offset_of(function.address) in one.function(name)


def test_the_default_version_of_a_function_is_meant():
    path = Path("/lib/x86_64-linux-gnu/libc.so.6")
    if not path.exists():
        pytest.skip(f"no {path} here")
    with opened(path) as libc:
        old, new = libc.function("pthread_cond_wait@GLIBC_2.2.5"), libc.function("pthread_cond_wait@@GLIBC_2.3.2")
        assert old != new == libc.function("pthread_cond_wait")
        with pytest.raises(NotFoundError):
            libc.function("pthread_cond_wait@GLIBC_9")


def test_a_function_that_is_chosen_at_start_is_told(tmp_path):
    source = """
static int one(void) { return 1; }
static int (*choose(void))(void) { return one; }
int chosen(void) __attribute__((ifunc("choose")));
int chosen_avx(void) { return 2; }
int main(void) { return chosen(); }
"""
    with opened(build(tmp_path / "program", source)) as one, pytest.raises(NotFoundError, match="IFUNC") as error:
        one.function("chosen")

    assert "chosen_avx" in error.value.hint


def test_functions_of_one_name_in_several_files_are_all_meant(tmp_path):
    static = 'static __attribute__((noinline)) int same(int n) {{ __asm__ volatile(""); return n; }}\n{}'
    objects = []
    for name, rest in (("a", "int a(int n) { return same(n) + 1; }"),
                       ("b", "int a(int); int main(int n) { return same(n) + a(n); }")):  # fmt: skip
        objects.append(str(build(tmp_path / f"{name}.o", static.format(rest), "-r", "-nostdlib")))
    subprocess.run(["cc", *objects, "-o", str(tmp_path / "program")], check=True)

    with opened(tmp_path / "program") as one:
        assert len(one.function("same")) == 2
        assert one.functions()["same"] == one.function("same")


def test_a_static_program_has_its_functions(tmp_path):
    with opened(build(tmp_path / "program", PROGRAM, "-static", "-no-pie")) as one:
        assert one.function("once") and one.function("malloc") and one.binary.fixed


# ------------------------------------------------------------------------------------------------ debug files


def stripped(path, program):
    """The program without symbols, and what has them."""
    data = program.read_bytes()
    put(path, objcopy(data, "--strip-all"))
    return objcopy(data, "--only-keep-debug")


def wanted(program):
    with opened(program) as one:
        return one.function("hidden")


@pytest.mark.parametrize("place", ["app/program.debug", "app/.debug/program.debug", "usr/lib/debug/app/program.debug"])
def test_a_debug_file_is_found_by_the_link_to_it(root, program, place):
    debug = stripped(root / "app/program", program)
    with opened("/app/program", root) as one, pytest.raises(NotFoundError) as error:
        one.function("hidden")
    assert "debug symbols" in error.value.hint

    put(root / "program.debug", debug)
    with_debug_link(root / "app/program", root / "program.debug")
    put(root / place, debug)

    with opened("/app/program", root) as one:
        assert link(one.binary) == ("program.debug", zlib.crc32(debug))
        assert one.function("hidden") == wanted(program)
        assert one.functions()["hidden"] == wanted(program)


def test_a_debug_file_is_found_by_the_number_of_the_build(root, program):
    debug = stripped(root / "app/program", program)
    with opened("/app/program", root) as one:
        number = one.binary.build_id.hex()
    put(root / f"usr/lib/debug/.build-id/{number[:2]}/{number[2:]}.debug", debug)

    with opened("/app/program", root) as one:
        assert one.function("hidden") == wanted(program)


def test_a_debug_file_of_another_build_is_not_believed(root, tmp_path, program):
    stripped(root / "app/program", program)
    other = build(tmp_path / "other", PROGRAM.replace("3;", "4;"))
    for data in (objcopy(other.read_bytes(), "--only-keep-debug"), b"\x7fELF", b""):
        put(root / "app/program.debug", data)
        with_debug_link(root / "app/program", root / "app/program.debug")
        put(root / "app/program.debug", objcopy(other.read_bytes(), "--only-keep-debug"))
        with opened("/app/program", root) as one, pytest.raises(NotFoundError):
            one.function("hidden")
        put(root / "app/program", objcopy(program.read_bytes(), "--strip-all"))


def test_the_small_debug_information_in_a_program_is_read(root, tmp_path, program):
    debug = objcopy(program.read_bytes(), "--strip-debug")
    for packed, good in ((lzma.compress(debug), True), (lzma.compress(debug)[:-20], False), (b"\xfd7zXZ\0", False)):
        put(tmp_path / "packed", packed)
        put(root / "program", objcopy(program.read_bytes(), "--strip-all"))
        command = ["objcopy", f"--add-section=.gnu_debugdata={tmp_path / 'packed'}", str(root / "program")]
        subprocess.run(command, check=True)
        with opened("/program", root) as one:
            if good:
                assert one.function("hidden") == wanted(program)
            else:
                with pytest.raises(NotFoundError):
                    one.function("hidden")


def test_what_unpacks_to_too_much_is_not_read(root, tmp_path, program, monkeypatch):
    monkeypatch.setattr("igrun.symbols.debugfiles.MOST_UNPACKED", 1 << 20)
    put(tmp_path / "packed", lzma.compress(bytes(1 << 22), preset=0))
    put(root / "program", objcopy(program.read_bytes(), "--strip-all"))
    command = ["objcopy", f"--add-section=.gnu_debugdata={tmp_path / 'packed'}", str(root / "program")]
    subprocess.run(command, check=True)

    with opened("/program", root) as one:
        assert not list(companions(one.binary, one.path))


# ------------------------------------------------------------------------------------------------ Go


def nm(path, go):
    """Name -> address of the functions that `go tool nm` prints."""
    done = subprocess.run(
        [go, "tool", "nm", str(path)], capture_output=True, text=True, check=True, env=go_environment()
    )
    rows = (line.split(None, 2) for line in done.stdout.splitlines())
    return {row[2]: int(row[0], 16) for row in rows if len(row) == 3 and row[1] in "tT"}


HOWS = [[], ["-buildmode=pie"], ["-ldflags=-linkmode=external"], ["-buildmode=pie", "-ldflags=-linkmode=external"]]


@pytest.mark.skipif(GO is None, reason="no Go: install it from go.dev")
@pytest.mark.parametrize("how", HOWS, ids=" ".join)
@pytest.mark.parametrize("go", GOS)
def test_functions_of_go_are_those_that_nm_prints(tmp_path, how, go):
    full = nm(build_go(tmp_path, *how, go=go), go)
    flags = [f"{one} -s -w" if one.startswith("-ldflags") else one for one in how]
    flags += [] if any(one.startswith("-ldflags") for one in flags) else ["-ldflags=-s -w"]
    path = build_go(tmp_path, *flags, go=go)
    with opened(path) as one:
        found = one._go
        assert found is not None
        ours = dict(found.all())
        assert {"main.main", "main.work", "main.(*thing).Method", "runtime.mallocgc"} <= set(ours)
        pairs = set(found.all())
        same = {name for name in ours if name in full}
        assert len(same) > 1000
        assert {(name, full[name]) for name in same} <= pairs
        assert found.named("runtime.memmove") == [full["runtime.memmove"]]
        (offset,) = one.function("main.(*thing).Method")
        assert one.is_go(offset)
        assert not one.is_go(offset + 1)


def pclntab(version, names, text=0x401000, size=8):
    """A table of functions as old versions of Go wrote it, each function 16 bytes long."""
    word = "Q" if size == 8 else "I"
    texts, places = b"", []
    for name in names:
        places.append(len(texts))
        texts += name.encode() + b"\0"
    count = len(names)
    head = {"1.2": 0xFFFFFFFB, "1.16": 0xFFFFFFFA, "1.18": 0xFFFFFFF0, "1.20": 0xFFFFFFF1}[version]
    out = pack("<IBBBB", head, 0, 0, 1, size) + pack(f"<{word}", count)
    if version == "1.2":
        table = len(out) + (2 * count + 1) * size + 4
        rows, data = b"", b""
        for number, place in enumerate(places):
            rows += pack(f"<{word}{word}", text + 16 * number, table + len(texts) + len(data))
            data += pack(f"<{word}I", text + 16 * number, table + place)
        return out + rows + pack(f"<{word}I", text + 16 * count, 0) + texts + data
    short = version != "1.16"
    fields = 8 if short else 7
    names_at = 8 + fields * size
    functions_at = names_at + len(texts)
    out += pack(f"<{word}", 0) + (pack(f"<{word}", text) if short else b"")
    out += pack(f"<{word}", names_at) + pack(f"<3{word}", 0, 0, 0) + pack(f"<{word}", functions_at)
    assert len(out) == names_at
    entry = "I" if short else word
    rows, data = b"", b""
    table = (2 * count + 1) * (4 if short else size)
    base = 0 if short else text
    for number, place in enumerate(places):
        rows += pack(f"<{entry}{entry}", base + 16 * number, table + len(data))
        data += pack(f"<{entry}I", base + 16 * number, place)
    return out + texts + rows + pack(f"<{entry}", base + 16 * count) + data


class Anywhere:
    """A binary that has code everywhere, and no sections."""

    sections = ()
    machine, wide = X86_64, True

    def section(self, name):
        return None

    def offset_of(self, address, *, code=True):
        return address


@pytest.mark.parametrize("size", [4, 8])
@pytest.mark.parametrize("version", ["1.2", "1.16", "1.18", "1.20"])
def test_tables_of_every_version_of_go_are_read(version, size):
    names = ["runtime.text", "main.main", "main.(*T).Method", "main.F[...]"]
    found = GoFunctions(Anywhere(), pclntab(version, names, size=size), 0, 0x500000)

    assert list(found.all()) == [(name, 0x401000 + 16 * number) for number, name in enumerate(names)]
    assert found.named("main.(*T).Method") == [0x401020]
    assert found.named("ain.main") == found.named("nothing") == []
    assert 0x401030 in found.addresses


@settings(deadline=None)
@given(version=st.sampled_from(["1.2", "1.16", "1.18", "1.20"]), data=st.data())
def test_a_broken_table_of_go_is_an_image_error(version, data):
    table = bytearray(pclntab(version, ["main.main", "main.work"]))
    for _ in range(data.draw(st.integers(0, 4))):
        table[data.draw(st.integers(0, len(table) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = GoFunctions(Anywhere(), bytes(table[: data.draw(st.integers(0, len(table)))]), 0, 0)
        list(found.all())
        found.named("main.main")
    except ImageError:
        pass


# ------------------------------------------------------------------------------------------------ USDT


def test_every_location_of_a_probe_is_found_with_its_arguments(program):
    with opened(program) as one:
        three = one.probe("test", "three")
        assert len(three) == 2
        assert all(place.arguments.endswith("@$42") for place in three)
        (bare,) = one.probe("test", "bare")
        code = program.read_bytes()[bare.offset]
        assert code == 0x90  # a nop, where a breakpoint may stand
        with pytest.raises(NotFoundError, match="no probe 'test:bra'") as error:
            one.probe("test", "bra")
    assert "test:bare" in error.value.hint


def test_a_semaphore_is_told_by_its_place_in_the_file(tmp_path):
    with opened(build(tmp_path / "watched", WATCHED)) as one:
        (found,) = one.probe("test", "watched")
        section = one.binary.section(".probes")
        assert found.counter == section.offset


def test_notes_of_a_32_bit_program_are_read():
    note = b"stapsdt\0" + pack("<3I", 0x8048010, 0, 0) + b"p\0n\x004@%eax\0"
    body = pack("<3I", 8, len(note) - 8, 3) + note
    body += b"\0" * (-len(body) % 4)
    names = b"\0.note.stapsdt\0.shstrtab\0"
    header, each = 52 + 32, 40
    at = header + len(body) + len(names)
    data = b"\x7fELF\1\1\1".ljust(16, b"\0") + pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, at, 0, 52, 32, 1, each, 3, 2)
    data += pack("<8I", 1, 0, 0x8048000, 0, 4096, 4096, 5, 4096)
    data += body + names + bytes(each)
    data += pack("<10I", 1, 7, 0, 0, header, len(body), 0, 0, 4, 0)
    data += pack("<10I", 15, 3, 0, 0, header + len(body), len(names), 0, 0, 1, 0)

    (found,) = probes(Binary(Memory(data)))

    assert (found.provider, found.name, found.offset, found.arguments) == ("p", "n", 0x10, "4@%eax")


@pytest.mark.parametrize(
    ("machine", "text", "row"),
    [
        (X86_64, "-4@%edi", (0, 1, 112, 1, 32)),
        (X86_64, "8@%rax", (0, 1, 80, 0, 0)),
        (X86_64, "1@%al", (0, 1, 80, 0, 56)),
        (X86_64, "2@%r12w", (0, 1, 24, 0, 48)),
        (X86_64, "-4@$-9", (2**64 - 9, 0, 0, 1, 32)),
        (X86_64, "8@-16(%rbp)", (2**64 - 16, 2, 32, 0, 0)),
        (X86_64, "8@(%rsp)", (0, 2, 152, 0, 0)),
        (X86_64, "4@0x10(%r8)", (16, 2, 72, 0, 32)),
        (X86_64, "8@(%rax,%rbx,8)", None),
        (X86_64, "8f@%xmm0", None),
        (X86_64, "8@name(%rip)", None),
        (X86_64, "3@%eax", None),
        (X86_64, "%eax", None),
        (AARCH64, "-4@[sp, 60]", (60, 2, 248, 1, 32)),
        (AARCH64, "8@x19", (0, 1, 152, 0, 0)),
        (AARCH64, "4@w0", (0, 1, 0, 0, 32)),
        (AARCH64, "8@[x1]", (0, 2, 8, 0, 0)),
        (AARCH64, "-8@-1", (2**64 - 1, 0, 0, 1, 0)),
        (AARCH64, "8@xzr", (0, 0, 0, 0, 0)),
        (AARCH64, "8@[x1,x2]", None),
    ],
)
def test_an_argument_is_a_number_a_register_or_memory(machine, text, row):
    assert argument(machine, text) == (None if row is None else pack("<QIhBb", *row))


def test_a_program_gets_all_arguments_but_those_that_nobody_can_read():
    packed, cannot = spec(AARCH64, "-4@[sp, 60] 8f@d0 8@x1", cookie=7)

    assert len(packed) == SPEC_BYTES and cannot == ["8f@d0"]
    assert packed[:16] == argument(AARCH64, "-4@[sp, 60]") and packed[32:48] == argument(AARCH64, "8@x1")
    assert packed[192:202] == pack("<Qh", 7, 3)


# ------------------------------------------------------------------------------------------------ hostile files


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A program as small as one with everything can be."""
    path = build(tmp_path_factory.mktemp("hostile") / "program", PROGRAM)
    debug = put(path.with_name("packed"), lzma.compress(objcopy(path.read_bytes(), "--strip-debug")))
    command = ["objcopy", "--strip-debug", f"--add-section=.gnu_debugdata={debug}", str(path)]
    subprocess.run(command, check=True)
    with_debug_link(path, debug)
    return path.read_bytes()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300, deadline=None)
@given(data=st.data())
def test_a_broken_program_is_refused_or_read(tmp_path, whole, data):
    broken = bytearray(whole)
    headers = st.integers(0, 1023) | st.integers(len(whole) - 2560, len(whole) - 1)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(headers | st.integers(0, len(whole) - 8))
        raw = data.draw(st.binary(min_size=1, max_size=8) | st.just(b"\xff" * 8) | st.just(bytes(8)))
        broken[at : at + len(raw)] = raw
    put(tmp_path / "program", bytes(broken[: data.draw(st.integers(0, len(whole)) | st.just(len(whole)))]))

    try:
        with opened(tmp_path / "program") as one:
            for ask in (lambda: one.function("hidden"), lambda: one.function("nothing"), one.functions,
                        lambda: one.probe("test", "three"), lambda: one.binary.needed):  # fmt: skip
                with suppress(GadgetError):
                    ask()
    except GadgetError:
        pass


def test_what_a_container_calls_its_files_does_not_reach_the_terminal(root, tmp_path):
    put(root / "usr/lib/libevil.so.\x1b", b"")
    put(root / "etc/ld.so.cache", cache([("libevil.so.1", "/lib/\x1b[2Jlibevil.so.1", 0x0303)], "new"))
    with Root(root) as inside, pytest.raises(NotFoundError):
        paths(inside, "libevil", MACHINE)


def test_a_table_that_says_that_it_is_endless_is_refused_at_once(root, program):
    data = bytearray(program.read_bytes())
    binary = Binary(Memory(bytes(data)))
    for number, one in enumerate(binary.sections):
        if one.name in (".strtab", ".dynstr"):
            at = int.from_bytes(data[40:48], "little") + 64 * number
            data[at + 32 : at + 40] = b"\xff" * 7 + b"\x7f"
    put(root / "program", bytes(data))

    with opened("/program", root) as one, pytest.raises(ImageError, match="over the end"):
        one.function("once")


def test_a_file_that_becomes_shorter_while_it_is_read_is_told(tmp_path, program):
    path = put(tmp_path / "program", program.read_bytes())
    file = File(os.open(path, os.O_RDONLY), str(path))
    with file:
        binary = Binary(file)
        os.truncate(path, 100)
        with pytest.raises(ImageError):
            binary.content(binary.sections[1], 1 << 20)


def test_names_without_end_are_refused_before_they_are_read(root, program):
    data = bytearray(program.read_bytes())
    binary = Binary(Memory(bytes(data)))
    for number, one in enumerate(binary.sections):
        if one.name in (".strtab", ".dynstr"):
            at = int.from_bytes(data[40:48], "little") + 64 * number
            data[at + 32 : at + 40] = pack("<Q", 1 << 40)
    path = put(root / "program", bytes(data))
    os.truncate(path, 1 << 42)  # a hole

    with opened("/program", root) as one:
        for ask in (lambda: one.function("once"), one.functions):
            with pytest.raises(ImageError, match="bytes of names are too many"):
                ask()


def test_names_that_share_their_bytes_are_too_long_together():
    name, count = b"a" * 16000 + b"\0", 1 << 15

    class Small(Anywhere):
        """Half a gigabyte of names, in a file of less than one megabyte."""

        file = Memory(name + pack("<IBBHQQ", 0, 2, 0, 1, 0x1000, 0) * count)
        sections = (Section(".strtab", 3, 0, 0, 0, len(name), 0, 0),)

    table = Table(Small(), Section(".symtab", 2, 0, 0, len(name), 24 * count, 0, 24))
    with pytest.raises(ImageError, match="names of symbols are no such"):
        for _ in table.all():
            pass


def test_names_of_go_that_are_too_many_are_refused(monkeypatch):
    found = GoFunctions(Anywhere(), pclntab("1.20", ["main.main", *["a"] * 20]), 0, 0)
    monkeypatch.setattr("igrun.symbols.golang.MOST_PLACES", 10)
    with pytest.raises(ImageError):
        found.named("a")
    monkeypatch.setattr("igrun.symbols.golang.MOST_TEXT", 10)
    with pytest.raises(ImageError):
        list(found.all())


def test_only_a_few_of_many_tables_of_go_are_tried(monkeypatch):
    tried = []

    class Tried(GoFunctions):
        def __init__(self, binary, data, start, address):
            tried.append(start)
            super().__init__(binary, data, start, address)

    monkeypatch.setattr("igrun.symbols.golang.GoFunctions", Tried)
    data = pack("<IBBBBQ", 0xFFFFFFF1, 0, 0, 1, 8, 0) * 1000
    section = Section(".rodata", 1, 0, 0, 0, len(data), 0, 0)

    class Everything(Anywhere):
        def content(self, section, most):
            return data

    assert searched(Everything(), section) is None
    assert len(tried) < 10
