"""BTF that describes the running kernel: where it comes from, in order, and why each place was or was not used.

1. the kernel itself: /sys/kernel/btf, else a vmlinux on disk that holds some
2. the image's BTFGen layer; for igrun's own programs `btfs/` in the package
3. what `ig btf fetch` or `import` left here, else BTFHub

BTF does not say which kernel it is of, and a program with the wrong one loads and reads zeros: what does not come from
the kernel itself is tried first with a program of ours whose answers are known (`probe`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from igrun.dataclass import dataclass
from igrun.errors import BtfNotFoundError

if TYPE_CHECKING:
    from contextlib import ExitStack

    from igrun.host import Host
    from igrun.kernel_btf.candidates import Candidate
    from igrun.program import Hook, Program

OWN = "sys/kernel/btf/vmlinux"
# Programs that the kernel itself resolves, by BTF of its own
IN_KERNEL = ("tp_btf", "fentry", "fexit", "fmod_ret", "lsm", "lsm_cgroup", "iter", "struct_ops")
NO_VALUES: Mapping[str, str] = MappingProxyType({})


class Searched(NamedTuple):
    """A place where BTF was looked for.

    source: kernel, vmlinux, image, package, cache or BTFHub
    why:    it was used, or was not, in a few words
    """

    source: str
    place: str
    used: bool
    why: str

    def __str__(self) -> str:
        return f"{self.source}: {self.place}: {self.why}"


@dataclass(frozen=True)
class KernelBtf:
    """The BTF that was chosen.

    path:     a file with nothing else in it, for CO-RE; None: libbpf finds the kernel's own, or none is needed
    searched: each place that was looked at, in order; the last one is used, if any is
    checked:  what comes from elsewhere was seen to be of this kernel
    missing:  none was found; for `load`, which may be able to do without the programs that need it
    whole:    where the kernel's own is, if libbpf reads all of it for the sake of a part (see `keep_part`)
    """

    path: str | None = None
    searched: tuple[Searched, ...] = ()
    checked: bool = True
    missing: BtfNotFoundError | None = None
    whole: Path | None = None

    def keep_part(self, host: Host, program: Program) -> None:
        """For the next run: keep what the program needs of the kernel's own, so that its load is a matter of 8 ms."""
        if self.whole is not None:
            from igrun.kernel_btf.small import keep

            keep(host, self.whole, program.elf)

    @property
    def source(self) -> str:
        """Where it is from; "" where there is none."""
        return self.searched[-1].source if self.searched and self.searched[-1].used else ""


def find(
    host: Host,
    program: Program,
    *,
    stack: ExitStack | None = None,
    btfs: bytes | None = None,
    values: Mapping[str, str] = NO_VALUES,
    packaged: bool = False,
) -> KernelBtf:
    """The BTF to resolve a program's CO-RE relocations against.

    stack:    closes what holds it; None: it stays until this process ends
    btfs:     the image's BTFGen layer
    values:   of params: btfhub, btfhub-index and pull
    packaged: it is a program of igrun's own, for which the package may have some

    ParamError: a value is wrong
    """
    if not program.needs_kernel_btf:
        return KernelBtf()
    own = host.root / OWN
    if has_own(own):
        # libbpf looks only where this process has it
        path = None if has_own(Path("/", OWN)) else str(own)
        whole = None
        if stack is not None and not any(map(resolved_in_kernel, program.hooks)):
            from igrun.kernel_btf.memory import in_memory
            from igrun.kernel_btf.small import kept

            part = kept(host, own, program.elf)
            if part is not None:
                why = "used, of which the part that this gadget needs was kept"
                return KernelBtf(in_memory(part, stack), (Searched("kernel", str(own), True, why),))
            whole = own
        return KernelBtf(path, (Searched("kernel", str(own), True, "used"),), whole=whole)
    searched = [Searched("kernel", str(own), False, "empty" if own.exists() else "no such file")]
    if all(map(resolved_in_kernel, program.hooks)):
        return KernelBtf(None, tuple(searched))  # what others have is no help
    from contextlib import ExitStack

    from igrun.kernel_btf.candidates import candidates
    from igrun.kernel_btf.memory import in_memory
    from igrun.kernel_btf.policy import Policy

    policy = Policy.of(values)
    for one in each(candidates(host, btfs, policy, packaged=packaged), searched):
        with ExitStack() as held:
            path = in_memory(one.data, held)
            checked, why = seen(path)
            searched.append(Searched(one.source, one.place, checked is not False, why))
            if checked is False:
                continue
            if stack is None:
                held.pop_all()
            else:
                stack.enter_context(held.pop_all())
            return KernelBtf(path, tuple(searched), bool(checked))
    missing = BtfNotFoundError(
        host.release,
        [(f"{one.source} {one.place}", one.why) for one in searched],
        hint="`ig btf fetch` on a machine with a network and `ig btf import` here, or an image with a BTFGen layer "
        "(`ig image build --btfgen`), or a kernel with CONFIG_DEBUG_INFO_BTF",
    )
    return KernelBtf(None, tuple(searched), missing=missing)


def has_own(path: Path) -> bool:
    """Whether the kernel shows its BTF there."""
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def each(found: Iterator[Candidate | Searched], searched: list[Searched]) -> Iterator[Candidate]:
    """The candidates; what was looked at in vain is noted."""
    for one in found:
        if isinstance(one, Searched):
            searched.append(one)
        else:
            yield one


def seen(path: str) -> tuple[bool | None, str]:
    """Whether it is of the running kernel, None if that cannot be seen; and why."""
    from igrun.kernel_btf.probe import UncheckedError, WrongBtfError, check

    try:
        checked = check(path)
    except WrongBtfError as error:
        return False, f"rejected: {error}"
    except UncheckedError as error:
        return None, f"used, but not checked: {error}"
    return True, f"used: {', '.join(checked)} read with it are right"


def resolved_in_kernel(hook: Hook) -> bool:
    """Whether it is a program that cannot be loaded without BTF in the kernel itself."""
    return hook.section.removeprefix("?").partition("/")[0].removesuffix(".s") in IN_KERNEL
