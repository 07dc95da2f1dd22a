"""Settings: config file, environment, defaults."""

from pathlib import Path

import pytest

from igrun.config import BUNDLED, LOCAL, PLUGINS, VERBOSE, Settings, parse, tree
from igrun.errors import GadgetError, ParamError
from igrun.metadata import BOOL, LIST, TEXT, Param

PULL = Param("pull", TEXT, "missing", group="operator.oci")
VERIFY = Param("verify-image", BOOL, "true", group="operator.oci")
HOST = Param("host", BOOL, "false", group="operator.LocalManager")
KEYS = Param("public-keys", LIST, "", group="operator.oci")


def written(folder: Path, text: str) -> str:
    path = folder / "config.yaml"
    path.write_text(text)
    return str(path)


def test_without_a_file_everything_has_its_default(tmp_path):
    settings = Settings.read(home=tmp_path)

    assert settings.source is None
    assert settings.get("operator.oci.pull") is None
    assert settings.value(VERIFY) is True
    assert settings.search == (LOCAL, BUNDLED, "ghcr.io/inspektor-gadget/gadget/")
    assert settings.plugins == ()


def test_the_default_file_stands_in_the_home_directory(tmp_path):
    (tmp_path / ".ig").mkdir()
    (tmp_path / ".ig/config.yaml").write_text("operator: {oci: {pull: never}}")

    settings = Settings.read(env={"HOME": str(tmp_path)})

    assert settings.value(PULL) == "never"
    assert settings.source == tmp_path / ".ig/config.yaml"


def test_the_environment_wins_over_the_file(tmp_path):
    path = written(tmp_path, "operator:\n  oci:\n    verify-image: true\n    pull: never\n")
    settings = Settings.read(path, {"INSPEKTOR_GADGET_OPERATOR_OCI_VERIFY_IMAGE": "false"})

    assert settings.value(VERIFY) is False
    assert settings.value(PULL) == "never"


def test_the_long_prefix_wins_over_the_short_one():
    both = Settings(env={"IG_OPERATOR_OCI_PULL": "never", "INSPEKTOR_GADGET_OPERATOR_OCI_PULL": "always"})
    short = Settings(env={"IG_OPERATOR_OCI_PULL": "never"})

    assert both.value(PULL) == "always"
    assert short.value(PULL) == "never"


def test_an_empty_variable_is_not_set():
    assert Settings({"operator.oci.pull": "never"}, {"INSPEKTOR_GADGET_OPERATOR_OCI_PULL": ""}).value(PULL) == "never"


def test_keys_do_not_depend_on_case(tmp_path):
    path = written(tmp_path, "Operator:\n  LocalManager:\n    Host: true\n")

    assert Settings.read(path).value(HOST) is True


def test_only_what_is_set_becomes_a_value():
    settings = Settings({"operator.oci.pull": "never"})

    assert settings.values([PULL, VERIFY]) == {"pull": "never"}


def test_a_variable_names_the_file(tmp_path):
    path = written(tmp_path, "verbose: true\n")

    assert Settings.read(env={"INSPEKTOR_GADGET_CONFIG": path}).value(VERBOSE) is True


def test_lists_are_yaml_lists_in_the_file_and_joined_by_commas_in_the_environment(tmp_path):
    path = written(tmp_path, "search: [local, example.org/g/]\noperator:\n  oci:\n    public-keys: ['a,b', c]\n")

    settings = Settings.read(path)
    assert settings.search == ("local", "example.org/g/")
    assert settings.value(KEYS) == ("a,b", "c")
    assert Settings.read(path, {"IG_SEARCH": "bundled,x/"}).search == ("bundled", "x/")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- 1\n", "not a mapping"),
        ("a: [1\n", "line 2"),
        ("a: 1\na: 2\n", "a: a second time"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: {d: *c}\n", "alias 'c' stands for nothing"),
        ("\x00", "control characters"),
    ],
)
def test_a_wrong_file_is_an_error_of_one_line(tmp_path, text, problem):
    with pytest.raises(GadgetError) as error:
        Settings.read(written(tmp_path, text))

    assert str(error.value).startswith(f"reading config: {tmp_path}/config.yaml: ")
    assert "\n" not in str(error.value)
    assert problem.split(":")[0] in str(error.value)


def test_a_file_that_is_named_must_exist(tmp_path):
    with pytest.raises(GadgetError, match=r"reading config: .*/nowhere.yaml: No such file or directory"):
        Settings.read(str(tmp_path / "nowhere.yaml"))


def test_a_wrong_value_names_the_whole_key():
    with pytest.raises(ParamError, match=r"operator\.oci\.verify-image"):
        Settings({"operator.oci.verify-image": "perhaps"}).value(VERIFY)


def test_the_tree_is_structured_as_a_config_file_and_reads_back():
    import yaml

    settings = Settings({"operator.oci.pull": "never", "plugins": "a.b"})
    whole = tree(settings, [PULL, VERIFY, HOST])

    assert whole["operator"] == {"localmanager": {"host": False}, "oci": {"pull": "never", "verify-image": True}}
    assert whole["plugins"] == ["a.b"]
    again = Settings(parse(yaml.safe_dump(whole).encode()))
    assert again.value(PULL) == "never"
    assert again.value(PLUGINS) == ("a.b",)
    assert again.search == settings.search


def test_the_table_of_registries_is_read_as_it_stands(tmp_path):
    text = "Registries:\n  ghcr.io: {Mirrors: [a.example.org, b.example.org:5000/x], insecure: true}\nverbose: true\n"
    settings = Settings.read(written(tmp_path, text))

    assert settings.registries == {"ghcr.io": {"mirrors": ["a.example.org", "b.example.org:5000/x"], "insecure": True}}
    assert settings.value(VERBOSE) is True
    assert tree(settings, ())["registries"] == settings.registries


@pytest.mark.parametrize("text", ["registries: [a]", "registries: {ghcr.io: mirror.example.org}"])
def test_a_table_of_registries_that_is_none_is_an_error(tmp_path, text):
    with pytest.raises(GadgetError, match=r"registries.*: not a mapping"):
        Settings.read(written(tmp_path, text))
