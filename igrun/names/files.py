"""The flags of open(2) and the mode of a file, as text."""

from __future__ import annotations

ACCESS = ("O_RDONLY", "O_WRONLY", "O_RDWR", "")

# include/uapi/asm-generic/fcntl.h; x86 has no values of its own
FLAGS = (
    (0o100, "O_CREAT"),
    (0o200, "O_EXCL"),
    (0o400, "O_NOCTTY"),
    (0o1000, "O_TRUNC"),
    (0o2000, "O_APPEND"),
    (0o4000, "O_NONBLOCK"),
    (0o10000, "O_DSYNC"),
    (0o20000, "O_FASYNC"),
    (0o40000, "O_DIRECT"),
    (0o100000, "O_LARGEFILE"),
    (0o200000, "O_DIRECTORY"),
    (0o400000, "O_NOFOLLOW"),
    (0o1000000, "O_NOATIME"),
    (0o2000000, "O_CLOEXEC"),
)
# arch/arm64/include/uapi/asm/fcntl.h
ARM64_FLAGS = {"O_DIRECTORY": 0o40000, "O_NOFOLLOW": 0o100000, "O_DIRECT": 0o200000, "O_LARGEFILE": 0o400000}

KINDS = {
    0o140000: "s",
    0o120000: "l",
    0o100000: "-",
    0o060000: "b",
    0o040000: "d",
    0o020000: "c",
    0o010000: "p",
}


def file_flags_text(flags: int, arch: str) -> str:
    """`O_WRONLY|O_CREAT|O_TRUNC`: the access mode, then the set flags in the same order on every architecture."""
    values = ARM64_FLAGS if arch == "arm64" else {}
    found = [ACCESS[flags & 3]] + [name for value, name in FLAGS if flags & values.get(name, value)]
    return "|".join(filter(None, found))


def file_mode_text(mode: int) -> str:
    """`-rw-r--r--`, as `ls -l` shows it: `drwxrwxrwt`, `-rwsr-xr-x`."""
    text = ["r", "w", "x"] * 3
    for position in range(9):
        if not mode & (0o400 >> position):
            text[position] = "-"
    for bit, position, letter in ((0o4000, 2, "s"), (0o2000, 5, "s"), (0o1000, 8, "t")):
        if mode & bit:
            text[position] = letter if text[position] == "x" else letter.upper()
    return KINDS.get(mode & 0o170000, "-") + "".join(text)
