"""The bill of materials of an image, as SPDX 2.3 or CycloneDX 1.5. The same build gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import igrun
from igrun.build.materials import Component, Material, Materials
from igrun.build.recipe import Recipe
from igrun.dataclass import dataclass, replace
from igrun.image import Objects
from igrun.metadata import GadgetMetadata
from igrun.oci.model import Json, dumped

SPDX = "application/spdx+json"
CYCLONEDX = "application/vnd.cyclonedx+json"
FORMATS = ("spdx", "cyclonedx")
UNKNOWN = "NOASSERTION"


@dataclass(frozen=True, slots=True)
class Bill:
    """What a bill of materials tells.

    name:     of the gadget
    digest:   of the image's index
    created:  RFC 3339, when the sources are from
    version:  igrun's
    license:  of the gadget, "" if its source does not say
    objects:  what was compiled
    """

    name: str
    digest: str
    created: str
    version: str
    license: str
    objects: tuple[Material, ...]
    materials: Materials

    @classmethod
    def of(
        cls,
        metadata: bytes | None,
        digest: str,
        created: str,
        recipe: Recipe,
        objects: Mapping[str, Objects],
        materials: Materials,
    ) -> Bill:
        """From what was built. metadata: gadget.yaml"""
        said = GadgetMetadata.parse(metadata or b"", strict=False)
        license = next((one.license for one in materials.files if one.name == recipe.ebpf), "")
        parts = {f"{architecture}.bpf.o": one.ebpf for architecture, one in objects.items()}
        parts["program.wasm"] = next((one.wasm for one in objects.values()), None)
        files = tuple(Material.of(name, data) for name, data in sorted(parts.items()) if data is not None)
        return cls(
            said.name or "gadget",
            digest,
            created,
            igrun.__version__,
            license,
            tuple(replace(one, license="") for one in files),
            materials,
        )

    @property
    def purl(self) -> str:
        """The image as a package URL."""
        from urllib.parse import quote

        return f"pkg:oci/{quote(self.name.lower(), safe='')}@{self.digest.replace(':', '%3A')}"

    @property
    def tools(self) -> tuple[Component, ...]:
        own = Component("tool", "igrun", self.version)
        return (own, *(one for one in self.materials.components if one.kind == "tool"))

    @property
    def modules(self) -> tuple[Component, ...]:
        return tuple(one for one in self.materials.components if one.kind != "tool")


def write(form: str, bill: Bill) -> tuple[str, bytes]:
    """The media type and the bytes. form: spdx or cyclonedx"""
    return (SPDX, spdx(bill)) if form == "spdx" else (CYCLONEDX, cyclonedx(bill))


def identity(document: Mapping[str, Any]) -> str:
    """A UUID that is the same for the same document."""
    from uuid import NAMESPACE_URL, uuid5

    return str(uuid5(NAMESPACE_URL, dumped(dict(document)).decode()))


# ---------------------------------------------------------------------------------------------- SPDX


def spdx(bill: Bill) -> bytes:
    """SPDX 2.3, JSON."""
    image = "SPDXRef-Image"
    packages = [
        {
            **package(image, bill.name, bill.digest, bill.license),
            **analyzed(bill.objects),
            "checksums": [{"algorithm": "SHA256", "checksumValue": bill.digest.removeprefix("sha256:")}],
            "externalRefs": [purl_reference(bill.purl)],
            "primaryPackagePurpose": "CONTAINER",
        }
    ]
    links = [link("SPDXRef-DOCUMENT", "DESCRIBES", image)]
    for number, tool in enumerate(bill.tools):
        key = f"SPDXRef-Tool-{number}"
        packages.append({**package(key, tool.name, tool.version), "primaryPackagePurpose": "APPLICATION"})
        links.append(link(key, "BUILD_TOOL_OF", image))
    for number, module in enumerate(bill.modules):
        key = f"SPDXRef-Module-{number}"
        more = {"externalRefs": [purl_reference(module.purl)], "primaryPackagePurpose": "LIBRARY"}
        packages.append({**package(key, module.name, module.version), **more})
        links.append(link(image, "DEPENDS_ON", key))
    objects = {f"SPDXRef-Object-{number}": one for number, one in enumerate(bill.objects)}
    sources = {f"SPDXRef-Source-{number}": one for number, one in enumerate(bill.materials.files)}
    links += [link(image, "CONTAINS", key) for key in objects]
    links += [link(key, "GENERATED_FROM", source) for key in objects for source in sources]
    document: Json = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": bill.name,
        "creationInfo": {"created": bill.created, "creators": [f"Tool: igrun-{bill.version}"]},
        "packages": packages,
        "files": [
            *(spdx_file(key, one, "BINARY") for key, one in objects.items()),
            *(spdx_file(key, one, "SOURCE") for key, one in sources.items()),
        ],
        "relationships": links,
    }
    document["documentNamespace"] = f"urn:uuid:{identity(document)}"
    return dumped(document)


def package(key: str, name: str, version: str, license: str = "") -> Json:
    return {
        "SPDXID": key,
        "name": name,
        **({"versionInfo": version} if version else {}),
        "downloadLocation": UNKNOWN,
        "filesAnalyzed": False,
        "licenseConcluded": UNKNOWN,
        "licenseDeclared": license or UNKNOWN,
        "copyrightText": UNKNOWN,
    }


def analyzed(files: tuple[Material, ...]) -> Json:
    """What a package of these files says about them: a sum over their sums."""
    from hashlib import sha1

    if not files:
        return {}
    code = sha1("".join(sorted(one.sha1 for one in files)).encode(), usedforsecurity=False).hexdigest()
    return {
        "filesAnalyzed": True,
        "packageVerificationCode": {"packageVerificationCodeValue": code},
        "licenseInfoFromFiles": [UNKNOWN],
    }


def spdx_file(key: str, one: Material, kind: str) -> Json:
    # what a file says may be several licenses with OR and AND; the format wants each by itself here
    return {
        "SPDXID": key,
        "fileName": f"./{one.name.lstrip('/')}",  # the format knows no absolute names
        "fileTypes": [kind],
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": one.sha1},
            {"algorithm": "SHA256", "checksumValue": one.sha256},
        ],
        "licenseConcluded": one.license or UNKNOWN,
        "licenseInfoInFiles": licenses(one.license) or [UNKNOWN],
        "copyrightText": UNKNOWN,
    }


def licenses(expression: str) -> list[str]:
    """The licenses of an expression, one by one."""
    import re

    return sorted({word.strip() for word in re.split(r"\bOR\b|\bAND\b|[()]", expression) if word.strip()})


def purl_reference(purl: str) -> Json:
    return {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": purl}


def link(one: str, what: str, other: str) -> Json:
    return {"spdxElementId": one, "relationshipType": what, "relatedSpdxElement": other}


# ---------------------------------------------------------------------------------------------- CycloneDX


def cyclonedx(bill: Bill) -> bytes:
    """CycloneDX 1.5, JSON."""
    image = bill.purl
    components: list[Json] = [
        {"type": "library", "bom-ref": one.purl, "name": one.name, "version": one.version, "purl": one.purl}
        for one in bill.modules
    ]
    made = [cyclonedx_file(one) for one in bill.objects]
    sources = [cyclonedx_file(one) for one in bill.materials.files]
    refs = [one["bom-ref"] for one in sources]
    document: Json = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "timestamp": bill.created,
            "tools": {
                "components": [
                    {"type": "application", "name": one.name, **({"version": one.version} if one.version else {})}
                    for one in bill.tools
                ]
            },
            "component": {
                "type": "container",
                "bom-ref": image,
                "name": bill.name,
                "version": bill.digest,
                "hashes": [{"alg": "SHA-256", "content": bill.digest.removeprefix("sha256:")}],
                **({"licenses": [{"expression": bill.license}]} if bill.license else {}),
                "purl": image,
            },
        },
        "components": components + made + sources,
        "dependencies": [
            {"ref": image, "dependsOn": [one["bom-ref"] for one in components + made]},
            *({"ref": one["bom-ref"], "dependsOn": refs} for one in made),
        ],
    }
    document["serialNumber"] = f"urn:uuid:{identity(document)}"
    return dumped(document)


def cyclonedx_file(one: Material) -> Json:
    return {
        "type": "file",
        "bom-ref": f"file:{one.name}@{one.sha256[:16]}",
        "name": one.name,
        "hashes": [{"alg": "SHA-1", "content": one.sha1}, {"alg": "SHA-256", "content": one.sha256}],
        **({"licenses": [{"expression": one.license}]} if one.license else {}),
    }
