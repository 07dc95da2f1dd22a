"""The words of a filter expression, as tcpdump cuts them."""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

from igrun.errors import ParamError

LONGEST = 4096  # characters of an expression

PROTOCOLS = frozenset(
    """
    ether ip arp rarp sctp tcp udp icmp igmp igrp pim vrrp carp ip6 icmp6 ah esp atalk aarp decnet lat sca moprc mopdl
    iso esis isis l1 l2 iih lsp snp csnp psnp clnp stp ipx netbeui radio
    """.split()
)
OTHERS = frozenset(
    """
    dst src host net mask port portrange proto protochain gateway less greater byte broadcast multicast and or not len
    inbound outbound ifindex vlan mpls pppoed pppoes geneve llc type subtype dir addr1 addr2 addr3 addr4 ra ta
    lane metac bcc oam oamf4 oamf4ec oamf4sc sc ilmic vpi vci connectmsg metaconnect
    ifname ruleset rnr subrulenum reason action
    fisu lssu msu hfisu hlssu hmsu sio opc dpc sls hsio hopc hdpc hsls
    """.split()
)
SAME = {
    **dict.fromkeys(("link", "ppp", "slip", "fddi", "tr", "wlan"), "ether"),
    "es-is": "esis",
    "is-is": "isis",
    "length": "len",
    "direction": "dir",
    "on": "ifname",
    "rset": "ruleset",
    "rulenum": "rnr",
    "srnr": "subrulenum",
    "lsu": "lssu",
    **{f"address{n}": f"addr{n}" for n in range(1, 5)},
}
SIGNS = {"&&": "and", "||": "or", "!": "not", "==": "="}

ICMP_TYPES = """
    echoreply:0 unreach:3 sourcequench:4 redirect:5 echo:8 routeradvert:9 routersolicit:10 timxceed:11 paramprob:12
    tstamp:13 tstampreply:14 ireq:15 ireqreply:16 maskreq:17 maskreply:18
"""
ICMP6_TYPES = """
    destinationunreach:1 packettoobig:2 timeexceeded:3 parameterproblem:4 echo:128 echoreply:129
    multicastlistenerquery:130 multicastlistenerreportv1:131 multicastlistenerdone:132 routersolicit:133
    routeradvert:134 neighborsolicit:135 neighboradvert:136 redirect:137 routerrenum:138 nodeinformationquery:139
    nodeinformationresponse:140 ineighbordiscoverysolicit:141 ineighbordiscoveryadvert:142
    multicastlistenerreportv2:143 homeagentdiscoveryrequest:144 homeagentdiscoveryreply:145 mobileprefixsolicit:146
    mobileprefixadvert:147 certpathsolicit:148 certpathadvert:149 multicastrouteradvert:151 multicastroutersolicit:152
    multicastrouterterm:153
"""


def listed(text: str) -> dict[str, int]:
    """name:number ... -> {name: number}."""
    return {name: int(number) for name, _, number in (one.partition(":") for one in text.split())}


NUMBERS = {
    "icmptype": 0,
    "icmpcode": 1,
    "icmp6type": 0,
    "icmp6code": 1,
    "tcpflags": 13,
    **{f"tcp-{name}": 1 << bit for bit, name in enumerate("fin syn rst push ack urg ece cwr".split())},
    **{f"icmp-{name}": number for name, number in listed(ICMP_TYPES).items()},
    **{f"icmp6-{name}": number for name, number in listed(ICMP6_TYPES).items()},
}

NUMBER = r"(?:0[xX][0-9A-Fa-f]+|[0-9]+)"
BYTE, GROUP = "[0-9A-Fa-f]{1,2}", "[0-9A-Fa-f]{1,4}"
MACS = [re.compile(rf"{BYTE}(?:{sign}{BYTE}){{5}}") for sign in (":", "-", r"\.")]
MACS += [re.compile(r"[0-9A-Fa-f]{4}(?:\.[0-9A-Fa-f]{4}){2}"), re.compile("[0-9A-Fa-f]{12}")]
BROKEN_MAC = re.compile(rf"{BYTE}:+(?:{BYTE}:+)+")
WHOLE_NUMBER = re.compile(NUMBER)
IPV4 = re.compile(rf"{NUMBER}(?:\.{NUMBER}){{1,3}}")
NAME = re.compile(r"[A-Za-z0-9](?:[-_.A-Za-z0-9]*[.A-Za-z0-9])?")
ESCAPED = re.compile(r"\\([^ !()\n\t]+)")
SIGN = re.compile(r">=|<=|!=|==|<<|>>|&&|\|\||[-+*/%:\[\]!<>()&|^=]")
MIGHT_BE_IPV6 = re.compile(r"[0-9A-Fa-f]{0,4}:[0-9A-Fa-f:]*")


