"""Columns that hold an environment variable."""

import pytest

from igrun.errors import MetadataError, ParamError
from igrun.metadata import GadgetMetadata
from igrun.operators import Given, env
from igrun.record import Constant, DataSource, Derived, Field, Kind, Side

YAML = b"datasources: {s: {fields: {node: {annotations: {columns.width: 30}}}}}"


def bound(allowed: str, variables: dict[str, str], **annotations: str) -> DataSource:
    described = {key.replace("__", "."): value for key, value in annotations.items()}
    source = DataSource("s", Kind.EVENTS, (Field("pid", "<u4", Side("pid")),), described)
    metadata = GadgetMetadata.parse(YAML, strict=False)
    (step,) = env.bind(Given(metadata, None, {"s": source}, {"env-vars": allowed}, env=variables))
    return step.sources["s"]


def test_an_annotated_variable_becomes_a_column_after_the_others():
    source = bound("HOME,NODE", {"NODE": "n1"}, env__fields__node="NODE")

    node = source.field("node")
    assert (node.dtype, node.place) == ("T", Derived((), Constant("n1")))
    assert node.annotations["columns.width"] == "30"
    assert not node.hidden
    assert node.order > source.field("pid").order


def test_a_variable_that_is_not_set_is_empty():
    assert bound("NODE", {}, env__fields__node="NODE").field("node").place == Derived((), Constant(""))


def test_other_annotations_add_nothing():
    assert len(bound("", {}, cli__default="columns").fields) == 1


@pytest.mark.parametrize(("allowed", "shown"), [("", "[]"), ("HOME,PATH", "[HOME PATH]")])
def test_a_variable_that_is_not_allowed_is_named(allowed, shown):
    with pytest.raises(ParamError) as caught:
        bound(allowed, {"SECRET": "x"}, env__fields__node="SECRET")

    assert str(caught.value) == f'environment var "SECRET" not in allowed vars: {shown}'
    assert caught.value.key == "env-vars"
    assert "SECRET" in caught.value.hint


def test_it_does_not_replace_a_field():
    with pytest.raises(MetadataError, match="field pid exists already"):
        bound("NODE", {}, env__fields__pid="NODE")


def test_its_flag_is_the_list_of_what_is_allowed():
    (param,) = env.PARAMS
    assert (param.key, param.group, param.default) == ("env-vars", "operator.env", "")
