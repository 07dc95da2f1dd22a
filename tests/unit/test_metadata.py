"""gadget.yaml: what it says, what is refused, and how fields get their annotations."""

import contextlib
import json
import time
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from igrun.errors import MetadataError, ParamError
from igrun.metadata import (
    BOOL,
    BYTES,
    DURATION,
    FLOAT64,
    INT8,
    IP,
    LIST,
    TEXT,
    UINT16,
    GadgetMetadata,
    Param,
    check,
    from_file,
    key_of,
    known,
)
from igrun.metadata.document import as_text, folded, load, scalar
from igrun.metadata.params import split_commas
from igrun.record import At, Constant, DataSource, Derived, Field, Kind

OPEN = b"""
name: trace_open
description: Trace open files
homepageURL: https://example.org
annotations:
  io.example.Key: 1
datasources:
  open:
    annotations:
      cli.clear-screen-before: true
    fields:
      proc.comm:
        annotations: {columns.width: 20}
        tags: [first]
      proc:
        pid:
          annotations: {description: who}
      errorText:
        annotations: {template: errorString, columns.maxWidth: 14}
      secret:
        annotations: {columns.hidden: true}
params:
  ebpf:
    targ_failed: {key: failed, defaultValue: false, description: Only failed, alias: x}
    targ_empty: {key: empty, defaultValue: ""}
paramDefaults:
  operator.oci.ebpf.Map-Fetch-Interval: "0"
  operator.sort.sort: -count
programs:
  profiler:
    perf: {type: software, sampleType: sample_raw}
    sampler.frequency: 49
  kp_open: {attach_to: do_sys_open}
operator:
  process: {interval: 3s}
"""


def metadata(text: bytes = OPEN, *, strict: bool = False) -> GadgetMetadata:
    return GadgetMetadata.parse(text, strict=strict)


def described(field: Field, text: bytes = OPEN, source: str = "open") -> Field:
    return metadata(text).describe(source, field)


def in_struct(name: str, *tags: str, **more: object) -> Field:
    return Field(name, "<u4", At(0), (*tags, "src:ebpf"), **more)


def made(name: str, **annotations: str) -> Field:
    place = Derived((), Constant(""))
    return Field(name, "T", place, annotations={key.replace("_", "."): value for key, value in annotations.items()})


# ---------------------------------------------------------------------------------------------- what it says


def test_the_top_of_the_file_is_read():
    found = metadata()

    assert (found.name, found.description, found.homepage_url) == (
        "trace_open",
        "Trace open files",
        "https://example.org",
    )
    assert found.annotations == {"io.example.Key": "1"}
    assert found.warnings == ()


@pytest.mark.parametrize("text", [b"", b"{}", b"---\n", b"# nothing\n", b"null\n"])
def test_a_file_without_content_says_nothing(text):
    found = metadata(text, strict=True)

    assert found == GadgetMetadata()
    assert found.describe("open", in_struct("fd")).annotations == known.BASE


def test_keys_do_not_depend_on_case_or_nesting_at_run_time():
    nested = b"dataSources: {OPEN: {Fields: {Proc: {Comm: {Annotations: {Columns.Width: 20}}}}}}"
    dotted = b"datasources.open.fields: {proc.comm.annotations: {columns.width: 20}}"

    for text in (nested, dotted):
        assert described(in_struct("proc.comm"), text).annotations["columns.width"] == "20"


def test_a_field_and_its_members_may_be_written_in_both_ways_at_once():
    assert described(in_struct("proc.comm")).annotations["columns.width"] == "20"
    assert described(in_struct("proc.pid")).annotations["description"] == "who"
    assert described(in_struct("proc.comm")).tags == ("src:ebpf", "first")


def test_scalars_of_any_type_become_the_text_that_go_writes():
    text = b"annotations: {a: true, b: 35, c: 1.50, d: 0x10, e: 1e3, f: ~, g: yes, h: 'true', i: 010, j: 2024-01-02}"

    assert metadata(text).annotations == {
        "a": "true",
        "b": "35",
        "c": "1.5",
        "d": "16",
        "e": "1000",
        "f": "",
        "g": "yes",
        "h": "true",
        "i": "8",
        "j": "2024-01-02",
    }


