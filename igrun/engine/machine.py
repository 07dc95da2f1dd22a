"""records.wasm on wasmtime: its functions and its memory.

Only the shared library inside the `wasmtime` package is used, by its C API: importing the package takes 30 ms, and a
call through it 40 us, where this one takes 1.
"""

from __future__ import annotations

import ctypes as C
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from igrun import caches
from igrun.clib import (
    MAP_ANONYMOUS,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    Library,
    libc,
    name_of,
)
from igrun.digests import sha256

# wasm.h, wasmtime/*.h
WASMTIME = """
wasm_engine_t *wasm_engine_new(void);
void wasm_engine_delete(wasm_engine_t *engine);
void wasm_byte_vec_delete(wasm_byte_vec_t *vec);
void wasm_trap_message(const wasm_trap_t *trap, wasm_message_t *out);
void wasmtime_error_delete(wasmtime_error_t *error);
void wasmtime_error_message(const wasmtime_error_t *error, wasm_name_t *message);
wasmtime_error_t *wasmtime_module_new(wasm_engine_t *engine, const void *wasm, size_t wasm_len, wasmtime_module_t **ret);
wasmtime_error_t *wasmtime_module_deserialize(wasm_engine_t *engine, const void *bytes, size_t len, void **ret);
wasmtime_error_t *wasmtime_module_serialize(wasmtime_module_t *module, wasm_byte_vec_t *ret);
void wasmtime_module_delete(wasmtime_module_t *module);
wasmtime_store_t *wasmtime_store_new(wasm_engine_t *engine, void *data, void *finalizer);
wasmtime_context_t *wasmtime_store_context(wasmtime_store_t *store);
void wasmtime_store_delete(wasmtime_store_t *store);
wasmtime_error_t *wasmtime_instance_new(void *store, const void *module, const void *imports, size_t n, void *instance, void **trap);
bool wasmtime_instance_export_get(void *store, const void *instance, const char *name, size_t name_len, void *item);
void *wasmtime_memory_data(void *store, const wasmtime_memory_t *memory);
size_t wasmtime_memory_data_size(void *store, const wasmtime_memory_t *memory);
wasmtime_error_t *wasmtime_memory_grow(void *store, const wasmtime_memory_t *memory, __u64 delta, void *prev_size);
wasmtime_error_t *wasmtime_func_call_unchecked(void *store, const void *func, void *raw, size_t raw_len, void **trap);
"""  # noqa: E501
WASM = Path(__file__).with_name("records.wasm")
PAGE = 1 << 16
STEP = 4 << 20  # what the memory grows by, at least; what is not touched costs nothing
LARGEST = 1 << 30  # bytes of one block
SMALLEST = 1 << 10
LENT = 64 << 20  # bytes that are lent at a time
STRUCT = C.c_uint64 * 8  # room for a struct of the library, whose members are its own business
OF = 8  # wasmtime_extern_t: u8 kind, union of
RAW = 2  # u64 in a wasmtime_val_raw_t
Check = Callable[["int | None", C.c_void_p], None]


class NoEngineError(Exception):
    """There is no wasmtime here that runs records.wasm; says why."""


class NoRoomError(Exception):
    """The memory cannot hold that much."""


class Memory(C.Array[C.c_ubyte]):
    """All that the memory of a 32-bit machine can be. machine: what it belongs to."""

    _type_, _length_ = C.c_ubyte, 1 << 32
    machine: Machine


class Loan(C.Array[C.c_ubyte]):
    """A block that is lent."""

    _type_, _length_ = C.c_ubyte, 0
    block: Block

    def __del__(self) -> None:
        self.block.machine.lent -= self.block.size


class Bytes(C.Structure):
    """wasm_byte_vec_t"""

    _fields_ = (("size", C.c_size_t), ("data", C.c_void_p))


class Block:
    """Part of the memory, until nobody refers to this object any more. address: in the memory."""

    __slots__ = ("address", "machine", "size")

    def __init__(self, machine: Machine, address: int, size: int) -> None:
        self.machine, self.address, self.size = machine, address, size

    def __del__(self) -> None:
        self.machine.free.setdefault(self.size, []).append(self.address)


