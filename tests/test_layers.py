"""The modules of igrun import in one order, and neighbours do not know each other."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parent.parent / "igrun"

# A module imports only what stands before it. A package stands for everything in it.
ORDER = """
errors logs digests dataclass regex names sections patterns record metadata plugins config data caches host tail sink
clib bpfcall bpflib bpfmap libbpf mounts netlink btf layout ringbuf oci engine image lookup elf symbols btfgen
kernel_btf objects markers packetfilter datasources variables checks program requirements build choosing structops
extensions load attach checking readers intake books events recording containers expressions operators outputs display
views runtime remote cli
""".split()
STRANGERS = ("attach", "containers", "operators", "outputs")


def modules() -> dict[str, ast.Module]:
    """Module name (dotted, without igrun.) -> its syntax tree."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0].startswith("_") and parts != ("__init__",):
            continue
        found[".".join(parts)] = ast.parse(path.read_text(), str(path))
    return found


def imports(tree: ast.Module) -> set[str]:
    """Dotted names (without igrun.) of what it imports at run time, inside functions too."""
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            if node.module == "igrun":
                found |= {alias.name for alias in node.names}
            elif node.module and node.module.startswith("igrun."):
                base = node.module.removeprefix("igrun.")
                found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("igrun.") for a in node.names if a.name.startswith("igrun.")}
    return found


def layer(module: str) -> str:
    return module.split(".")[0]


def test_every_module_has_a_place_in_the_order():
    unknown = {layer(module) for module in modules()} - set(ORDER) - {"__init__", "__main__"}

    assert not unknown


def test_a_module_imports_only_what_stands_before_it():
    wrong = [
        f"{module} imports {name}"
        for module, tree in modules().items()
        if layer(module) in ORDER
        for name in imports(tree)
        if layer(name) in ORDER and ORDER.index(layer(name)) > ORDER.index(layer(module))
    ]

    assert not wrong


def test_plug_ins_do_not_import_their_neighbours():
    known = modules()
    wrong = [
        f"{module} imports {name}"
        for module, tree in known.items()
        if layer(module) in STRANGERS and not module.endswith("__init__")
        for name in imports(tree)
        if layer(name) == layer(module) and name in known and name != module and is_leaf(known[name]) and is_leaf(tree)
    ]

    assert not wrong


def is_leaf(tree: ast.Module) -> bool:
    """True for a plug-in: it says its name, or attaches programs."""
    if {"places", "attach"} <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}:
        return True
    return any(
        isinstance(node, ast.Assign | ast.AnnAssign)
        and any(
            isinstance(target, ast.Name) and target.id == "NAME"
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        )
        for node in tree.body
    )


def test_there_is_no_import_cycle():
    known = modules()
    graph = {
        module: {
            target
            for name in top_level_imports(tree)
            for target in (name, f"{name}.__init__")
            if target in known and target != module
        }
        for module, tree in known.items()
    }
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done:
            return
        for target in graph[module]:
            visit(target, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def top_level_imports(tree: ast.Module) -> set[str]:
    body = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    return imports(ast.Module(body=body, type_ignores=[])) if body else set()


def test_the_data_classes_are_those_that_cost_nothing():
    """`igrun.dataclass` says why."""
    wrong = [name for name, tree in modules().items() if "module='dataclasses'" in ast.dump(tree)]

    assert not wrong, "from igrun.dataclass import dataclass, field, replace"