def test_a_source_has_the_annotations_of_the_file_below_its_own():
    source = DataSource("open", Kind.EVENTS, annotations={"fetch-count": "1"})

    assert metadata().source(source).annotations == {"cli.clear-screen-before": "true", "fetch-count": "1"}


def test_programs_have_flat_options():
    assert metadata().program_options("profiler") == {
        "perf.type": "software",
        "perf.sampletype": "sample_raw",
        "sampler.frequency": "49",
    }
    assert metadata().program_options("KP_open") == {"attach_to": "do_sys_open"}
    assert metadata().program_options("none") == {}


def test_the_config_of_operators_is_found_by_path():
    assert metadata().config("operator.process.interval") == "3s"
    assert metadata().config("Operator.Process.Count", "7") == "7"
    assert metadata(b"annotations: {enable-containers-datasource: true}").config(
        "annotations.enable-containers-datasource"
    ) == ("true")


# ---------------------------------------------------------------------------------------------- fields


def test_a_field_of_the_struct_has_base_then_type_then_its_own_annotations():
    found = described(in_struct("c", "type:gadget_comm", "type:char", annotations={"columns.alias": "comm"}))

    assert found.annotations == {
        **known.BASE,
        "description": "Process name",
        "columns.maxwidth": "16",
        "columns.alias": "comm",
    }
    assert not found.hidden


@pytest.mark.parametrize("typedef", ["gadget_ppid", "gadget_ptid", "gadget_mntns_id", "gadget_process", "gadget_creds"])
def test_some_types_are_hidden(typedef):
    assert described(in_struct("x", f"type:{typedef}")).hidden


def test_the_parents_thread_is_hidden_although_the_ecosystem_shows_it():
    found = described(in_struct("proc.parent.tid", "type:gadget_ptid"))

    assert found.hidden
    assert found.annotations["description"] == "Parent thread ID"


def test_annotations_of_the_creator_replace_the_base():
    assert described(made("x")).annotations == known.BASE
    assert described(made("x", template="errorString")).annotations == {
        "template": "errorString",
        "columns.width": "12",
    }


def test_the_files_template_stands_below_its_other_annotations():
    found = described(made("errorText", columns_width="9"))

    assert found.annotations["columns.width"] == "12"
    assert found.annotations["columns.maxwidth"] == "14"


def test_only_the_word_true_hides_and_nothing_unhides_what_code_hid():
    assert described(in_struct("secret")).hidden
    assert not described(in_struct("secret"), OPEN.replace(b"hidden: true", b"hidden: 'yes'")).hidden
    assert described(
        in_struct("secret", hidden=True), OPEN.replace(b"columns.hidden: true", b"columns.hidden: false")
    ).hidden


def test_describing_twice_changes_nothing():
    once = described(in_struct("proc.comm", "type:gadget_comm"))

    assert described(once) == once


# ---------------------------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("text", "path", "hint"),
    [
        (
            b"datasources: {open: {fields: {fname: {annotations: {columns.with: 3}}}}}",
            "datasources.open.fields.fname.annotations",
            "did you mean columns.width?",
        ),
        (
            b"datasources: {open: {annotations: {'cli.clear-screen-before:': 3}}}",
            "datasources.open.annotations",
            "did you mean cli.clear-screen-before?",
        ),
        (b"datasource: {}", "top level", "did you mean datasources?"),
        (b"dataSources: {}", "top level", "did you mean datasources?"),
        (b"datasources: {open: {field: {}}}", "datasources.open", "did you mean fields?"),
        (
            b"datasources: {open: {fields: {a: {annotation: {x: 1}}}}}",
            "datasources.open.fields.a",
            "did you mean annotations?",
        ),
        (b"params: {epbf: {}}", "params", "did you mean ebpf?"),
        (b"params: {ebpf: {x: {defaultvalue: 1}}}", "params.ebpf.x", "did you mean defaultValue?"),
        (b"programs: {p: {atach_to: x}}", "programs.p", "did you mean attach_to?"),
        (b"programs: {p: {perf.typ: x}}", "programs.p", "did you mean perf.type?"),
        (b"operator: {process: {intervall: 1s}}", "operator.process", "did you mean interval?"),
    ],
)
def test_an_unknown_key_is_an_error_at_build_and_a_warning_at_run(text, path, hint):
    with pytest.raises(MetadataError) as caught:
        metadata(text, strict=True)

    assert caught.value.path == path
    assert caught.value.hint == hint
    if not any(word in text for word in (b"dataSources", b"defaultvalue")):  # run time does not look at case
        (warning,) = metadata(text).warnings
        assert hint in warning


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b"datasources: []", "datasources"),
        (b"datasources: {open: {fields: {a: 3}}}", "datasources.open.fields.a"),
        (b"name: {a: 1}", "name"),
        (b"datasources: {open: {fields: {a: {tags: {b: 1}}}}}", "datasources.open.fields.a.tags"),
        (
            b"datasources: {o: {fields: {a: {annotations: {columns.width: wide}}}}}",
            "datasources.o.fields.a.annotations.columns.width",
        ),
        (
            b"datasources: {o: {fields: {a: {annotations: {columns.alignment: up}}}}}",
            "datasources.o.fields.a.annotations.columns.alignment",
        ),
        (
            b"datasources: {o: {fields: {a: {annotations: {template: none}}}}}",
            "datasources.o.fields.a.annotations.template",
        ),
        (b"params: {ebpf: {x: {alias: long}}}", "params.ebpf.x.alias"),
        (b"params: {ebpf: {x: {isMandatory: maybe}}}", "params.ebpf.x.isMandatory"),
        (b"name: a\nname: b", "name"),
        (b"datasources: {o: {}, o: {}}", "datasources.o"),
    ],
)
def test_a_wrong_value_is_an_error_at_build_with_its_path_and_none_at_run(text, path):
    with pytest.raises(MetadataError) as caught:
        metadata(text, strict=True)

    assert caught.value.path == path
    metadata(text)


