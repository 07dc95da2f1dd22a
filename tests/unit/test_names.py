"""Numbers of the kernel and their names."""

import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from igrun.names import enums, errnos, files, protocols, signals, syscalls


def test_an_unknown_errno_keeps_its_number():
    assert [errnos.errno_name(number) for number in (0, 2, 11, 35, 95, 131, 133)] == [
        *("", "ENOENT", "EAGAIN", "EDEADLK", "ENOTSUP", "ENOTRECOVERABLE", "EHWPOISON")
    ]
    assert [errnos.errno_name(number) for number in (41, 58, 134, 512)] == [
        *("error#41", "error#58", "error#134", "error#512")
    ]


def test_only_the_first_31_signals_have_a_name():
    assert [signals.signal_name(number) for number in (1, 6, 9, 15, 29, 31)] == [
        *("SIGHUP", "SIGABRT", "SIGKILL", "SIGTERM", "SIGIO", "SIGSYS")
    ]
    assert [signals.signal_name(number) for number in (0, 32, 64)] == ["signal#0", "signal#32", "signal#64"]


def test_a_system_call_is_named_by_the_architecture():
    assert syscalls.syscall_text(257, "amd64") == "SYS_OPENAT"
    assert syscalls.syscall_text(56, "arm64") == "SYS_OPENAT"
    assert syscalls.syscall_text(334, "amd64") == "SYS_RSEQ"
    assert syscalls.syscall_text(400, "amd64") == "SYS_UNKNOWN"
    assert syscalls.syscall_text(2**64 - 1, "arm64") == "SYS_UNKNOWN"


@pytest.mark.parametrize(("arch", "count"), [("amd64", 379), ("arm64", 322)])
def test_the_tables_of_system_calls_are_whole(arch, count):
    names = syscalls.names(arch)

    assert len(names) == count
    assert max(names) == 466
    assert names[424] == "pidfd_send_signal"
    assert names[466] == "removexattrat"
    assert len(set(names.values())) == count


def test_protocols_are_spelled_as_iana_does():
    assert [protocols.protocol_name(number) for number in (0, 6, 17, 58, 124, 132, 135, 145, 253, 255)] == [
        *("HOPOPT", "TCP", "UDP", "IPv6-ICMP", "ISIS over IPv4", "SCTP", "Mobility Header", "NSH"),
        *("experimentation", "reserved"),
    ]
    assert [protocols.protocol_name(number) for number in (146, 252, 256)] == ["proto#146", "proto#252", "proto#256"]


def test_open_flags_stand_after_the_access_mode():
    assert files.file_flags_text(577, "amd64") == "O_WRONLY|O_CREAT|O_TRUNC"
    assert files.file_flags_text(0o2000000, "amd64") == "O_RDONLY|O_CLOEXEC"
    assert files.file_flags_text(32768, "amd64") == "O_RDONLY|O_LARGEFILE"
    assert files.file_flags_text(3, "amd64") == ""
    assert files.file_flags_text(0o103, "amd64") == "O_CREAT"


def test_four_flags_have_other_values_on_arm64():
    flags = {0o40000: "O_DIRECTORY", 0o100000: "O_NOFOLLOW", 0o200000: "O_DIRECT", 0o400000: "O_LARGEFILE"}

    for value, name in flags.items():
        assert files.file_flags_text(value, "arm64") == f"O_RDONLY|{name}"
        assert name not in files.file_flags_text(value, "amd64").split("|")
    assert files.file_flags_text(0o600000, "arm64") == "O_RDONLY|O_DIRECT|O_LARGEFILE"


@pytest.mark.parametrize(
    ("mode", "text"),
    [
        (0, "----------"),
        (0o644, "-rw-r--r--"),
        (0o100644, "-rw-r--r--"),
        (0o666, "-rw-rw-rw-"),
        (0o755, "-rwxr-xr-x"),
        (0o4755, "-rwsr-xr-x"),
        (0o2644, "-rw-r-Sr--"),
        (0o41777, "drwxrwxrwt"),
    ],
)
def test_a_file_mode_is_shown_as_ls_shows_it(mode, text):
    assert files.file_mode_text(mode) == text


@given(st.sampled_from([0o140000, 0o120000, 0o100000, 0o60000, 0o40000, 0o20000, 0o10000]), st.integers(0, 0o7777))
def test_every_mode_with_a_type_equals_pythons(kind, bits):
    assert files.file_mode_text(kind | bits) == stat.filemode(kind | bits)


# ---------------------------------------------------------------------------------------------- enumerations


def test_the_first_name_of_a_value_counts():
    text = enums.enum_text([("A", 0), ("B", 1), ("ALSO_B", 1), ("LAST", -1)], 4)

    assert [text(value) for value in (0, 1, 2, -1, 0xFFFFFFFF)] == ["A", "B", "UNKNOWN", "LAST", "LAST"]


def test_a_set_has_every_name_whose_bits_are_set():
    text = enums.set_text([("NONE", 0), ("R", 1), ("W", 2), ("RW", 3)], 4, ", ")

    assert [text(value) for value in (0, 1, 3, 4)] == ["NONE", "NONE, R", "NONE, R, W, RW", "NONE"]
