"""Templates as programs of the record engine.

What the engine cannot make by itself, the reference makes for it: text that depends on a few bytes of the record, once
per distinct value (a memo); other text row by row (a side column).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from struct import Struct

from igrun.dataclass import dataclass
from igrun.engine import Cell, Csv, Form, Json, Slot, Template, Text, gotime, rules, structs, texts
from igrun.engine.forms import conversion, encoder
from igrun.engine.printing import Printing
from igrun.engine.shapes import Shape, shape
from igrun.engine.structs import Fill, Fit, Memo, Number, Op, Part
from igrun.record import (
    Address,
    At,
    Batch,
    Constant,
    Derived,
    Duration,
    Endpoint,
    Facts,
    Field,
    Lookup,
    Rest,
    Size,
    Time,
    WallClock,
)

Key = tuple[Part, ...]
_LOG2 = {1: 0, 2: 1, 4: 2, 8: 3}
_FLOATS = {2: Struct("<e"), 4: Struct("<f"), 8: Struct("<d")}
_INTEGERS = {2: Struct("<H"), 4: Struct("<I"), 8: Struct("<Q")}
_DIGITS = 255  # of a fraction
_KEYED_ITEMS = 64  # of an array that a memo prints: they must be in it all at once


@dataclass(frozen=True, slots=True)
class Made:
    """A template as a program. sides: what prints the text of each side column."""

    ops: tuple[Op, ...]
    sides: tuple[Printing, ...]


def made(template: Template, facts: Facts) -> Made:
    """The program of a template. ValueError: a field has no value."""
    ops: list[Op] = []
    sides: list[Printing] = []
    literal = b""
    pieces = list(template.pieces)
    ways = [way(piece) if isinstance(piece, Slot) else piece for piece in pieces]
    at = 0
    while at < len(pieces):
        found = ways[at]
        after = b""
        end = at + 1
        if isinstance(found, bytes):
            literal += found
            at = end
            continue
        if isinstance(found, Native):
            added, literal, after = found.ops, literal + found.before, found.after
        else:
            # what depends on the same things is printed at once, with what stands between
            end = _together(ways, at)
            part = Printing(Template(tuple(pieces[at:end])), None, facts)
            if found is None:
                added = (Op(structs.SIDE, items=len(sides)),)
                sides.append(part)
            else:
                tables = frozenset().union(*(tables_of(one.field) for one in pieces[at:end] if isinstance(one, Slot)))
                added = (Op(structs.KNOWN, memo=Memo(found, _printed(part), tables)),)
        if added:
            added[0].before, literal = literal, b""
            ops += added
        literal += after
        at = end
    if literal:
        ops.append(Op(structs.NOTHING, before=literal))
    return Made(tuple(ops), tuple(sides))


def way(slot: Slot) -> Native | Key | None:
    """How a value gets printed: by the engine, from a memo with this key, or (None) in a side column."""
    if slot.field.dtype is None or slot.field.place is None:
        raise ValueError(f"field {slot.field.name!r} has no value")
    return native(slot) or key_of(slot.field)


def _together(ways: Sequence[object], at: int) -> int:
    """The end of the pieces from `at` on that print in the same way; literals stand between two of them."""
    end = at + 1
    for next_ in range(end, len(ways)):
        if ways[next_] == ways[at]:
            end = next_ + 1
        elif not isinstance(ways[next_], bytes):
            break
    return end


def _printed(part: Printing) -> Fill:
    return lambda batch, record, key: next(iter(part.rows(batch, [record], 1)))


# ---------------------------------------------------------------------------------------------- where values are


def number(field: Field) -> Number | None:
    """Where an integer, bool or wall-clock time is in a record; None: the field is something else."""
    if field.dtype is None:
        return None
    form = shape(field.dtype)
    match field.place:
        case At(offset, bits) if form.kind in "iub" and form.items is None:
            return scalar(form, offset, bits)
        case Derived((Field(place=At(offset, None), dtype=dtype),), WallClock()) if dtype and form.integer:
            boot = shape(dtype)
            if (boot.kind, boot.size, boot.items, boot.big_endian) == ("u", 8, None, False):
                return _reached(Number(offset, structs.WALL))
    return None


def scalar(form: Shape, offset: int, bits: tuple[int, int] | None = None) -> Number | None:
    """Where an item of this shape is, its bits where it is no integer; None where the engine cannot read it."""
    if form.size not in _LOG2 or form.kind not in "iubf":
        return None
    signed = form.kind == "i"
    if form.kind == "b" and bits is None:
        load = structs.BOOL
    elif form.big_endian and form.size > 1:
        load = (structs.BIG_S16 if signed and bits is None else structs.BIG_U16) + _LOG2[form.size] - 1
    else:
        load = (structs.S8 if signed else structs.U8) + _LOG2[form.size]
    if bits is None:
        return _reached(Number(offset, load, signed))
    shift, width = bits
    if width < 1 or shift < 0 or shift + width > 8 * form.size:
        return None
    return _reached(Number(offset, load, signed, shift, width))


def _reached(found: Number) -> Number | None:
    return found if found.offset >= 0 and found.end <= structs.SPAN else None


def key_of(field: Field) -> Key | None:
    """The parts of a record that the value depends on and nothing else does; None: too much, or not only the record."""
    parts = _leaves(field)
    if parts is None:
        return None
    key = tuple(dict.fromkeys(parts))
    fits = sum(part.size + 7 & ~7 for part in key) <= structs.KEY_SIZE
    return key if key and fits and all(part.number.offset >= 0 and part.end <= structs.SPAN for part in key) else None


def _leaves(field: Field) -> list[Part] | None:
    if field.dtype is None:
        return None
    form = shape(field.dtype)
    match field.place:
        case At(offset, None) if form.kind == "S" and form.items is None:
            return [Part(structs.PART_TEXT, Number(offset), form.size)]
        case At(offset, None) if form.kind == "V" or form.items is not None:
            return [Part(structs.PART_BYTES, Number(offset), form.bytes)]
        case At(offset, bits):
            # of a float its bits
            found = scalar(form._replace(kind="u") if form.kind == "f" else form, offset, bits)
            return None if found is None else [Part(structs.PART_INTEGER, found)]
        case Derived(_, Constant()):
            return []
        case Derived(_, WallClock() | Time() | Duration() | Size() | Endpoint()):
            return None  # they seldom come twice
        case Derived(sources, _):
            parts: list[Part] = []
            for source in sources:
                below = _leaves(source)
                if below is None:
                    return None
                parts += below
            return parts
    return None


def tables_of(field: Field) -> frozenset[str]:
    """The tables that its value comes from."""
    match field.place:
        case Derived(sources, rule):
            own = {rule.table} if isinstance(rule, Lookup) else set()
            return frozenset(own.union(*map(tables_of, sources)))
    return frozenset()


# ---------------------------------------------------------------------------------------------- how values print


@dataclass(frozen=True, slots=True)
class Native:
    """Operations that print a value, and literals around them."""

    ops: tuple[Op, ...]
    before: bytes = b""
    after: bytes = b""


def native(slot: Slot) -> Native | None:
    """How the engine prints a value by itself; None where it does not."""
    field, form = slot
    if field.dtype is None:
        return None
    known = shape(field.dtype)
    place = field.place
    if isinstance(place, Derived) and isinstance(place.rule, Constant):
        printed = conversion(form, known)
        value = place.rule.value
        return Native((), printed % value if printed else encoder(form, known)(value))
    found: Native | None = None
    plain = number(field)
    if isinstance(form, Cell) and isinstance(place, At) and (known.items is not None or known.kind == "V"):
        return Native((), encoder(form, known)(b""))
    if plain is not None:
        found = Native((Op(_number_code(known, form), plain),))
    elif isinstance(place, At):
        found = _array(known, form, place) if known.items is not None else _item(known, form, place.offset)
    elif isinstance(place, Rest):
        found = _rest(known, form, place)
    elif isinstance(place, Derived) and known.kind == "T":
        found = _ruled(place, form)
    return _finished(found, form) if found and found.ops else found


def _number_code(known: Shape, form: Form) -> int:
    if known.kind == "b":
        return structs.BOOLEAN
    return structs.HEXADECIMAL if isinstance(form, Cell) and form.hex else structs.INTEGER


def _item(known: Shape, form: Form, offset: int) -> Native | None:
    """A single value in a record; or an item of an array, with nothing around it."""
    if offset < 0 or offset + known.size > structs.SPAN:
        return None
    if known.kind == "S":
        return _text(form, Op(_text_code(form), offset=offset, size=known.size))
    if known.kind == "V":
        return _text(form, Op(_bytes_code(form), offset=offset, size=known.size))
    found = scalar(known._replace(kind="u") if known.kind == "f" else known, offset)
    if found is None:
        return None
    if known.kind == "f":
        return Native((Op(structs.KNOWN, memo=_floats(found, known, form)),))
    return Native((Op(_number_code(known, form), found),))


def _text(form: Form, op: Op) -> Native:
    quote = b'"' if isinstance(form, Json) else b""
    return Native((op,), quote, quote)


def _text_code(form: Form) -> int:
    match form:
        case Json():
            return structs.JSON
        case Cell():
            return structs.CELL
        case Csv():
            return structs.UTF8
    return structs.RAW


def _bytes_code(form: Form) -> int:
    return structs.BYTES if isinstance(form, Text) else structs.HEX


def _floats(place: Number, known: Shape, form: Form) -> Memo:
    print_, bits, float_ = encoder(form, known), _INTEGERS[known.size], _FLOATS[known.size]
    return Memo(
        (Part(structs.PART_INTEGER, place),), lambda batch, record, key: print_(float_.unpack(bits.pack(key))[0])
    )


def _array(known: Shape, form: Form, place: At) -> Native | None:
    count = known.items or 0
    one = known._replace(items=None)
    if place.bits is not None or place.offset < 0 or place.offset + known.bytes > structs.SPAN or known.size == 0:
        return None
    if known.kind == "f" and count > _KEYED_ITEMS:
        return None
    before, between, after = "[", ",", "]"
    if isinstance(form, Json) and form.indent is not None:
        margin = "\n" + " " * form.indent
        before, between, after = f"[{margin}  ", f",{margin}  ", f"{margin}]"
    if not count:
        return Native((), b"[]")
    item = _item(one, form, place.offset)
    if item is None:
        return None
    around = before.encode() + item.before, item.after + between.encode() + item.before, item.after + after.encode()
    inner = (*(Op(structs.NOTHING, before=text) for text in around), *item.ops)
    return Native((Op(structs.ARRAY, items=count, stride=known.size, inner=inner),))


def _rest(known: Shape, form: Form, place: Rest) -> Native | None:
    length = None if place.length is None else number(place.length)
    if known.kind not in "TO" or known.items is not None or (place.length is not None and length is None):
        return None
    code = _text_code(form) if known.kind == "T" else structs.COUNT if isinstance(form, Cell) else _bytes_code(form)
    return _text(form, Op(code, size=structs.REST, other=length or Number(), has_length=length is not None))


def _ruled(place: Derived, form: Form) -> Native | None:
    first = number(place.sources[0])
    match place.rule:
        case Time(layout) if first and not first.signed and first.load != structs.BOOL:
            return _time(layout, first, form)
        case Duration() if first and first.load != structs.BOOL:
            return _text(form, Op(structs.DURATION, first))
        case Size() if first and first.load != structs.BOOL:
            return _text(form, Op(structs.SIZE, first, memo=Memo((Part(structs.PART_INTEGER, first),), _size)))
        case Address() | Endpoint():
            return _address(place, form)
    return None


def _size(batch: Batch, record: int, key: int) -> bytes:
    return rules.size(key).encode()


def _address(place: Derived, form: Form) -> Native | None:
    known = shape(place.sources[0].dtype or "V")
    numbers = [found for source in place.sources[1:] if (found := number(source))]
    if (known.kind, known.size, known.items) not in (("V", 16, None), ("u", 1, 16)):
        return None
    match place.sources[0].place:
        case At(offset, None) if 0 <= offset <= structs.SPAN - 16 and len(numbers) == len(place.sources) - 1:
            code = structs.ENDPOINT if isinstance(place.rule, Endpoint) else structs.ADDRESS
            return _text(form, Op(code, numbers[0], numbers[-1], offset=offset))
    return None


def _time(layout: str, ns: Number, form: Form) -> Native | None:
    fractions, around = gotime.pieces(layout)
    if any(len(one) > _DIGITS for one in fractions):
        return None
    escape = _escape(form)
    lengths = Struct(f"<{len(fractions) + 1}I")

    def fill(batch: Batch, record: int, second: int) -> bytes:
        pieces = [escape(piece).encode("utf-8", "surrogateescape") for piece in around(second)]
        return lengths.pack(*map(len, pieces)) + b"".join(pieces)

    packed = b"".join(structs.FRACTION.pack(ord(one[0]), len(one) - 1, one[1] == "9") for one in fractions)
    memo = Memo((Part(structs.PART_INTEGER, ns),), fill)
    return _text(form, Op(structs.TIME, ns, memo=memo, items=len(fractions), fractions=packed))


def _escape(form: Form) -> Callable[[str], str]:
    match form:
        case Json():
            return lambda text: texts.json_text(text)[1:-1]
        case Cell():
            return texts.escaped
        case Csv():
            return texts.valid
    return str


def _finished(found: Native, form: Form) -> Native:
    """Say what has to be done when the text is there."""
    op = found.ops[0]
    if isinstance(form, Cell):
        if op.code != structs.KNOWN:  # those texts are cells already
            op.finish, op.fit = structs.FIT, fit(form)
    elif isinstance(form, Csv) and op.code in (structs.UTF8, structs.TIME, structs.ARRAY):
        op.finish = structs.QUOTE
    return found


def fit(form: Cell) -> Fit:
    """What becomes of a text that is too long (see texts.cut)."""
    width = max(form.width, 0)
    head, tail = width, 0
    mark = bool(form.ellipsis) and width > 0
    if mark:
        tail = {"start": width - 1, "middle": (width - 1) // 2}.get(form.ellipsis, 0)
        head = width - 1 - tail
    return Fit(width, head, tail, mark, form.right)