def test_annotations_for_other_consumers_are_nobodys_mistake():
    text = b"""
datasources: {o: {annotations: {foo.bar: 1, views.x.y: 2, env.fields.A: HOME}, fields: {a: {annotations: {my: 1}}}}}
"""

    assert metadata(text, strict=True).warnings == ()


def test_keys_of_old_gadgets_are_only_a_warning():
    found = metadata(b"tracers: {open: {mapName: events}}\nebpfParams: {targ: {key: t}}", strict=True)

    assert len(found.warnings) == 1
    assert found.ebpf_params["targ"].key == "t"


@pytest.mark.parametrize(
    "text", [b"[1, 2]", b"a: [", b"\xff\xfe\x00", b"a: &x [*x]", b"? {a: b}\n: c", b"text", b"a: 1\n---\nb: 2"]
)
def test_what_is_no_mapping_is_an_error_in_one_line(text):
    for strict in (True, False):
        with pytest.raises(MetadataError) as caught:
            metadata(text, strict=strict)
        assert "\n" not in str(caught.value)


def test_input_is_bounded():
    bomb = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
        b"a%d: &a%d [%s]\n" % (n, n, b", ".join([b"*a%d" % (n - 1)] * 10)) for n in range(1, 12)
    )
    deep = b"a: " + b"[" * 500_000
    dots = b".".join([b"a"] * 400_000) + b": 1"
    wide = b"a: {" + b"b" * 500_000 + b": {" + b"c: 1, " * 50_000 + b"}}"
    start = time.monotonic()
    for text in (bomb, deep, dots, wide, b"a: 1\n" * 300_000, b"x" * (2 << 20)):
        with pytest.raises(MetadataError):
            metadata(text)

    assert time.monotonic() - start < 20


def test_the_schema_knows_exactly_the_keys_that_the_check_knows():
    schema = json.loads(files("igrun.metadata").joinpath(check.SCHEMA).read_bytes())["$defs"]

    def keys(name: str) -> set[str]:
        return set(schema[name]["properties"])

    assert keys("document") == set(check.TOP.keys)
    assert keys("param") == set(check.PARAM.keys)
    assert keys("custom") == set(check.CUSTOM.keys)
    assert keys("source") == {"annotations", "tags", "fields"}
    programs = check.TOP.keys["programs"]
    assert isinstance(programs, check.Each) and isinstance(programs.shape, check.Keys)
    assert keys("program") == set(programs.shape.keys)
    assert set(schema["document"]["properties"]["operator"]["properties"]) == {"process", "cgroup", "ebpf"}


