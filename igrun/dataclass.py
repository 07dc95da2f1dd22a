"""Data classes that cost nothing to define.

As in module dataclasses of the standard library, as far as it goes, but no source is made and compiled for a class, and
nothing heavy is imported: the standard ones take 16 ms to import and 0.4 ms a class, which with some fifty classes was
a third of the time that `ig run` needs to its first event. An object costs 1 µs more to make, and there are few.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any, TypeVar, dataclass_transform, overload

T = TypeVar("T")


class Spec:
    """What `field` says of one field."""

    __slots__ = ("compare", "default", "factory", "hash", "repr")

    def __init__(self, default: Any, factory: Callable[[], Any] | None, repr: bool, compare: bool, hash: bool) -> None:
        self.default, self.factory = default, factory
        self.repr, self.compare, self.hash = repr, compare, hash


class Missing:
    """The type of MISSING."""


MISSING: Any = Missing()
"""Stands for a default that is not there."""


def field(
    *,
    default: Any = MISSING,
    default_factory: Callable[[], Any] | None = None,
    repr: bool = True,
    compare: bool = True,
    hash: bool = True,
) -> Any:
    """A field that is special: its default is made anew each time, or it is left out of repr(), == or hash()."""
    return Spec(default, default_factory, repr, compare, hash and compare)


@overload
def dataclass(cls: type[T], /) -> type[T]: ...


@overload
def dataclass(
    *, frozen: bool = False, slots: bool = False, eq: bool = True, order: bool = False, kw_only: bool = False
) -> Callable[[type[T]], type[T]]: ...


@dataclass_transform(field_specifiers=(field,))
def dataclass(
    cls: Any = None,
    /,
    *,
    frozen: bool = False,
    slots: bool = False,
    eq: bool = True,
    order: bool = False,
    kw_only: bool = False,
) -> Any:
    """Make a data class of a class with annotated fields; the arguments are those of the standard library."""
    if cls is None:
        return lambda cls: made(cls, frozen, slots, eq, order, kw_only)
    return made(cls, frozen, slots, eq, order, kw_only)


def replace(of: T, /, **changes: Any) -> T:
    """A copy with other values in some fields."""
    names: tuple[str, ...] = vars(type(of))["__fields__"]
    return type(of)(**{**{name: getattr(of, name) for name in names}, **changes})


# ---------------------------------------------------------------------------------------------- how a class is made


def made(cls: type, frozen: bool, slots: bool, eq: bool, order: bool, kw_only: bool) -> type:
    """The class with its methods, which it keeps where it has its own."""
    inherited: tuple[str, ...] = getattr(cls, "__fields__", ())
    specs: dict[str, Spec] = dict(getattr(cls, "__specs__", {}))
    namespace = dict(cls.__dict__)
    own = [name for name, kind in namespace.get("__annotations__", {}).items() if not str(kind).startswith("ClassVar")]
    for name in own:
        default = namespace.pop(name, MISSING)
        specs[name] = default if isinstance(default, Spec) else Spec(default, None, True, True, True)
    names = (*inherited, *(name for name in own if name not in inherited))
    namespace.setdefault("__repr__", _repr([name for name in names if specs[name].repr]))
    namespace.setdefault("__init__", _init(names, specs, kw_only, hasattr(cls, "__post_init__")))
    if eq:
        compared = tuple(name for name in names if specs[name].compare)
        namespace.setdefault("__eq__", _eq(compared))
        hashed = tuple(name for name in compared if specs[name].hash)
        if namespace.get("__hash__") is None:  # which every class with an __eq__ of its own has
            namespace["__hash__"] = _hash(hashed) if frozen else None
        if order:
            namespace.update(_order(compared))
    if frozen:
        namespace["__setattr__"], namespace["__delattr__"] = _refuse, _refuse
    namespace |= {
        "__fields__": names,
        "__specs__": specs,
        "__match_args__": () if kw_only else names,
        "__getstate__": _state(names),
        "__setstate__": _restore(names),
    }
    if slots:
        namespace["__slots__"] = tuple(own)
    for name in ("__dict__", "__weakref__"):
        namespace.pop(name, None)
    new: type = type(cls)(cls.__name__, cls.__bases__, namespace)
    return new


_set = object.__setattr__


def _init(names: tuple[str, ...], specs: Mapping[str, Spec], kw_only: bool, more: bool) -> Callable[..., None]:
    places = 0 if kw_only else len(names)

    def __init__(self: Any, *args: Any, **given: Any) -> None:
        if len(args) > places:
            raise TypeError(f"{type(self).__name__} takes {places} arguments in order, got {len(args)}")
        for name, value in zip(names, args, strict=False):
            _set(self, name, value)
        for name in names[len(args) :]:
            if name in given:
                value = given.pop(name)
            else:
                spec = specs[name]
                value = spec.factory() if spec.factory is not None else spec.default
                if value is MISSING:
                    raise TypeError(f"{type(self).__name__} needs the argument {name!r}")
            _set(self, name, value)
        if given:
            raise TypeError(f"{type(self).__name__} has no field {next(iter(given))!r}, or was given it twice")
        if more:
            self.__post_init__()

    return __init__


def _repr(names: list[str]) -> Callable[[Any], str]:
    def __repr__(self: Any) -> str:
        values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__qualname__}({values})"

    return __repr__


def _values(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    if len(names) < 2:  # attrgetter makes no tuple of one
        return lambda self: tuple([getattr(self, name) for name in names])
    return attrgetter(*names)


def _eq(names: tuple[str, ...]) -> Callable[[Any, object], Any]:
    values = _values(names)

    def __eq__(self: Any, other: object) -> Any:
        return values(self) == values(other) if type(other) is type(self) else NotImplemented

    return __eq__


def _hash(names: tuple[str, ...]) -> Callable[[Any], int]:
    values = _values(names)
    return lambda self: hash((type(self), values(self)))


def _order(names: tuple[str, ...]) -> dict[str, Any]:
    import operator

    values = _values(names)

    def method(compare: Callable[[Any, Any], bool]) -> Callable[[Any, object], Any]:
        return lambda self, other: compare(values(self), values(other)) if type(other) is type(self) else NotImplemented

    return {f"__{one.__name__}__": method(one) for one in (operator.lt, operator.le, operator.gt, operator.ge)}


def _refuse(self: Any, name: str, value: object = None) -> None:
    raise AttributeError(f"{type(self).__name__}.{name} cannot be changed")


def _state(names: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    values = _values(names)
    return lambda self: values(self)  # a method has to be a function


def _restore(names: tuple[str, ...]) -> Callable[[Any, tuple[Any, ...]], None]:
    def __setstate__(self: Any, state: tuple[Any, ...]) -> None:
        for name, value in zip(names, state, strict=True):
            _set(self, name, value)

    return __setstate__
