"""The grammar of filter expressions: words -> a tree of what was written.

An address or a number without a qualifier has those of the one before it (`port 80 or 443`), which only the meaning
knows; so the tree keeps it as it stands. Two readings of a parenthesis are tried one after the other; what was found
at a place is remembered, so that the time stays linear.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from igrun.dataclass import dataclass
from igrun.errors import ParamError
from igrun.packetfilter.words import OTHERS, PROTOCOLS, Text, Word, words

DEEPEST = 40  # nested parentheses
MOST_OPERATORS = 100  # of one computation
# How tightly an operator binds. % and ^ take everything that follows: tcpdump's grammar says nothing about them.
BINDS = {"|": 1, "&": 2, "<<": 3, ">>": 3, "+": 4, "-": 4, "*": 5, "/": 5, "%": 99, "^": 99}
GREEDY = ("%", "^")
UNARY = 6
RELATIONS = (">", ">=", "=", "<", "<=", "!=")
ADDRESSES = ("host", "net", "port", "portrange")
NUMBERED = ("vlan", "mpls", "pppoes", "geneve")  # may be followed by a number
ALONE = ("inbound", "outbound", "pppoed")
WLAN = ("type", "subtype", "dir", "addr1", "addr2", "addr3", "addr4", "ra", "ta")
ATM = "lane metac bcc oam oamf4 oamf4ec oamf4sc sc ilmic vpi vci connectmsg metaconnect".split()
SS7 = "fisu lssu msu hfisu hlssu hmsu sio opc dpc sls hsio hopc hdpc hsls".split()
PF = "ifname ruleset rnr subrulenum reason action".split()
ELSEWHERE = {
    **dict.fromkeys(WLAN, "wireless frames"),
    **dict.fromkeys(ATM, "ATM"),
    **dict.fromkeys(SS7, "SS7"),
    **dict.fromkeys(PF, "the logs of the firewall pf"),
    "ifindex": "captures of several interfaces",
}


# ------------------------------------------------------------------------------------------------ what was written


@dataclass(frozen=True, slots=True)
class Qualifiers:
    """What an address is qualified with; "" where nothing is said. direction: src, dst, or, and."""

    protocol: str
    direction: str
    address: str
    place: int


@dataclass(frozen=True, slots=True)
class Id:
    """An address, number or name. mask: a word of kind ipv4, or one with the length of the prefix."""

    word: Word
    mask: Word | None = None


@dataclass(frozen=True, slots=True)
class Primitive:
    """Addresses with qualifiers; None: with those before."""

    qualifiers: Qualifiers | None
    id: Node


@dataclass(frozen=True, slots=True)
class Joined:
    """left `and` or `or` right."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Inverted:
    """`not` inner."""

    inner: Node


@dataclass(frozen=True, slots=True)
class Group:
    """An expression in parentheses."""

    inner: Node


@dataclass(frozen=True, slots=True)
class Said:
    """A word with what follows it: `vlan 5`, `ip multicast`, `less 100`, or a protocol alone."""

    word: Word
    protocol: str = ""
    arguments: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True)