def test_the_schema_is_valid_itself():
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(json.loads(files("igrun.metadata").joinpath(check.SCHEMA).read_bytes()))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=200) | st.text(alphabet="ab:.-{}[]&*!|>'\"#,?% \n\t<\\0", max_size=80).map(str.encode))
def test_no_input_raises_anything_but_a_metadata_error(text):
    for strict in (True, False):
        try:
            found = metadata(text, strict=strict)
        except MetadataError as error:
            assert "\n" not in str(error)
        else:
            found.describe("a", in_struct("b"))
            with contextlib.suppress(MetadataError):
                found.customized({})


WORDS = """
name datasources open fields annotations tags params ebpf custom patch values programs operator process columns.width
a.b key datasources.open.fields paramDefaults template
"""
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab{}.", max_size=4),
    lambda inner: (
        st.dictionaries(
            st.sampled_from(WORDS.split()),
            inner,
            max_size=4,
        )
        | st.lists(inner, max_size=2)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["datasources", "params", "programs", "operator", "name", "x"]), TREES))
def test_no_shape_of_the_document_breaks_a_question(tree):
    text = json.dumps(tree).encode()
    found = metadata(text)

    found.describe("open", in_struct("a.b"))
    found.source(DataSource("open", Kind.EVENTS))
    found.program_options("open")
    assert isinstance(found.config("operator.process.interval"), str)
    assert all(isinstance(param.key, str) for param in found.custom_params + found.wasm_params)
    assert all(isinstance(entry.name, str) for entry in found.ebpf_params.values())
    with contextlib.suppress(MetadataError, ParamError):
        found.customized({"open": "x"})
    with contextlib.suppress(MetadataError):
        metadata(text, strict=True)


@given(st.dictionaries(st.sampled_from(["a", "B", "a.b", "A.B.c", "x"]), st.integers() | st.just({"y.Z": 1})))
def test_folding_a_folded_tree_changes_nothing(tree):
    assert folded(folded(tree)) == folded(tree)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("0x1F", 31),
        ("0o17", 15),
        ("-3", -3),
        ("+4", 4),
        ("1_000", 1000),
        ("1.5", 1.5),
        ("1.", 1.0),
        (".5", 0.5),
        ("1e3", 1000.0),
        ("1.2.3", "1.2.3"),
        ("09", "09"),
        ("-", "-"),
        ("12:30", "12:30"),
    ],
)
def test_plain_scalars_are_read_as_go_reads_them(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_merge_keys_and_anchors_work():
    text = b"a: &base {x: 1, y: 2}\nb: {<<: *base, y: 3}\nc: *base"

    assert load(text, strict=True)["b"] == {"x": 1, "y": 3}
    assert load(text, strict=True)["c"] == {"x": 1, "y": 2}


# ---------------------------------------------------------------------------------------------- params


def test_a_param_of_the_object_gets_what_the_file_says():
    found = metadata().ebpf_param("targ_failed", Param("targ_failed", BOOL, "true", group="operator.oci.ebpf"))

    assert (found.key, found.default, found.description, found.alias) == ("failed", "false", "Only failed", "x")
    assert found.full_name == "operator.oci.ebpf.failed"


def test_an_empty_default_keeps_the_one_of_the_object():
    assert metadata().ebpf_param("targ_empty", Param("targ_empty", UINT16, "5")).default == "5"
    assert metadata().ebpf_param("other", Param("other", UINT16, "5")).key == "other"


def test_new_params_go_before_the_legacy_ones():
    found = metadata(b"ebpfParams: {a: {key: old}, b: {key: old}}\nparams: {ebpf: {a: {key: new}}}")

    assert {name: entry.key for name, entry in found.ebpf_params.items()} == {"a": "new", "b": "old"}


def test_a_guests_param_has_the_type_of_its_hint():
    text = b"""
params: {wasm: {n: {key: count, typeHint: uint16, defaultValue: 3, possibleValues: [3, 4], isMandatory: true}}}
"""
    (found,) = metadata(text).wasm_params

    assert (found.key, found.type, found.default, found.choices, found.mandatory) == (
        "count",
        UINT16,
        "3",
        ("3", "4"),
        True,
    )
    assert found.full_name == "operator.oci.wasm.count"


def test_defaults_of_other_params_are_there_by_full_name_and_by_key():
    assert metadata().param_defaults == {
        "operator.oci.ebpf.map-fetch-interval": "0",
        "operator.sort.sort": "-count",
    }
    assert metadata().default_values == {"Map-Fetch-Interval": "0", "sort": "-count"}


@pytest.mark.parametrize(
    ("full", "key"),
    [
        ("operator.oci.ebpf.a.b", "a.b"),
        ("operator.filter.filter.open", "filter.open"),
        ("operator.LocalManager.host", "host"),
        ("operator.oci.pull", "pull"),
        ("custom.x", "x"),
        ("runtime.y", "y"),
        ("x", "x"),
    ],
)
def test_a_key_is_what_follows_the_group(full, key):
    assert key_of(full) == key


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (BOOL, "true", True),
        (BOOL, "False", False),
        (INT8, "-128", -128),
        (UINT16, "65535", 65535),
        (FLOAT64, "1e-3", 0.001),
        (DURATION, "1h2m3.5s", 3_723_500_000_000),
        (DURATION, "-1.5ms", -1_500_000),
        (DURATION, "0", 0),
        (DURATION, "1us1µs", 2000),
        (IP, "10.0.0.1", b"\n\0\0\x01"),
        (IP, "::1", bytes(15) + b"\x01"),
        (LIST, "", ()),
        (LIST, r"a,b\,c,,d\e", ("a", "b,c", "", r"d\e")),
        (BYTES, "é", b"\xc3\xa9"),
        (TEXT, " x ", " x "),
    ],
)
def test_texts_become_values(kind, text, value):
    assert Param("p", kind).parse(text) == value