class Word(NamedTuple):
    """One word. kind: protocol, word, number, name, ipv4, ipv6, mac, sign or end; place: where it begins."""

    kind: str
    text: str
    place: int
    number: int = 0


class Text:
    """An expression and the flag that it was given to."""

    def __init__(self, text: str, key: str) -> None:
        self.text, self.key = text, key

    def error(self, problem: str, place: int, hint: str = "") -> ParamError:
        """The error at a place."""
        line = " ".join(self.text.split())
        shown = line if len(line) <= 60 else f"{line[:57]}..."
        return ParamError(
            self.key, self.text, f"--{self.key}: {problem}, at character {place + 1} of {shown!r}", hint=hint
        )


def words(source: Text) -> list[Word]:
    """The words, and one for the end. ParamError: something is none, or the expression is too long."""
    text = source.text
    if len(text) > LONGEST:
        raise source.error(f"the filter has more than {LONGEST} characters", LONGEST)
    found: list[Word] = []
    place = 0
    while place < len(text):
        if text[place] in " \r\n\t":
            place += 1
            continue
        word, place = next_word(source, place)
        found.append(word)
    return [*found, Word("end", "", len(text))]


def next_word(source: Text, place: int) -> tuple[Word, int]:
    """The longest word that begins here, and where it ends."""
    text = source.text
    escaped = ESCAPED.match(text, place)
    if escaped:
        return Word("name", escaped[1], place), escaped.end()
    sign = SIGN.match(text, place)
    # Where two are equally long, the first one is meant.
    candidates = [
        ("mac", max((found.end() for form in MACS if (found := form.match(text, place))), default=0)),
        ("number", end_of(WHOLE_NUMBER, text, place)),
        ("ipv4", end_of(IPV4, text, place)),
        ("ipv6", end_of_ipv6(text, place)),
        ("broken mac", end_of(BROKEN_MAC, text, place)),
        ("name", end_of(NAME, text, place)),
    ]
    kind, end = max(candidates, key=lambda one: one[1])
    if end <= place:
        if not sign:
            raise source.error(f"{text[place]!r} cannot stand here", place)
        kind = "word" if sign[0] in ("&&", "||", "!") else "sign"
        return Word(kind, SIGNS.get(sign[0], sign[0]), place), sign.end()
    return named(source, kind, text[place:end], place), end


def named(source: Text, kind: str, text: str, place: int) -> Word:
    """The word with that text; `kind` tells its form."""
    if kind == "broken mac":
        whole = MIGHT_BE_IPV6.match(source.text, place)
        raise source.error(f"{whole[0] if whole else text!r} is no Ethernet or IPv6 address", place)
    if kind == "number":
        return Word("number", text, place, to_number(source, text, place))
    if kind != "name":
        return Word(kind, text, place)
    meant = SAME.get(text, text)
    if meant in PROTOCOLS:
        return Word("protocol", meant, place)
    if meant in OTHERS:
        return Word("word", meant, place)
    if text in NUMBERS:
        return Word("number", text, place, NUMBERS[text])
    return Word("name", text, place)


def to_number(source: Text, text: str, place: int) -> int:
    """Decimal, 0x hexadecimal, or with a leading 0 octal."""
    octal = len(text) > 1 and text[0] == "0" and text[1] not in "xX"
    try:
        number = int(text, 8 if octal else 0)
    except ValueError:
        raise source.error(f"{text!r} is no octal number", place, "a number that begins with 0 is octal") from None
    if number > 0xFFFFFFFF:
        raise source.error(f"{text} does not fit into 32 bits", place)
    return number


def end_of(form: re.Pattern[str], text: str, place: int) -> int:
    found = form.match(text, place)
    return found.end() if found else 0


def end_of_ipv6(text: str, place: int) -> int:
    """Where the longest IPv6 address that begins here ends, 0 if none does."""
    if not MIGHT_BE_IPV6.match(text, place):
        return 0
    return max((found.end() for form in ipv6_forms() if (found := form.match(text, place))), default=0)


@cache
def ipv6_forms() -> tuple[re.Pattern[str], ...]:
    """All ways to write an IPv6 address, each with its number of groups before and after a `::`."""
    dotted = rf"{NUMBER}\.{NUMBER}\.{NUMBER}\.{NUMBER}"
    forms = [":".join([GROUP] * 8), ":".join([GROUP] * 6 + [dotted])]
    for before in range(8):
        for after in range(8 - before):
            forms.append(":".join([GROUP] * before) + "::" + ":".join([GROUP] * after))
            if after >= 1 and before + after <= 6:
                forms.append(":".join([GROUP] * before) + "::" + ":".join([GROUP] * (after - 1) + [dotted]))
    return tuple(map(re.compile, forms))
