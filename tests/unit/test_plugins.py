"""The packaged tables of plug-ins say what the modules say."""

import pkgutil
from importlib import import_module

import pytest

import igrun.operators
import igrun.outputs
from igrun import plugins
from igrun.errors import PluginError


def leaves(package) -> dict[str, object]:
    """Modules of a package that are plug-ins."""
    modules = {
        one.name: import_module(f"{package.__name__}.{one.name}") for one in pkgutil.iter_modules(package.__path__)
    }
    return {name: module for name, module in modules.items() if hasattr(module, "NAME")}


def test_the_table_of_operators_holds_each_with_its_stage():
    assert {name: module.STAGE for name, module in leaves(igrun.operators).items()} == dict(plugins.OPERATORS)


def test_the_table_of_outputs_holds_each_with_its_modes():
    assert {name: module.MODES for name, module in leaves(igrun.outputs).items()} == dict(plugins.OUTPUTS)


def test_an_unknown_mode_is_printed_as_text():
    assert plugins.output("advise").NAME == "text"


def test_a_plug_in_that_is_not_there_is_an_error():
    with pytest.raises(PluginError, match="no_such_module"):
        plugins.operators(["no_such_module"])


def test_a_module_that_is_no_plug_in_is_an_error_that_says_what_it_lacks():
    with pytest.raises(PluginError, match="NAME, STAGE, PARAMS, bind"):
        plugins.operators(["json"])


def test_a_plug_in_may_attach_sections_of_its_own(tmp_path, monkeypatch):
    (tmp_path / "own_family.py").write_text(
        "from igrun.sections import ProgramType\n"
        "SECTIONS = (ProgramType('own/', 'own_family', 17, None, 'name'),)\n"
        "def places(hook, target): return (hook.attach_to,)\n"
        "def attach(hook, place): return None\n"
    )
    monkeypatch.syspath_prepend(tmp_path)

    (family,) = plugins.families(["own_family"])

    assert family.SECTIONS[0].family == "own_family"
    assert len(plugins.operators(["own_family"])) == len(plugins.OPERATORS)
