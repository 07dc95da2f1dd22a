"""What the kernel knows about a process and its maps, asked from outside, and without igrun."""

import ctypes as C
import mmap
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HASH, RINGBUF = 1, 27  # BPF_MAP_TYPE_*
PAGE = os.sysconf("SC_PAGE_SIZE")
PROCESS_CLOCK = 2  # CPUCLOCK_SCHED


def cpu_s(pid: int) -> float:
    """CPU time of all the threads a process has or had, in the program and in the kernel."""
    return time.clock_gettime((~pid << 3) | PROCESS_CLOCK)


def written(pid: int) -> int:
    """Bytes that a process has written, to whatever."""
    return int(fields(f"/proc/{pid}/io")["wchar"])


def at_work(pid: int) -> bool:
    """True if a thread of a process runs, or would if it had a CPU."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            if thread.joinpath("stat").read_text().rpartition(")")[2].split()[0] == "R":
                return True
    return False


def memory_mb(pid: int) -> float:
    """What is in memory of a process: its own, the files' and the ring's pages."""
    return int(fields(f"/proc/{pid}/status")["VmRSS"].split()[0]) / 1024


def others_s() -> float:
    """CPU time of this machine's other programs since it was started: all but ours and our children's that are gone."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    own = os.times()
    return (user + nice + system) / os.sysconf("SC_CLK_TCK") - sum(own[:4])


def fields(path: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in Path(path).read_text().splitlines() if ":" in line)


class MapInfo(C.Structure):
    """The head of struct bpf_map_info."""

    _fields_ = (
        *((name, C.c_uint32) for name in ("type", "id", "key_size", "value_size", "max_entries", "map_flags")),
        ("name", C.c_char * 16),
        ("rest", C.c_char * 256),
    )


@cache
def libbpf() -> C.CDLL:
    return C.CDLL(os.environ.get("IGRUN_LIBBPF") or "libbpf.so.1", use_errno=True)


@dataclass
class Map:
    """A map of another process. Close it."""

    fd: int
    info: MapInfo

    @property
    def name(self) -> str:
        return self.info.name.decode()

    def sum(self) -> int:
        """Of the only entry of a per-CPU array of u64."""
        values = (C.c_uint64 * libbpf().libbpf_num_possible_cpus())()
        if libbpf().bpf_map_lookup_elem(self.fd, bytes(4), values):
            raise OSError(C.get_errno(), f"look up in map {self.name}")
        return sum(values)

    def empty(self) -> bool:
        return libbpf().bpf_map_get_next_key(self.fd, None, C.create_string_buffer(self.info.key_size)) != 0

    def close(self) -> None:
        os.close(self.fd)


def maps(pid: int) -> list[Map]:
    """The maps that a process has now."""
    found: dict[int, Map] = {}
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        with suppress(FileNotFoundError, KeyError):
            number = int(fields(str(entry))["map_id"])
            fd = libbpf().bpf_map_get_fd_by_id(number)
            if fd < 0 or number in found:
                continue
            info, size = MapInfo(), C.c_uint32(C.sizeof(MapInfo))
            libbpf().bpf_obj_get_info_by_fd(fd, C.byref(info), C.byref(size))
            found[number] = Map(fd, info)
    return list(found.values())


class Ring:
    """The positions of a ring buffer that another process reads."""

    def __init__(self, map: Map) -> None:
        self.size = map.info.max_entries
        self._consumer = mmap.mmap(map.fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ)
        self._producer = mmap.mmap(map.fd, PAGE, mmap.MAP_SHARED, mmap.PROT_READ, offset=PAGE)

    @property
    def produced(self) -> int:
        """Bytes of records since it was made."""
        return int.from_bytes(self._producer[:8], "little")

    @property
    def consumed(self) -> int:
        """Bytes that were read."""
        return int.from_bytes(self._consumer[:8], "little")

    def close(self) -> None:
        self._consumer.close()
        self._producer.close()
