"""Every error that igrun raises on purpose, one class per thing a caller does differently.

GadgetError                      .hint: what the user can do next
├── InvalidReferenceError
├── NotFoundError
├── ImageError
│   └── SignatureError
├── RegistryError                status, code, detail; credentials never in the text
├── BuildError                   the compiler's output
├── MetadataError                path in gadget.yaml, nearest known key
├── ParamError                   key, value
├── KernelError                  also an OSError
│   ├── VerifierError            .log; str() holds the last useful line
│   └── AttachError              program, section, target
├── UnsupportedError             feature, what this kernel lacks, first kernel that has it
├── BtfNotFoundError             release, places searched
├── ContainerRuntimeError
├── RemoteError
└── PluginError
"""

import os
from collections.abc import Iterable


class GadgetError(Exception):
    """The base of all errors; `str()` is one line, `hint` says what the user can do next (may be empty)."""

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidReferenceError(GadgetError):
    """The text is no image reference."""


class NotFoundError(GadgetError):
    """There is no image, blob, instance, ... of that name."""


class ImageError(GadgetError):
    """An image, layer, ELF object or BTF blob cannot be used."""


class SignatureError(ImageError):
    """An image's signature is missing or wrong."""


class RegistryError(GadgetError):
    """A registry answered with an error. `status`: HTTP status; `code`, `detail`: from its answer, may be empty."""

    def __init__(self, message: str, *, status: int = 0, code: str = "", detail: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status, self.code, self.detail = status, code, detail


class BuildError(GadgetError):
    """A gadget did not build. `output`: what the compiler printed."""

    def __init__(self, message: str, *, output: str = "", hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.output = output


class MetadataError(GadgetError):
    """gadget.yaml is wrong at `path` (dotted, as in the file)."""

    def __init__(self, path: str, problem: str, *, hint: str = "") -> None:
        super().__init__(f"gadget.yaml: {path}: {problem}" if path else f"gadget.yaml: {problem}", hint=hint)
        self.path, self.problem = path, problem


class ParamError(GadgetError):
    """A flag or param has a wrong value, or there is none of that name."""

    def __init__(self, key: str, value: str, problem: str, *, hint: str = "") -> None:
        super().__init__(problem, hint=hint)
        self.key, self.value = key, value


class KernelError(GadgetError, OSError):
    """A system call or libbpf function failed. `errno` is the positive error number."""

    def __init__(self, number: int, what: str, *, hint: str = "") -> None:
        super().__init__(f"{what}: {os.strerror(number)}", hint=hint)
        self.errno, self.strerror = number, os.strerror(number)


class VerifierError(KernelError):
    """The verifier refused `program`. `log`: its whole log; `str()` holds the last useful line of it."""

    def __init__(self, number: int, program: str, reason: str, *, log: str = "", hint: str = "") -> None:
        GadgetError.__init__(self, f"program {program!r}: {reason}", hint=hint)
        self.errno, self.strerror = number, os.strerror(number)
        self.program, self.log = program, log


class AttachError(KernelError):
    """`program` of ELF section `section` could not be attached to `target`."""

    def __init__(
        self, number: int, program: str, section: str, target: str, *, reason: str = "", hint: str = ""
    ) -> None:
        why = reason or os.strerror(number)
        GadgetError.__init__(self, f"attach {program!r} ({section}) to {target!r}: {why}", hint=hint)
        self.errno, self.strerror = number, os.strerror(number)
        self.program, self.section, self.target = program, section, target


class UnsupportedError(GadgetError):
    """This kernel cannot do `feature`; `since`: the first Linux version that can, as text."""

    def __init__(self, feature: str, lacks: str, *, since: str = "", hint: str = "") -> None:
        tail = f" (Linux {since} and later have it)" if since else ""
        super().__init__(f"{feature}: {lacks}{tail}", hint=hint)
        self.feature, self.lacks, self.since = feature, lacks, since


class BtfNotFoundError(GadgetError):
    """No BTF for kernel `release`; `searched`: one (place, why not) pair per place."""

    def __init__(self, release: str, searched: Iterable[tuple[str, str]], *, hint: str = "") -> None:
        self.release, self.searched = release, tuple(searched)
        places = "; ".join(f"{place}: {why}" for place, why in self.searched)
        super().__init__(f"no BTF for kernel {release} ({places})", hint=hint)


class ContainerRuntimeError(GadgetError):
    """A container runtime did not answer, or answered with an error."""


class RemoteError(GadgetError):
    """A daemon or server far away failed."""


class PluginError(GadgetError):
    """A plug-in named in the config cannot be used."""
