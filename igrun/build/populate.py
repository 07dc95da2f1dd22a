"""Write into gadget.yaml what the object has and it does not say yet."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from igrun.errors import BuildError
from igrun.metadata import GadgetMetadata
from igrun.metadata.document import load
from igrun.program import Program

# What the ecosystem's `ig image build` writes too: for the author of the gadget to fill in.
HEAD = {
    "name": "TODO: Fill the gadget name",
    "description": "TODO: Fill the gadget description",
    "homepageURL": "TODO: Fill the gadget homepage URL",
    "documentationURL": "TODO: Fill the gadget documentation URL",
    "sourceURL": "TODO: Fill the gadget source code URL",
}
FIELD = "TODO: Fill field description"
PARAM = "TODO: Fill parameter description"


def populate(path: Path, program: Program | None) -> bool:
    """Add to the file what is missing in it. What is there stays as it is, except comments. True: it changed."""
    try:
        before = load(path.read_bytes(), strict=True) if path.exists() else {}
        after = added(before, program)
        if after == before:
            return False
        import yaml

        text = yaml.safe_dump(after, sort_keys=False, allow_unicode=True, width=120)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(path)
    except OSError as error:
        raise BuildError(f"cannot update {path}: {error.strerror}") from None
    return True


def added(tree: dict[str, Any], program: Program | None) -> dict[str, Any]:
    """The document with what the object has."""
    known = GadgetMetadata(raw={})
    result: dict[str, Any] = {key: tree.get(key) or todo for key, todo in HEAD.items()}
    result.update({key: value for key, value in tree.items() if key not in HEAD})
    if program is None:
        return result
    sources = dict(result.get("datasources") or {})
    for name, source in program.sources.items():
        entry = dict(sources.get(name) or {})
        fields = dict(entry.get("fields") or {})
        for field in source.fields:
            described = known.describe(name, field).annotations.get("description") or FIELD
            one = dict(fields.get(field.name) or {})
            annotations = dict(one.get("annotations") or {})
            annotations.setdefault("description", described)
            fields[field.name] = {**one, "annotations": annotations}
        entry["fields"] = fields
        sources[name] = entry
    if sources:
        result["datasources"] = sources
    params = dict(result.get("params") or {})
    ebpf = dict(params.get("ebpf") or {})
    for param in program.params:
        if param.key not in program.setters:
            continue
        variable = program.setters[param.key][0]
        if param.key == variable and variable not in ebpf:
            ebpf[variable] = {"key": variable, "description": PARAM}
    if ebpf:
        result["params"] = {**params, "ebpf": ebpf}
    return result
