"""libbpf itself: where it is, its functions under their C prototypes, its log, and its errors as exceptions."""

from __future__ import annotations

import ctypes as C
import os
import sys
from collections import deque
from functools import cache
from pathlib import Path

from igrun.clib import Library, libc
from igrun.errors import GadgetError, KernelError, VerifierError
from igrun.regex import regex

# As in bpf/libbpf.h, bpf/bpf.h and bpf/btf.h, options as `void *`. What only newer versions have is asked for with
# `library().has(name)`.
PROTOTYPES = """
__u32 libbpf_major_version(void);
__u32 libbpf_minor_version(void);
void *libbpf_set_print(const void *fn);
int libbpf_num_possible_cpus(void);

struct bpf_object *bpf_object__open_mem(const void *obj_buf, size_t obj_buf_sz, const void *opts);
int bpf_object__load(struct bpf_object *obj);
void bpf_object__close(struct bpf_object *object);
struct bpf_program *bpf_object__next_program(const struct bpf_object *obj, struct bpf_program *prog);
struct bpf_map *bpf_object__next_map(const struct bpf_object *obj, const struct bpf_map *map);
struct bpf_map *bpf_object__find_map_by_name(const struct bpf_object *obj, const char *name);

const char *bpf_program__name(const struct bpf_program *prog);
const char *bpf_program__section_name(const struct bpf_program *prog);
enum bpf_prog_type bpf_program__type(const struct bpf_program *prog);
int bpf_program__set_type(struct bpf_program *prog, enum bpf_prog_type type);
int bpf_program__set_expected_attach_type(struct bpf_program *prog, enum bpf_attach_type type);
int bpf_program__set_attach_target(struct bpf_program *prog, int attach_prog_fd, const char *attach_func_name);
__u32 bpf_program__flags(const struct bpf_program *prog);
int bpf_program__set_flags(struct bpf_program *prog, __u32 flags);
enum bpf_attach_type bpf_program__expected_attach_type(const struct bpf_program *prog);
void bpf_program__unload(struct bpf_program *prog);
int bpf_program__set_autoload(struct bpf_program *prog, bool autoload);
bool bpf_program__autoload(const struct bpf_program *prog);
int bpf_program__fd(const struct bpf_program *prog);
struct bpf_link *bpf_program__attach_perf_event_opts(const struct bpf_program *prog, int pfd, const void *opts);
struct bpf_link *bpf_program__attach_kprobe_opts(const struct bpf_program *prog, const char *name, const void *opts);
struct bpf_link *bpf_program__attach_raw_tracepoint(const struct bpf_program *prog, const char *tp_name);
struct bpf_link *bpf_program__attach_trace(const struct bpf_program *prog);
int bpf_link__fd(const struct bpf_link *link);
void bpf_link__disconnect(struct bpf_link *link);
int bpf_link__destroy(struct bpf_link *link);

const char *bpf_map__name(const struct bpf_map *map);
int bpf_map__fd(const struct bpf_map *map);
enum bpf_map_type bpf_map__type(const struct bpf_map *map);
__u32 bpf_map__key_size(const struct bpf_map *map);
__u32 bpf_map__value_size(const struct bpf_map *map);
__u32 bpf_map__max_entries(const struct bpf_map *map);
__u32 bpf_map__map_flags(const struct bpf_map *map);
int bpf_map__set_map_flags(struct bpf_map *map, __u32 flags);
int bpf_map__set_autocreate(struct bpf_map *map, bool autocreate);
struct bpf_link *bpf_map__attach_struct_ops(const struct bpf_map *map);
int bpf_map__set_type(struct bpf_map *map, enum bpf_map_type type);
int bpf_map__set_key_size(struct bpf_map *map, __u32 size);
int bpf_map__set_value_size(struct bpf_map *map, __u32 size);
int bpf_map__set_max_entries(struct bpf_map *map, __u32 max_entries);
int bpf_map__reuse_fd(struct bpf_map *map, int fd);
void *bpf_map__initial_value(struct bpf_map *map, size_t *psize);

int bpf_map_create(enum bpf_map_type t, const char *name, __u32 key, __u32 value, __u32 entries, const void *opts);
int bpf_map_lookup_elem(int fd, const void *key, void *value);
int bpf_map_update_elem(int fd, const void *key, const void *value, __u64 flags);
int bpf_map_delete_elem(int fd, const void *key);
int bpf_map_lookup_and_delete_elem(int fd, const void *key, void *value);
int bpf_map_get_next_key(int fd, const void *key, void *next_key);
int bpf_map_lookup_batch(int fd, void *in, void *out, void *keys, void *values, __u32 *count, const void *opts);
int bpf_map_lookup_and_delete_batch(int fd, void *i, void *o, void *keys, void *vals, __u32 *count, const void *opts);
int bpf_map_freeze(int fd);
int bpf_obj_get_info_by_fd(int bpf_fd, void *info, __u32 *info_len);
int bpf_link_create(int prog_fd, int target_fd, enum bpf_attach_type attach_type, const void *opts);
int bpf_iter_create(int link_fd);
int libbpf_probe_bpf_prog_type(enum bpf_prog_type prog_type, const void *opts);
int libbpf_probe_bpf_map_type(enum bpf_map_type map_type, const void *opts);
int libbpf_probe_bpf_helper(enum bpf_prog_type prog_type, enum bpf_func_id helper_id, const void *opts);

struct btf *btf__parse_raw(const char *path);
struct btf *btf__new(const void *data, __u32 size);
struct btf *btf__new_empty(void);
int btf__add_btf(struct btf *btf, const struct btf *src_btf);
const void *btf__raw_data(const struct btf *btf, __u32 *size);
void btf__free(struct btf *btf);
"""
OLDEST = (1, 1)
HINT = "install libbpf 1.1 or later (Debian and Ubuntu: apt install libbpf1), or name one in IGRUN_LIBBPF"


