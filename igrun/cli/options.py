"""Params as flags of click commands, and what a command does with their values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from igrun.config import KEY_FILE
from igrun.metadata import BOOL, LIST, Param

if TYPE_CHECKING:
    from igrun.cli.face import Face
    from igrun.lookup import Policy
    from igrun.oci.copy import Progress

F = TypeVar("F", bound=Callable[..., Any])
# What other tools call these
SHORT = {"cert-file": "--cert", KEY_FILE.key: "--key"}


def taking(params: Sequence[Param[Any]], *, short: bool = True) -> Callable[[F], F]:
    """Give a command the flags of these params; it gets `given`, the texts of those that are on the command line.

    short: with `--cert` and `--key` too, which mean something else where keys sign
    """

    def decorate(function: F) -> F:
        @wraps(function)
        def call(*args: Any, **values: Any) -> Any:
            given = {param.key: values.pop(variable(param)) for param in params}
            texts = {key: as_text(value) for key, value in given.items() if value not in (None, ())}
            return function(*args, given=texts, **values)

        decorated: Any = call
        for param in reversed(params):
            decorated = option(param, short)(decorated)
        return cast("F", decorated)

    return decorate


def variable(param: Param[Any]) -> str:
    """The name of a param's value in Python."""
    return "given_" + param.key.replace("-", "_")


def as_text(value: object) -> str:
    """What click read, as a param's text."""
    if isinstance(value, tuple):
        return ",".join(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def option(param: Param[Any], short: bool) -> Callable[[F], F]:
    """The flag of one param."""
    names = [f"--{param.key}", *([SHORT[param.key]] if short and param.key in SHORT else [])]
    about = param.description
    if param.default and param.type.name != BOOL.name and param.default not in about:
        about += f" (default {param.default})"
    how: dict[str, Any] = {"metavar": param.hint or "TEXT", "type": str}
    if param.type.name == BOOL.name:
        how = {"metavar": "", "type": bool}
    elif param.choices:
        how = {"type": click.Choice(param.choices)}
    elif param.type.name == LIST.name:
        how = {"metavar": "LIST", "type": str, "multiple": True}
    return click.option(*names, variable(param), default=None, help=f"{about}.", **how)


def policy(face: Face, given: Mapping[str, str], *, progress: Progress | None = None, looking: bool = False) -> Policy:
    """What the flags, the environment and the config file say about images."""
    from igrun.lookup import Policy

    return Policy(given, face.settings(), progress, looking)