class Mapped:
    """Memory of a descriptor, seen in a block. address: in the memory."""

    def __init__(self, machine: Machine, fd: int, offset: int, size: int) -> None:
        """NoRoomError."""
        self._machine, self.size = machine, size
        self._block = machine.take(size + PAGE)
        self.address = (machine.base + self._block.address + PAGE - 1) // PAGE * PAGE - machine.base
        self._map(PROT_READ, MAP_SHARED, fd, offset)

    def close(self, start: int = 0, size: int = 0) -> None:
        """Let the descriptor's memory go. These bytes are then a copy, in the same place. NoRoomError."""
        kept = bytes(self._machine.memory[self.address + start : self.address + start + size])
        # Pages of its own again, or what the next user of the block writes would go to the descriptor's.
        self._map(PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        self._machine.write(self.address + start, kept)

    def _map(self, prot: int, flags: int, fd: int, offset: int) -> None:
        where = self._machine.base + self.address
        if libc().mmap(where, self.size, prot, MAP_FIXED | flags, fd, offset) != where:
            raise NoRoomError


class Machine:
    """An instance of records.wasm.

    memory: all that there can be of it; only blocks that were taken may be touched
    base:   its address in this process
    free:   addresses of blocks that can be taken again, by size
    lent:   bytes that are lent

    It is not for several threads at once.
    """

    def __init__(self) -> None:
        """NoEngineError."""
        self.free: dict[int, list[int]] = {}
        self.lent = 0
        self._loans: dict[int, Any] = {}
        self._exports: dict[str, Any] = {}
        self._owned: list[tuple[Callable[[int], object], int]] = []
        path = found()
        self._library = library = opened(path)
        engine = self._own(library.wasm_engine_delete, library.wasm_engine_new())
        code = self._own(library.wasmtime_module_delete, module(library, path, engine))
        store = self._own(library.wasmtime_store_delete, library.wasmtime_store_new(engine, None, None))
        self._context: int = library.wasmtime_store_context(store)
        self._instance, trap = STRUCT(), C.c_void_p()
        error = library.wasmtime_instance_new(
            self._context, code, None, 0, C.addressof(self._instance), C.addressof(trap)
        )
        if error:  # such as no room for the 4 GiB of addresses that it has
            raise NoEngineError(message(library, error))
        self._memory = self._export("memory")
        self.base: int = library.wasmtime_memory_data(self._context, self._memory)
        self._end: int = library.wasmtime_memory_data_size(self._context, self._memory)
        self._taken = self._end
        memory = Memory.from_address(self.base)
        memory.machine = self  # as long as there is a view of it
        self.memory = memoryview(memory).cast("B")

    def __del__(self) -> None:
        for delete, what in reversed(self._owned):
            delete(what)

    def function(self, name: str) -> Function:
        """One of its functions, of integers."""
        return Function(self._library.wasmtime_func_call_unchecked, self._context, self._export(name), self._check)

    # ------------------------------------------------------------------------------------------ memory

    def take(self, size: int, zeros: bool = False) -> Block:
        """A block of at least that size. NoRoomError."""
        whole = max(SMALLEST, 1 << (size - 1).bit_length())
        free = self.free.get(whole)
        if free:
            block = Block(self, free.pop(), whole)
            if zeros:
                self.write(block.address, bytes(whole))
            return block
        if whole > LARGEST or self._taken + whole > (1 << 32) - PAGE:
            raise NoRoomError
        if self._taken + whole > self._end:
            self._grow(self._taken + whole - self._end)
        self._taken += whole
        return Block(self, self._taken - whole, whole)

    def lend(self, size: int) -> memoryview | None:
        """A block as memory, as long as there is a view of it. None: more than LENT bytes would be lent."""
        if self.lent + size > LENT:
            return None
        try:
            block = self.take(size)
        except NoRoomError:
            return None
        if block.size not in self._loans:
            self._loans[block.size] = type("Loan", (Loan,), {"_type_": C.c_ubyte, "_length_": block.size})
        loan = self._loans[block.size].from_address(self.base + block.address)
        loan.block = block
        self.lent += block.size
        return memoryview(loan).cast("B")[:size]

    def map(self, fd: int, offset: int, size: int) -> Mapped:
        """See a descriptor's memory in a block, which cannot be written to. NoRoomError."""
        return Mapped(self, fd, offset, size)

    def write(self, address: int, data: bytes | bytearray | memoryview) -> None:
        """Copy bytes into a block."""
        self.memory[address : address + len(data)] = data

    def _grow(self, size: int) -> None:
        pages, before = max(size, STEP) + PAGE - 1 >> 16, C.c_uint64()
        error = self._library.wasmtime_memory_grow(self._context, self._memory, pages, C.addressof(before))
        if error or self._library.wasmtime_memory_data(self._context, self._memory) != self.base:
            raise NoRoomError
        self._end += pages << 16

    def _own(self, delete: Callable[[int], object], what: int) -> int:
        self._owned.append((delete, what))
        return what

    def _export(self, name: str) -> int:
        """The address of what it exports by that name: a wasmtime_func_t or a wasmtime_memory_t."""
        item = self._exports[name] = STRUCT()
        there = self._library.wasmtime_instance_export_get(
            self._context, C.addressof(self._instance), name.encode(), len(name), C.addressof(item)
        )
        if not there:
            raise NoEngineError(f"records.wasm has no {name}")
        return C.addressof(item) + OF

    def _check(self, error: int | None, trap: C.c_void_p) -> None:
        if error:
            raise RuntimeError(f"record engine: {message(self._library, error)}")
        if trap.value:
            text = Bytes()
            self._library.wasm_trap_message(trap.value, C.addressof(text))
            raise RuntimeError(f"record engine: {C.string_at(text.data, text.size).decode(errors='replace')}")


class Function:
    """A function of integers."""

    def __init__(self, call: Callable[..., int | None], context: int, function: int, check: Check) -> None:
        self._call, self._check = call, check
        self._raw = (C.c_uint64 * (RAW * 5))()
        self._trap = C.c_void_p()
        self._where = context, function, C.addressof(self._raw), 5, C.addressof(self._trap)

    def __call__(self, *arguments: int) -> int:
        """Its result, as an unsigned number."""
        raw = self._raw
        for at, argument in enumerate(arguments):
            raw[RAW * at] = argument
        error = self._call(*self._where)
        if error or self._trap.value:
            self._check(error, self._trap)
        result: int = raw[0] & 0xFFFFFFFF
        return result


# ---------------------------------------------------------------------------------------------- the library


def found() -> Path:
    """Where wasmtime's shared library is. NoEngineError."""
    from importlib.machinery import PathFinder

    # The package is looked for, not imported
    spec = PathFinder.find_spec("wasmtime")
    for folder in (spec and spec.submodule_search_locations) or ():
        return Path(folder, f"linux-{os.uname().machine}", "_libwasmtime.so")
    raise NoEngineError("the package wasmtime is not installed")


def opened(path: Path) -> Library:
    """The library. NoEngineError."""
    try:
        library = Library(C.CDLL(str(path)), WASMTIME)
    except OSError as error:
        raise NoEngineError(str(error)) from None
    lacks = [name for name in map(name_of, filter(None, WASMTIME.splitlines())) if not library.has(name)]
    if lacks:
        raise NoEngineError(f"this wasmtime has no {', '.join(lacks)}")
    return library


def message(library: Library, error: int) -> str:
    """What an error of the library says."""
    text = Bytes()
    library.wasmtime_error_message(error, C.addressof(text))
    library.wasmtime_error_delete(error)
    said = C.string_at(text.data, text.size).decode(errors="replace")
    library.wasm_byte_vec_delete(C.addressof(text))
    return said


def module(library: Library, path: Path, engine: int) -> int:
    """The compiled module, from the cache if it is there. NoEngineError."""
    wasm, found = WASM.read_bytes(), C.c_void_p()
    cached = caches.home() / "engine" / digest(path, wasm)
    # This is code that runs as this user: `read` gives nothing that somebody else could have written.
    known = caches.read(cached)
    if known:
        error = library.wasmtime_module_deserialize(engine, known, len(known), C.addressof(found))
        if not error:
            return found.value or 0
        library.wasmtime_error_delete(error)
    error = library.wasmtime_module_new(engine, wasm, len(wasm), C.addressof(found))
    if error:
        raise NoEngineError(message(library, error))
    compiled = Bytes()
    error = library.wasmtime_module_serialize(found.value, C.addressof(compiled))
    if error:
        raise NoEngineError(message(library, error))
    caches.write(cached, C.string_at(compiled.data, compiled.size))
    library.wasm_byte_vec_delete(C.addressof(compiled))
    return found.value or 0


def digest(path: Path, wasm: bytes) -> str:
    """What compiled code depends on: the module, the library's build, the processor."""
    state = path.stat()
    return sha256(wasm + repr((state.st_size, state.st_mtime_ns, cpu())).encode()).hexdigest()


def cpu() -> list[bytes]:
    """What this processor is and can do."""
    with Path("/proc/cpuinfo").open("rb") as file:
        lines = file.read(4096).splitlines()  # the first one is in there
    return [line for line in lines if line.startswith((b"flags", b"Features", b"model name", b"CPU part"))]