@pytest.mark.parametrize(
    ("kind", "text", "problem"),
    [
        (BOOL, "1", "expected 'true' or 'false', got: \"1\""),
        (INT8, "x", "expected numeric value: "),
        (INT8, "1_0", "expected numeric value: "),
        (INT8, "", "expected numeric value: "),
        (INT8, "128", "number out of range: "),
        (UINT16, "-1", "expected numeric value: "),
        (UINT16, "9" * 5000, "number out of range: "),
        (FLOAT64, "x", "expected numeric value: "),
        (IP, "1.2.3", '"1.2.3" is not a valid IP address'),
        (IP, "1.2.3.4\0", "is not a valid IP address"),
        (DURATION, "5", 'time: invalid duration "5"'),
        (DURATION, "1h x", "time: invalid duration"),
        (DURATION, "9999999999h", "time: invalid duration"),
    ],
)
def test_a_wrong_text_is_an_error_that_says_why(kind, text, problem):
    with pytest.raises(ParamError) as caught:
        Param("p", kind).parse(text)

    assert str(caught.value).startswith(f'invalid value "{text[:20]}')
    assert 'as "p": ' in str(caught.value)
    assert problem in str(caught.value)


def test_a_value_that_is_no_choice_is_an_error_with_the_choices():
    with pytest.raises(ParamError, match='invalid value "c" as "p": valid values are: a, b'):
        Param("p", TEXT, choices=("a", "b")).parse("c")


@given(st.lists(st.text(alphabet="ab,é ", min_size=1), min_size=1))
def test_escaped_commas_survive_a_list(parts):
    assert split_commas(",".join(part.replace(",", r"\,") for part in parts)) == parts


def test_a_value_may_be_read_from_a_file(tmp_path):
    (tmp_path / "v").write_bytes(b"a\xffb")

    assert from_file(f"@{tmp_path}/v", "filter") == "a\udcffb"
    assert from_file("plain", "filter") == "plain"
    with pytest.raises(ParamError, match=r'invalid value "@/no/file" as "filter": /no/file: No such file or directory'):
        from_file("@/no/file", "filter")


# ---------------------------------------------------------------------------------------------- custom, annotate

TOP = b"""
operator: {process: {interval: 1s, count: 5}}
params:
  custom:
    interval:
      description: How often
      defaultValue: 3s
      alias: i
      patch:
        operator.process.interval: >-
          {{call .getParamValue "custom.interval"}}
    mode:
      defaultValue: short
      patch: {datasources: {p: {annotations: {mode: other}}}}
      values:
        Short: {patch: {datasources: {p: {annotations: {mode: "was {{ call .getConfig `operator.process.count` }}"}}}}}
        long: {}
    nothing: {description: without patches}
"""


def test_custom_params_are_flags_with_their_values_as_choices():
    interval, mode = metadata(TOP).custom_params

    assert (interval.full_name, interval.default, interval.alias, interval.choices) == (
        "custom.interval",
        "3s",
        "i",
        (),
    )
    assert (mode.key, mode.choices) == ("mode", ("short", "long"))