@cache
def library() -> Library:
    """libbpf: $IGRUN_LIBBPF, else the package's own, else the system's. GadgetError: none, or too old."""
    own = Path(__file__).parent / "_data" / "lib" / os.uname().machine / "libbpf.so.1"
    name = os.environ.get("IGRUN_LIBBPF") or (str(own) if own.exists() else "libbpf.so.1")
    try:
        handle = C.CDLL(name, use_errno=True)
        found = Library(handle, PROTOTYPES)
        version = found.libbpf_major_version(), found.libbpf_minor_version()
    except OSError as error:
        raise GadgetError(f"libbpf cannot be used: {error}", hint=HINT) from None
    except AttributeError:
        raise GadgetError(f"{name} is older than libbpf 0.6, or no libbpf at all", hint=HINT) from None
    if version < OLDEST:
        raise GadgetError(f"{name} is libbpf {version[0]}.{version[1]}, which is too old", hint=HINT)
    found.libbpf_set_print(listener)
    return found


# ------------------------------------------------------------------------------------------------ its log

WARN, INFO, DEBUG = 0, 1, 2
said: deque[str] = deque(maxlen=200)
"""What libbpf warned of last, oldest first: the reason of a failure is there and nowhere else."""


def listen(level: int, form: bytes, arguments: int) -> int:
    """Take one message of libbpf: to `said`, and to the logger `igrun.libbpf`."""
    # Whoever wants the messages has imported logging; a run that does not need it is spared its start-up.
    logging = sys.modules.get("logging")
    logger = logging.getLogger("igrun.libbpf") if logging else None
    wanted = logger is not None and logger.isEnabledFor(10)
    if level == DEBUG and not wanted:
        return 0
    text = formatted(form, arguments).rstrip("\n")
    if level != DEBUG:
        said.append(text.removeprefix("libbpf: "))
    if wanted and logger is not None:
        logger.debug("%s", text)
    return 0


def formatted(form: bytes, arguments: int) -> str:
    """The text that printf would print. arguments: the address of a va_list."""
    # Printing uses up the va_list. Both ABIs keep it in at most 32 bytes, which stand for a second pass.
    again = C.create_string_buffer(C.string_at(arguments, 32), 32)
    buffer = C.create_string_buffer(4096)
    length = libc().vsnprintf(buffer, len(buffer), form, arguments)
    if length >= len(buffer):  # a verifier log
        buffer = C.create_string_buffer(length + 1)
        libc().vsnprintf(buffer, len(buffer), form, again)
    return buffer.value.decode(errors="replace")


listener = C.CFUNCTYPE(C.c_int, C.c_int, C.c_char_p, C.c_void_p)(listen)

# ------------------------------------------------------------------------------------------------ its errors


def check(result: int, what: str, *, hint: str = "") -> int:
    """The result of a function that returns -errno on failure. KernelError if it failed."""
    if result < 0:
        raise KernelError(-result, what, hint=hint)
    return result


def pointer(result: int | None, what: str) -> int:
    """The result of a function that returns NULL and sets errno on failure. KernelError if it failed."""
    if not result:
        raise KernelError(C.get_errno(), what)
    return result


BEGIN, END = "-- BEGIN PROG LOAD LOG --", "-- END PROG LOAD LOG --"
REFUSED = regex(r"prog '([^']+)': BPF program load failed")
# What the verifier says of its own work after the reason.
STATISTICS = regex(r"^(processed \d+ insns|stack depth |verification time |max_states_|insns? processed|\s*$)")


def refusal(number: int) -> VerifierError | None:
    """What libbpf said about the program that the kernel did not load; None if it was not about a program."""
    program, log = "", ""
    for text in said:
        found = REFUSED.search(text)
        program = found[1] if found else program
        if BEGIN in text:
            log = text.partition(BEGIN)[2].partition(END)[0].strip("\n")
    if not program:
        return None
    return VerifierError(number, program, reason(log) or os.strerror(number), log=log)


def reason(log: str) -> str:
    """The last line of a verifier log that says something about the program."""
    return next((line.strip() for line in reversed(log.splitlines()) if not STATISTICS.match(line)), "")


def last_said() -> str:
    """libbpf's last warning that is not about what it does because of an earlier one."""
    noise = ("failed to load object", "failed to perform CO-RE relocations:")
    return next((text for text in reversed(said) if text.strip() and not text.startswith(noise)), "")
