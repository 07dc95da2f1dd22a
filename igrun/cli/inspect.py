"""What `ig image inspect` shows of an image: found here, told by `overview` to people and by `addenda` to programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from igrun import lookup
from igrun.cli.addenda import data_source, extra_info
from igrun.cli.overview import overview
from igrun.config import BUNDLED
from igrun.dataclass import dataclass
from igrun.errors import GadgetError, NotFoundError, SignatureError
from igrun.host import GOARCH
from igrun.image import ARCHITECTURES, GadgetImage, unpack
from igrun.lookup import Located, Policy, locate
from igrun.oci.model import INDEXES, LARGEST_MANIFEST, Descriptor, Index, Manifest, Reference, Referrer
from igrun.runtime import Gadget

if TYPE_CHECKING:
    from igrun.config import Settings
    from igrun.requirements import Requirements
    from igrun.requirements.guest import Guest

__all__ = ["Found", "find", "overview", "selected", "written"]

NOTHING: Mapping[str, str] = MappingProxyType({})
MOST_REFERRERS = 1000
# What the type of a referrer, of its layers or of what they state begins with -> what it is
TOLD = (
    ("application/spdx", "SBOM (SPDX)"),
    ("text/spdx", "SBOM (SPDX)"),
    ("https://spdx.dev/", "SBOM (SPDX)"),
    ("application/vnd.cyclonedx", "SBOM (CycloneDX)"),
    ("https://cyclonedx.org/", "SBOM (CycloneDX)"),
    ("https://slsa.dev/provenance", "provenance (SLSA)"),
    ("https://slsa.dev/", "attestation (SLSA)"),
    ("https://sigstore.dev/cosign/sign", "signature (sigstore bundle)"),
    ("application/vnd.dev.cosign.simplesigning", "signature (cosign)"),
    ("application/vnd.dev.cosign.artifact.sig", "signature (cosign)"),
    ("application/vnd.cncf.notary.signature", "signature (notation)"),
    ("application/vnd.in-toto", "attestation (in-toto)"),
    ("application/vnd.dev.sigstore.bundle", "sigstore bundle"),
)


class Referred(NamedTuple):
    """Something about an image. type: its artifact type; what: in words."""

    digest: str
    type: str
    what: str
    size: int


class Signature(NamedTuple):
    """Whether an image is trusted here. state: bundled, built here, signed, unsigned or not verified."""

    state: str
    why: str

    def __str__(self) -> str:
        return f"{self.state}: {self.why}" if self.why else self.state


@dataclass(frozen=True)
class Found:
    """An image: its name, the digest it stands for, its manifests by architecture, and one of them opened."""

    reference: Reference
    root: Descriptor
    manifests: dict[str, tuple[Descriptor, Manifest]]
    image: GadgetImage
    gadget: Gadget
    architecture: str
    signature: Signature
    referrers: tuple[Referred, ...]

    @cached_property
    def requirements(self) -> Requirements | None:
        """What its BPF object needs, None if it has none."""
        from igrun.requirements import requirements

        return requirements(self.gadget.program) if self.gadget.program else None

    @cached_property
    def guest(self) -> Guest | None:
        """What its WASM module says, None if it has none."""
        from igrun.requirements.guest import guest

        return guest(self.image.wasm) if self.image.wasm else None


def find(name: str, settings: Settings, given: Mapping[str, str] = NOTHING) -> Found:
    """Look an image up as `ig run` does, and open it for this machine's architecture, else for one that it has.

    given: flags of images by key, as `pull`
    """
    machine = os.uname().machine
    own = GOARCH.get(machine, machine)
    with ExitStack() as stack:
        policy = Policy(given, settings, looking=True)
        located = locate(stack, name, search=settings.search, policy=policy)
        store, root = located.store, located.descriptor
        manifests = {}
        if root.media_type in INDEXES:
            for one in Index.parse(store.read(root)).manifests:
                if one.platform and one.platform.architecture in ARCHITECTURES:
                    manifests[one.platform.architecture] = (one, Manifest.parse(store.read(one)))
        architecture = own if own in manifests else next(iter(manifests), own)
        image = unpack(store, root, architecture)
        reference = Reference.parse(located.name if "/" in located.name else name)
        referrers = store.referrers(root)[:MOST_REFERRERS]
        return Found(
            reference,
            root,
            manifests,
            image,
            Gadget.of(image),
            architecture,
            signature(located, reference, Policy(given, settings)),
            tuple(referred(located, one) for one in referrers),
        )


def referred(located: Located, referrer: Referrer) -> Referred:
    """What a referrer is; it is never an error that it cannot be read."""
    from igrun.oci.signature import kind, read

    descriptor = referrer.descriptor
    try:
        manifest = Manifest.parse(read(located.store, descriptor, LARGEST_MANIFEST))
    except GadgetError as error:
        return Referred(descriptor.digest, kind(referrer), f"cannot be read: {error}", descriptor.size)
    of = kind(referrer, manifest)
    layers = manifest.layers[:10]
    words = [*manifest.annotations.values(), *(text for one in layers for text in one.annotations.values())]
    words += [of, *(one.media_type for one in layers)]
    what = next((told for prefix, told in TOLD for word in words if word.startswith(prefix)), "")
    return Referred(descriptor.digest, of, what or of or "unknown", sum(one.size for one in manifest.layers))


def signature(located: Located, reference: Reference, policy: Policy) -> Signature:
    """Whether the image is trusted here, and why; never an error."""
    if located.origin == BUNDLED:
        return Signature("bundled", "comes with igrun")
    here = lookup.vouched(located.store, located.descriptor)
    try:
        verified = policy.trust().verify(located.store, located.descriptor, reference)
    except SignatureError as error:
        if here:
            return Signature("built here", "")
        why = str(error).rpartition('": ')[2]
        return Signature("unsigned", "") if why == "signature not found" else Signature("not verified", why)
    except GadgetError as error:
        return Signature("built here", "") if here else Signature("not verified", str(error))
    warnings = "".join(f"; {one}" for one in verified.warnings)
    built = ", built here" if here else ""
    return Signature("signed", f"{verified.format} by {verified.by}{built}{warnings}")


# ---------------------------------------------------------------------------------------------- parts, for programs


def selected(found: Found, key: str, path: str, sources: bool) -> Any:
    """What was asked for. NotFoundError: there is no such key, or nothing stands at the path."""
    if sources:
        value: Any = [data_source(source) for source in found.gadget.sources.values() if source.referenced]
        return at(value, path, "data sources") if path else value
    info = extra_info(found)
    if not key:
        return {name: {"content": content, "contentType": kind} for name, (kind, content) in sorted(info.items())}
    if key not in info:
        raise NotFoundError(f'extra info "{key}" not found', hint=f"there are: {', '.join(sorted(info))}")
    kind, content = info[key]
    value = content
    if kind == "application/json":
        value = json.loads(content or "null")
    elif kind == "text/yaml":
        from igrun.metadata.document import load

        value = load(content.encode(), strict=False)
    return at(value, path, f'extra info "{key}"') if path else value


def at(value: Any, path: str, where: str) -> Any:
    """What stands at a JSONPath; a list where the path may lead to several values.

    ParamError: the path is not understood. NotFoundError: it leads nowhere.
    """
    from igrun.cli.jsonpath import find as walk

    found, single = walk(value, path)
    if not single:
        return found
    if not found:
        raise NotFoundError(f'path "{path}" not found in {where}')
    return found[0]


def written(value: Any, output: str) -> str:
    """A value as JSON or YAML; a text as it is."""
    if isinstance(value, str):
        return f"{value}\n"
    if output == "yaml":
        import yaml

        return str(yaml.safe_dump(value, allow_unicode=True))
    if output == "json":
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n"
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
