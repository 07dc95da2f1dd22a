"""`ig run IMAGE [flags]`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from igrun.cli.flags import Flags, Line, glance, parse
from igrun.cli.terminal import Face, Usage, say, write
from igrun.config import ANNOTATE, AUTO_MOUNT, IMAGES, PULL, VERBOSE, Settings
from igrun.dataclass import replace
from igrun.errors import ParamError
from igrun.metadata import BOOL, INT, TEXT, Param

if TYPE_CHECKING:
    from igrun.runtime import Gadget, Run

HELP = Param("help", BOOL, "false", "Show this message; with an image, also its flags and fields", alias="h")
CONFIG = Param("config", TEXT, "", "Config file (default ~/.ig/config.yaml)", hint="FILE")
TIMEOUT = Param("timeout", INT, "0", "Seconds after which the gadget stops, 0: never", alias="t", hint="SECONDS")
FILE = Param("file", TEXT, "", "Run the gadget of this manifest: a file, a URL, or - for standard input", alias="f")
STORE_USER = Param("oci-store-user", BOOL, "false", "Take the image from the store of the user who called sudo")
OWN: tuple[Param[Any], ...] = (HELP, CONFIG, VERBOSE, TIMEOUT, FILE, STORE_USER, AUTO_MOUNT)
IMAGE: tuple[Param[Any], ...] = IMAGES


def run(face: Face, args: Sequence[str]) -> None:
    """Run a gadget. It reads its arguments itself: its flags depend on the image. Usage: they are wrong."""
    first = glance(args, everywhere())
    take_own(face, first.values)
    settings = face.settings()
    wants_help = first.values.get(HELP.key, "false") != "false"
    file = first.values.get(FILE.key, "")
    if file and first.words and not wants_help:
        raise Usage("please only specify an image OR manifest")
    if not (file or first.image) or (wants_help and not first.image):
        from igrun.cli.describe import general

        write(general(OWN, IMAGE, shared()).encode())
        return
    if file:
        image, gadget, values = of_manifest(args, file, settings)
    else:
        image = first.image
        gadget = opened(image, first.values, settings, looking=wants_help)
        try:
            values = of_line(args, gadget, image)
        except Usage as error:
            error.hint = f"`ig run {image} --help` lists the flags of this gadget"
            raise
        if wants_help:
            from igrun.cli.describe import about

            write(about(image, gadget, OWN, IMAGE).encode("utf-8", "surrogateescape"))
            return
    _run(face, gadget, settings, values)


# ---------------------------------------------------------------------------------------------- the command line


def shared() -> list[Param[Any]]:
    """The params that many gadgets have, from the operators and the outputs."""
    from igrun import plugins, runtime

    operators = [param for operator in plugins.operators() for param in operator.PARAMS]
    return [*operators, runtime.HOST, runtime.OUTPUT, runtime.FIELDS]


def everywhere() -> Flags:
    """The flags known before the image is."""
    return Flags.of((param.key, param) for param in (*OWN, *IMAGE, *shared()))


def keyed(gadget: Gadget) -> list[tuple[str, Param[Any]]]:
    """Every key that a param of this gadget is set by, with the param. A letter of ig's own flags stays theirs."""
    from igrun import runtime

    sources = gadget.program.sources if gadget.program else {}
    letters = {param.alias for param in (*OWN, *IMAGE, *shared()) if param.alias}
    own = [replace(param, alias="") if param.alias in letters else param for param in gadget.own_params]
    others = gadget.params[len(own) :]
    return [(key, param) for param in (*own, *others) for key in runtime.keys(param, sources)]


def take_own(face: Face, values: Mapping[str, str]) -> None:
    """Take the flags that any command has."""
    face.config_file = values.get(CONFIG.key, face.config_file)
    face.verbose = face.verbose or values.get(VERBOSE.key, "false").lower() == "true"


def of_line(args: Sequence[str], gadget: Gadget, image: str) -> dict[str, str]:
    """The values that the command line gives, by key. Usage: it is wrong."""
    flags = Flags.of([*((param.key, param) for param in (*OWN, *IMAGE)), *keyed(gadget)])
    line = parse(args, flags)
    if line.words != [image]:
        extra = [word for word in line.words if word != image] or line.words[1:]
        raise Usage(f"unexpected argument: {extra[0] if extra else line.words}")
    return checked(line, flags)


def of_manifest(args: Sequence[str], file: str, settings: Settings) -> tuple[str, Gadget, dict[str, str]]:
    """The image of a manifest, opened, and the values that the manifest and the command line give, by key."""
    from igrun.cli import manifest

    flags = everywhere()
    line = parse(args, flags)
    if line.words:
        raise Usage("please only specify an image OR manifest")
    given = checked(line, flags)
    instance = manifest.only(file)
    gadget = opened(instance.image, given, settings)
    known = [*((param.key, param) for param in IMAGE), *keyed(gadget)]
    return instance.image, gadget, {**manifest.by_key(instance.values or {}, known), **given}


