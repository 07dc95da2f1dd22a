"""Small BTF: of a kernel's, only what the CO-RE relocations of some objects look at.

The same types and members that `bpftool gen min_core_btf` keeps: a few hundred bytes where a kernel has megabytes, and
libbpf resolves these objects against them as against the whole.
"""

from __future__ import annotations

from collections.abc import Iterable

from igrun.btf import Btf
from igrun.btfgen.marks import Marks
from igrun.btfgen.match import Matching
from igrun.btfgen.relocations import Relocation, relocations
from igrun.btfgen.write import written

__all__ = ["Relocation", "minimal", "relocations"]


def minimal(kernel: bytes, wanted: Iterable[Iterable[Relocation]]) -> bytes:
    """The BTF, cut down to what these relocations need.

    kernel: the bytes of a kernel's BTF
    wanted: the `relocations` of each object

    ImageError: it is no BTF, or a relocation fits to two things in it that differ.
    """
    btf = Btf.parse(kernel)
    marks = Marks(btf)
    every = [relocation for one in wanted for relocation in one]
    matching = Matching(btf, every)
    for relocation in every:
        matching.mark(relocation, marks)
    return written(btf, marks)
