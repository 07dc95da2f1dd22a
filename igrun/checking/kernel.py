"""The kernel that is looked at: the running one, or what a file with BTF tells of another one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from igrun import mounts
from igrun.btf import Btf, Type, TypeKind
from igrun.checking.config import Config
from igrun.checking.probe import can_ask
from igrun.checking.table import BTF_FILE, HERE, WORKS, Answer
from igrun.errors import ImageError, ParamError, UnsupportedError
from igrun.kernel_btf import OWN

if TYPE_CHECKING:
    from igrun.host import Host

# What lists them is no member
SENTINEL = re.compile(r"__|.*_MAX(_ID)?$")
KALLSYMS = Path("/proc/kallsyms")


class Kernel:
    """What is known of a kernel, each found when it is asked for.

    host:   this machine
    btf:    of the kernel; None: it has none
    config: what it was built with
    other:  the file that tells of it; "": it is the one that runs here
    ask:    it may be asked with programs and maps, if this process is let
    """

    def __init__(self, host: Host, btf: Btf | None, config: Config, *, other: str = "", ask: bool = True) -> None:
        self.host, self.btf, self.config, self.other, self._ask = host, btf, config, other, ask
        self._types: dict[str, Type | None] = {}
        self._enumerators: dict[str, frozenset[int]] = {}

    @classmethod
    def here(cls, host: Host, *, config: str = "", ask: bool = True) -> Kernel:
        """The running one. config: a file with the configuration of another one. ParamError: it is none"""
        try:
            btf = Btf.parse((host.root / OWN).read_bytes())
        except (OSError, ImageError):
            btf = None
        found = Config.at(config) if config else Config.here(host.root, host.release)
        return cls(host, btf, found, ask=ask)

    @classmethod
    def of_file(cls, host: Host, path: str, *, config: str = "") -> Kernel:
        """That of a file with BTF, an archive of BTFHub, or an ELF kernel; and one with its configuration.

        ParamError: a file is none
        """
        from igrun.errors import GadgetError
        from igrun.kernel_btf.cache import load

        try:
            btf = Btf.parse(load(Path(path).absolute(), ""))
        except GadgetError as error:
            hint = "give BTF, as /sys/kernel/btf/vmlinux, or an ELF kernel that holds it"
            raise ParamError("btf", path, str(error), hint=hint) from None
        return cls(host, btf, Config.at(config) if config else Config.untold(), other=path)

    @property
    def of(self) -> str:
        """What its rows are of."""
        return BTF_FILE if self.other else HERE

    @property
    def name(self) -> str:
        return f"the kernel of {self.other}" if self.other else f"Linux {self.host.release}"

    @cached_property
    def asking(self) -> Answer | None:
        """Whether it lets us load programs; None: it is not asked: another kernel, or this process may not."""
        if self.other or not self._ask or not {"CAP_BPF", "CAP_SYS_ADMIN"} & self.host.capabilities:
            return None
        return can_ask()

    @property
    def asks(self) -> bool:
        """Whether programs and maps can be loaded to see what it takes."""
        return self.asking is not None and self.asking.verdict is WORKS

    def has_option(self, *names: str) -> bool:
        """Whether its configuration is told, and has all of these."""
        return all(self.config.is_on(name) for name in names)

    # ------------------------------------------------------------------------------------------ BTF

    def learn(self, names: Iterable[str]) -> None:
        """Look for types of these names, all in one pass."""
        wanted = set(names) - self._types.keys()
        if self.btf is not None and wanted:
            for name, found in self.btf.named(wanted).items():
                kinds = (TypeKind.FUNC, TypeKind.TYPEDEF, TypeKind.STRUCT)
                self._types[name] = next((one for kind in kinds for one in found if one.kind is kind), None)

    def type(self, name: str) -> Type | None:
        """The function, typedef or struct of that name."""
        if name not in self._types:
            self.learn([name])
        return self._types.get(name)

    def function(self, name: str) -> Type | None:
        """A function, as far as BTF tells of it."""
        found = self.type(name)
        return found if found is not None and found.kind is TypeKind.FUNC else None

    def has_tracepoint(self, name: str) -> bool | None:
        """By its BTF; None: it has none."""
        if self.btf is None:
            return None
        found = self.type(f"btf_trace_{name}")
        return found is not None and found.kind is TypeKind.TYPEDEF

    def knows(self, enumeration: str, number: int) -> bool | None:
        """Whether one of its lists (bpf_func_id, ...) has that number; None: its BTF does not hold the list."""
        if self.btf is None:
            return None
        if enumeration not in self._enumerators:
            try:
                lists = list(self.btf.enumerations(enumeration))
            except ImageError:
                lists = []
            members = (one for found in lists for one in found.members)
            self._enumerators[enumeration] = frozenset(value for name, value in members if not SENTINEL.match(name))
        known = self._enumerators[enumeration]
        return number in known if known else None

    def near(self, name: str, prefix: str = "") -> str:
        """A hint with names like it, of those with the prefix; "" if there are none."""
        if self.btf is None:
            return ""
        from difflib import get_close_matches

        text = self.btf.strings.decode("latin-1")
        like = re.findall(rf"\0{prefix}({re.escape(name[:3])}\w*)(?=\0)", text)
        found = get_close_matches(name, like, 3)
        return f"did you mean {', '.join(found)}?" if found else ""

    # ------------------------------------------------------------------------------------------ of the running one

    @cached_property
    def symbols(self) -> frozenset[str]:
        """The names in kallsyms, which every user may read; empty: of another kernel, or there are none."""
        if self.other:
            return frozenset()
        try:
            text = KALLSYMS.read_text(errors="replace")
        except OSError:
            return frozenset()
        return frozenset(line.split(None, 3)[2] for line in text.splitlines() if line.count(" ") >= 2)

    @cached_property
    def lockdown(self) -> str:
        """That of this machine; `none` where its kernel has no such thing, "" if that is not told."""
        if self.host.lockdown:
            return self.host.lockdown
        try:
            with mounts.filesystem("securityfs") as directory:
                return mounts.read(directory, "lockdown").partition("[")[2].partition("]")[0] or "none"
        except FileNotFoundError:
            return "none"
        except (OSError, UnsupportedError):
            return ""

    @cached_property
    def traceable(self) -> frozenset[str] | None:
        """The functions that ftrace knows; None: that is not told."""
        from igrun.attach.functions import traceable

        found = None if self.other else traceable("available_filter_functions")
        return None if found is None else frozenset(name for name, _ in found)

    @cached_property
    def modules(self) -> dict[str, bytes]:
        """Module -> its BTF, of those that are loaded."""
        found: dict[str, bytes] = {}
        if self.other:
            return found
        try:
            paths = sorted((self.host.root / OWN).parent.iterdir())
        except OSError:
            return found
        for path in paths:
            if path.name != "vmlinux":
                try:
                    found[path.name] = path.read_bytes()
                except OSError:
                    continue
        return found

    def module_with(self, name: str) -> str:
        """A loaded module whose BTF has that name, "" if there is none."""
        wanted = b"\0" + name.encode() + b"\0"
        return next((module for module, data in self.modules.items() if wanted in data), "")
