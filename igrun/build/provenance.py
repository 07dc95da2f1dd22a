"""How an image was built, as an in-toto statement with SLSA's provenance (v1). It names nothing of this machine.

The build type `urn:igrun:build:gadget:v1`: the external parameters are what build.yaml says (`ebpfsource`, `wasm`,
`metadata`, `cflags`, `includes`), whether gadget.yaml was checked, and the builder image where one was named.
`SOURCE_DATE_EPOCH` is the time that the objects and the image bear; the two times of the run are that one too, so that
the same sources give the same statement.
"""

from __future__ import annotations

from igrun.build.container import Builder
from igrun.build.recipe import Recipe
from igrun.build.sbom import Bill
from igrun.oci.model import Json, dumped

IN_TOTO = "application/vnd.in-toto+json"
PREDICATE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:igrun:build:gadget:v1"


def statement(bill: Bill, recipe: Recipe, epoch_s: int, builder: Builder | None, *, image: str, checked: bool) -> bytes:
    """The bytes of the statement. image: the builder image that was asked for; checked: gadget.yaml was"""
    parameters: Json = {
        "ebpfsource": recipe.ebpf,
        "wasm": recipe.wasm,
        "metadata": recipe.metadata,
        "cflags": list(recipe.cflags),
        "includes": list(recipe.includes),
        "validateMetadata": checked,
        **({"builderImage": image} if image else {}),
    }
    dependencies: list[Json] = [
        {"name": one.name, "digest": {"sha256": one.sha256}} for one in bill.materials.files
    ] + [{"name": one.name, "uri": one.purl} for one in bill.modules]
    if builder:
        name = {"name": "builder image", **({"uri": f"oci://{builder.name}"} if builder.digest else {})}
        dependencies.append({**name, "digest": {"sha256": (builder.digest or builder.id).removeprefix("sha256:")}})
    return dumped(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": bill.name, "digest": {"sha256": bill.digest.removeprefix("sha256:")}}],
            "predicateType": PREDICATE,
            "predicate": {
                "buildDefinition": {
                    "buildType": BUILD_TYPE,
                    "externalParameters": parameters,
                    "internalParameters": {"SOURCE_DATE_EPOCH": epoch_s},
                    "resolvedDependencies": dependencies,
                },
                "runDetails": {
                    "builder": {
                        "id": f"urn:igrun:builder:{'container' if builder else 'local'}",
                        "version": {one.name: one.version for one in bill.tools},
                    },
                    "metadata": {"startedOn": bill.created, "finishedOn": bill.created},
                },
            },
        }
    )