class Relation:
    """left > right, ..."""

    op: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a computation."""

    word: Word


@dataclass(frozen=True, slots=True)
class Operation:
    """left + right, ..., or - right."""

    op: Word
    left: Node | None
    right: Node


@dataclass(frozen=True, slots=True)
class Bytes:
    """protocol[index:size]."""

    protocol: Word
    index: Node
    size: int


Node = Id | Primitive | Joined | Inverted | Group | Said | Relation | Number | Operation | Bytes


class Found(NamedTuple):
    """A node and the word behind it."""

    node: Node
    next: int


# ------------------------------------------------------------------------------------------------ reading


def parse(source: Text) -> Node | None:
    """The tree of the expression, None if it is empty. ParamError: it is none."""
    listed = words(source)
    refuse_deep(source, listed)
    reader = Reader(source, listed)
    if len(listed) == 1:
        return None
    found = reader.expression(0)
    if found is None or listed[found.next].kind != "end":
        raise reader.problem(found.next if found else 0)
    return found.node


def refuse_deep(source: Text, listed: list[Word]) -> None:
    """ParamError: parentheses, `not` or operators are nested so deeply that nobody means it."""
    depth = operators = inverted = 0
    for word in listed:
        if word.kind in ("name", "end"):
            continue
        depth += (word.text in ("(", "[")) - (word.text in (")", "]"))
        inverted = inverted + 1 if word.text == "not" else 0
        operators = 0 if word.text in ("and", "or") else operators + (word.text in BINDS)
        if depth > DEEPEST or inverted > DEEPEST:
            raise source.error(f"more than {DEEPEST} levels", word.place)
        if operators > MOST_OPERATORS:
            raise source.error(f"more than {MOST_OPERATORS} operators in a computation", word.place)


class Reader:
    """Reads by recursive descent. Each method gives what begins at word `at`, None if nothing of its kind does."""

    def __init__(self, source: Text, listed: list[Word]) -> None:
        self.source, self.words = source, listed
        self.furthest = 0
        self.expression = self._remembered(self._expression)
        self.term = self._remembered(self._term)
        self.id = self._remembered(self._id)
        self.several = self._remembered(self._several)
        self.computed = cache(self._computed)

    def _remembered(self, read: Callable[[int], Found | None]) -> Callable[[int], Found | None]:
        return cache(read)

    def is_(self, at: int, *texts: str) -> bool:
        """True if that is one of these words or signs."""
        self.furthest = max(self.furthest, at)
        word = self.words[at]
        return word.kind in ("word", "sign", "protocol") and word.text in texts

    def kind(self, at: int, *kinds: str) -> bool:
        self.furthest = max(self.furthest, at)
        return self.words[at].kind in kinds

    # ---------------------------------------------------------------------------------------- and, or, not

    def _expression(self, at: int) -> Found | None:
        left = self.term(at)
        while left and self.is_(left.next, "and", "or"):
            right = self.term(left.next + 1)
            if right is None:
                bare = self.id(left.next + 1)
                right = Found(Primitive(None, bare.node), bare.next) if bare else None
            if right is None:
                return None
            left = Found(Joined(self.words[left.next].text, left.node, right.node), right.next)
        return left

    def _term(self, at: int) -> Found | None:
        if self.is_(at, "not"):
            inner = self.term(at + 1)
            return Found(Inverted(inner.node), inner.next) if inner else None
        if self.is_(at, "("):
            inner = self.expression(at + 1)
            if inner and self.is_(inner.next, ")"):
                return Found(Group(inner.node), inner.next + 1)
        return self._relation(at) or self._primitive(at) or self._said(at)

    def _primitive(self, at: int) -> Found | None:
        place = self.words[at].place
        protocol = ""
        if self.kind(at, "protocol"):
            protocol = self.words[at].text
            at += 1
        start = at
        direction, at = self._direction(at)
        address = ""
        if self.is_(at, *ADDRESSES) or (not direction and self.is_(at, "proto", "protochain", "gateway")):
            address = self.words[at].text
            at += 1
        if at == start:
            return None
        found = self.id(at)
        return found and Found(Primitive(Qualifiers(protocol, direction, address, place), found.node), found.next)

    def _direction(self, at: int) -> tuple[str, int]:
        if not self.is_(at, "src", "dst"):
            return "", at
        other = "dst" if self.words[at].text == "src" else "src"
        if self.is_(at + 1, "or", "and") and self.is_(at + 2, other):
            return self.words[at + 1].text, at + 3
        return self.words[at].text, at + 1

    def _said(self, at: int) -> Found | None:
        word = self.words[at]
        if word.kind == "protocol":
            if self.is_(at + 1, "broadcast", "multicast"):
                return Found(Said(self.words[at + 1], word.text), at + 2)
            return Found(Said(word), at + 1)
        if word.kind != "word":
            return None
        if word.text in ELSEWHERE:
            raise self.source.error(f"{word.text!r} is for {ELSEWHERE[word.text]}", word.place)
        if word.text in ("broadcast", "multicast", *ALONE):
            return Found(Said(word), at + 1)
        if word.text in NUMBERED:
            found = self._number(at + 1)
            return Found(Said(word, "", (found[0],)), found[1]) if found else Found(Said(word), at + 1)
        if word.text in ("less", "greater") and self.kind(at + 1, "number"):
            return Found(Said(word, "", (self.words[at + 1],)), at + 2)
        if word.text == "byte":
            return self._byte(at)
        if word.text == "llc":
            follows = self.words[at + 1]
            named = self.kind(at + 1, "name") or self.is_(at + 1, "rnr")
            return Found(Said(word, "", (follows,)), at + 2) if named else Found(Said(word), at + 1)
        return None

    def _byte(self, at: int) -> Found | None:
        if not self.kind(at + 1, "number") or not self.is_(at + 2, "&", "|", "<", ">", "="):
            return None
        if not self.kind(at + 3, "number"):
            return None
        return Found(Said(self.words[at], "", tuple(self.words[at + 1 : at + 4])), at + 4)

    # ---------------------------------------------------------------------------------------- addresses

    def _id(self, at: int) -> Found | None:
        number = self._number(at)
        if number:
            return Found(Id(number[0]), number[1])
        if self.is_(at, "("):
            inner = self.several(at + 1)
            return Found(inner.node, inner.next + 1) if inner and self.is_(inner.next, ")") else None
        return self._address(at)

    def _address(self, at: int) -> Found | None:
        word = self.words[at]
        if self.is_(at, "not"):
            inner = self.id(at + 1)
            return Found(Inverted(inner.node), inner.next) if inner else None
        if not self.kind(at, "name", "ipv4", "ipv6", "mac"):
            return None
        if word.kind in ("ipv4", "ipv6") and self.is_(at + 1, "/") and self.kind(at + 2, "number"):
            return Found(Id(word, self.words[at + 2]), at + 3)
        if word.kind == "ipv4" and self.is_(at + 1, "mask") and self.kind(at + 2, "ipv4"):
            return Found(Id(word, self.words[at + 2]), at + 3)
        return Found(Id(word), at + 1)

    def _several(self, at: int) -> Found | None:
        """Addresses in parentheses, joined."""
        number = self._number(at)
        left = Found(Id(number[0]), number[1]) if number else self._address(at)
        joined = not number
        while left and self.is_(left.next, "and", "or"):
            right = self.id(left.next + 1)
            if right is None:
                return None
            left = Found(Joined(self.words[left.next].text, left.node, right.node), right.next)
            joined = True
        return left if joined else None

    def _number(self, at: int) -> tuple[Word, int] | None:
        """A number, in any parentheses."""
        depth = 0
        while self.is_(at, "("):
            depth, at = depth + 1, at + 1
        if not self.kind(at, "number"):
            return None
        word = self.words[at]
        closed = all(self.is_(end, ")") for end in range(at + 1, at + 1 + depth))
        return (word, at + 1 + depth) if closed else None

    # ---------------------------------------------------------------------------------------- computations

    def _relation(self, at: int) -> Found | None:
        left = self.computed(at, 0)
        if left is None or not self.is_(left.next, *RELATIONS):
            return None
        right = self.computed(left.next + 1, 0)
        return right and Found(Relation(self.words[left.next].text, left.node, right.node), right.next)

    def _computed(self, at: int, at_least: int) -> Found | None:
        left = self._operand(at)
        while left:
            self.furthest = max(self.furthest, left.next)
            sign = self.words[left.next]
            if sign.kind != "sign" or BINDS.get(sign.text, -1) < at_least or sign.text not in BINDS:
                return left
            right = self.computed(left.next + 1, 0 if sign.text in GREEDY else BINDS[sign.text] + 1)
            if right is None:
                return None
            left = Found(Operation(sign, left.node, right.node), right.next)
        return None

    def _operand(self, at: int) -> Found | None:
        word = self.words[at]
        if self.kind(at, "number"):
            return Found(Number(word), at + 1)
        if self.is_(at, "len"):
            return Found(Said(word), at + 1)
        if self.is_(at, "-"):
            inner = self.computed(at + 1, UNARY)
            return inner and Found(Operation(word, None, inner.node), inner.next)
        if self.is_(at, "("):
            inner = self.computed(at + 1, 0)
            return Found(inner.node, inner.next + 1) if inner and self.is_(inner.next, ")") else None
        if self.kind(at, "protocol") and self.is_(at + 1, "["):
            index = self.computed(at + 2, 0)
            if index is None:
                return None
            size, end = 1, index.next
            if self.is_(end, ":") and self.kind(end + 1, "number"):
                size, end = self.words[end + 1].number, end + 2
            return Found(Bytes(word, index.node, size), end + 1) if self.is_(end, "]") else None
        return None

    # ---------------------------------------------------------------------------------------- what is wrong

    def problem(self, reached: int) -> ParamError:
        """The error at the furthest word that anybody looked at."""
        at = max(self.furthest, reached)
        word, before = self.words[at], self.words[at - 1] if at else None
        if word.kind == "end":
            return self.source.error("the filter ends too early", word.place)
        if before and before.text in ("proto", "protochain") and word.kind == "protocol":
            hint = f"a protocol whose name is a word of the language has a backslash before it: \\{word.text}"
            return self.source.error(f"{word.text!r} cannot stand here", word.place, hint)
        if at == 0 and word.kind in ("name", "ipv4", "ipv6", "mac", "number") and not self._near(word):
            hint = {"mac": "ether host", "number": "port"}.get(word.kind, "host")
            return self.source.error(
                f"{word.text!r} cannot stand alone", word.place, f"say what it is, as in `{hint} {word.text}`"
            )
        return self.source.error(f"{word.text!r} cannot stand here", word.place, self._near(word))

    def _near(self, word: Word) -> str:
        from igrun.packetfilter.names import near

        return near(word.text, PROTOCOLS | OTHERS) if word.kind == "name" else ""