def test_a_custom_param_patches_the_document_with_its_default():
    found = metadata(TOP).customized({})

    assert found.config("operator.process.interval") == "3s"
    assert found.config("operator.process.count") == "5"
    assert found.source(DataSource("p", Kind.TABLE)).annotations == {"mode": "was 5"}


def test_a_custom_param_patches_the_document_with_its_value():
    found = metadata(TOP).customized({"interval": "7s", "mode": "long"})

    assert found.config("operator.process.interval") == "7s"
    assert found.source(DataSource("p", Kind.TABLE)).annotations == {"mode": "other"}


def test_a_value_that_the_custom_param_does_not_have_is_an_error():
    with pytest.raises(ParamError, match="valid values are: short, long"):
        metadata(TOP).customized({"mode": "x"})


def test_a_patch_cannot_change_custom_params():
    text = b"""
params:
  custom: {a: {defaultValue: x, patch: {params: {custom: {a: {description: evil}}}, params.custom.b: {patch: {}}}}}
"""
    found = metadata(text).customized({})

    assert [param.description for param in found.custom_params] == [""]


def test_a_template_that_is_not_understood_is_an_error():
    text = b"params: {custom: {a: {patch: {name: '{{if x}}y{{end}}'}}}}"

    with pytest.raises(MetadataError, match=r"params.custom.a.patch: unknown template"):
        metadata(text).customized({"a": "1"})


def test_a_value_cannot_smuggle_a_template_in():
    text = b"params: {custom: {a: {patch: {name: '{{call .getParamValue \"custom.a\"}}'}}}}"

    assert metadata(text).customized({"a": "{{evil}}"}).config("name") == "{{evil}}"


def test_annotate_adds_to_sources_and_fields():
    found = metadata().customized(
        {"annotate": r"open:cli.x=a=b:c\,d,open.proc.comm:columns.width=5,open.new:template=pid"}
    )

    assert found.source(DataSource("open", Kind.EVENTS)).annotations["cli.x"] == "a=b:c,d"
    assert found.describe("open", in_struct("proc.comm")).annotations["columns.width"] == "5"
    assert found.describe("open", in_struct("proc.pid")).annotations["description"] == "who"
    assert found.describe("open", in_struct("new")).annotations["columns.minwidth"] == "7"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("open", "must be in subject:assignment format"),
        (":a=b", "has empty subject or assignment"),
        ("open:", "has empty subject or assignment"),
        ("open:a", "must contain a key=value pair"),
        ("open:=b", "has empty key"),
        ("open.:a=b", "has empty field or subfield name"),
        ("open.a..b:a=b", "has empty field or subfield name"),
    ],
)
def test_an_annotation_of_another_form_is_an_error(text, problem):
    with pytest.raises(ParamError) as caught:
        metadata().customized({"annotate": text})

    assert str(caught.value) == f'annotation "{text}" {problem}'


def test_an_annotation_for_what_is_not_there_is_an_error_with_the_nearest_name():
    sources = {"open": DataSource("open", Kind.EVENTS, (in_struct("fname"), in_struct("proc.comm")))}

    def check_of(text: str) -> None:
        metadata().customized({"annotate": text}).check_annotated(sources)

    check_of("OPEN:a=b,open.Proc.comm:a=b")
    for text, hint in (("opne:a=b", "did you mean open?"), ("open.fnam:a=b", "did you mean fname?")):
        with pytest.raises(ParamError, match="not found") as caught:
            check_of(text)
        assert caught.value.hint == hint


def test_the_ecosystems_typos_are_warned_of_at_run_time():
    text = b"datasources: {p: {fields: {comm: {annotations: {columns.with: 9, columns.maxWidth: 12}}}}}"

    (warning,) = metadata(text).warnings
    where = "gadget.yaml: datasources.p.fields.comm.annotations"
    assert warning == f"{where}: unknown key 'columns.with' (did you mean columns.width?)"


def test_floats_are_written_without_an_exponent():
    assert [as_text(value) for value in (1e21, 1e-7, 2.0, 0.1, float("inf"))] == [
        "1" + "0" * 21,
        "0.0000001",
        "2",
        "0.1",
        "+Inf",
    ]