def checked(line: Line, flags: Flags) -> dict[str, str]:
    """The values of a line by key, each of them of its type. Usage: one is not."""
    values = {}
    for name, text in line.values.items():
        param = flags.by_name[name]
        typed(param, text, name)
        values[param.key if name == param.alternative else name] = text
    timeout = values.get(TIMEOUT.key, "0")
    if TIMEOUT.parse(timeout) < 0:
        raise Usage(f'invalid value "{timeout}" as "timeout": it is a number of seconds, 0 for no end')
    return values


def typed(param: Param[Any], text: str, name: str) -> None:
    """Usage: the text is no value of the param."""
    try:
        param.parse(text, key=name)
    except ParamError as error:
        raise Usage(str(error)) from None


# ---------------------------------------------------------------------------------------------- the run


def opened(image: str, values: Mapping[str, str], settings: Settings, *, looking: bool = False) -> Gadget:
    """The gadget of that name, pulled if need be. ParamError: --oci-store-user does not fit to the rest."""
    from igrun.runtime import Gadget

    of_user = values.get(STORE_USER.key, "false").lower() == "true"
    if of_user and values.get(PULL.key, "never") != "never":
        raise ParamError(
            PULL.key,
            values[PULL.key],
            "--oci-store-user requires --pull=never: pulling as root would create root-owned files in the user's store",
        )
    if of_user and PULL.key not in values and settings.value(PULL) != "never":
        say('Warning: --oci-store-user is set: forcing --pull="never"')
    of_image = {param.key: param for param in IMAGES if param is not ANNOTATE}
    for key in of_image.keys() & values.keys():
        typed(of_image[key], values[key], key)
    with ExitStack() as stack:
        progress = None
        if os.isatty(2):
            from igrun.cli.progress import shown

            progress = stack.enter_context(shown())
        return Gadget.open(
            image,
            {key: text for key, text in values.items() if key in of_image},
            search=settings.search,
            of_user=of_user,
            plug_ins=settings.plugins,
            settings=settings,
            progress=progress,
            looking=looking,
        )


def _run(face: Face, gadget: Gadget, settings: Settings, values: Mapping[str, str]) -> None:
    """Run the gadget until it ends. values: by key, those of this command among them."""
    from igrun import runtime
    from igrun.cli.losses import Losses, tell_books, tell_uncountable
    from igrun.display import Display
    from igrun.sink import Sink

    own = {param.key for param in OWN}
    params = [*IMAGE, *gadget.params]
    every = {**settings.values(params), **{key: text for key, text in values.items() if key not in own}}
    gadget = gadget.with_values(every)
    whole = runtime.HOST.parse(gadget.values.get(runtime.HOST.key, runtime.HOST.default))
    with ExitStack() as stack:
        if wants_mounts(values, settings):
            from igrun.mounts import mount_missing, unmount

            stack.callback(unmount, mount_missing(Path(os.environ.get("HOST_ROOT") or "/")))
        timeout_s = TIMEOUT.parse(values.get(TIMEOUT.key, "0"))
        face.sink = sink = Sink(1)
        sink.keep_whole()
        stack.callback(sink.close)
        news = Losses()
        display = Display(face.write, 1, os.isatty(1), terminal_width, sink, news.tell)
        run = news.run = stack.enter_context(gadget.run(timeout_s=timeout_s, display=display))
        face.stop = run.stop
        stack.callback(setattr, face, "stop", lambda: None)
        if face.signals:  # it came while code of C ran that let nothing through
            raise KeyboardInterrupt
        if not whole:
            say("Note: igrun does not know containers yet, so this shows the whole machine, as --host does")
        tell_btf(run, face.verbose)
        if runtime.FAIL_ON_LOSS.parse(gadget.values.get(runtime.FAIL_ON_LOSS.key, runtime.FAIL_ON_LOSS.default)):
            tell_uncountable(run)
        if face.verbose:
            say("running...")
        run.show()
    tell_books(run, face.verbose)
    run.fail_if_lost()


def tell_btf(run: Run, verbose: bool) -> None:
    """Say where the kernel's BTF is from; without verbose only if it may be another kernel's."""
    if verbose:
        for one in run.kernel_btf.searched:
            say(f"BTF: {one}")
    elif not run.kernel_btf.checked:
        say(f"Warning: BTF of {run.kernel_btf.searched[-1]}")


def wants_mounts(values: Mapping[str, str], settings: Settings) -> bool:
    """Whether file systems are to be mounted: as the flag or the settings say, else in a container with HOST_ROOT."""
    text = values.get(AUTO_MOUNT.key) or settings.get(AUTO_MOUNT.full_name)
    if text is not None:
        return AUTO_MOUNT.parse(text)
    return os.environ.get("HOST_ROOT", "/") not in ("", "/")


def terminal_width() -> int:
    """Cells per line of the terminal."""
    try:
        return os.get_terminal_size(1).columns or 80
    except OSError:
        return 80
