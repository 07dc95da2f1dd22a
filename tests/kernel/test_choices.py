"""Programs that a run can do without: optional ones, and alternatives."""

import logging
from errno import EINVAL
from pathlib import Path

import pytest

from igrun import bpfcall
from igrun.errors import AttachError, KernelError, UnsupportedError, VerifierError
from tests.counting import close_and_check, counting, hits, mine, within

pytestmark = pytest.mark.kernel

UNLOADABLE = """
SEC("tracepoint/syscalls/sys_enter_openat")
int bad(void *ctx)
{
	return *(int *)0;
}
"""


def other(section: str, name: str = "bad") -> str:
    return f'\nSEC("{section}")\nint {name}(void *ctx)\n{{\n\treturn 0;\n}}\n'


def programs_yaml(**options: str) -> str:
    lines = [f"  {name}: {{{text}}}" for name, text in options.items()]
    return "\n".join(["name: test", "programs:", *lines, ""])


def open_something() -> None:
    Path("/dev/null").open("rb").close()


@pytest.mark.parametrize(
    "source",
    [
        UNLOADABLE,
        other("tp_btf/nothing_of_this_name"),
        other("iter/nothing_of_this_name"),
        other("tracepoint/syscalls/sys_enter_nothing"),
        other("raw_tp/nothing_of_this_name"),
        other("kprobe/nothing_of_this_name"),
    ],
)
def test_an_optional_program_that_does_not_work_is_left_out(start, caplog, source):
    caplog.set_level(logging.INFO)

    started = start(counting("raw_tp/sys_enter") + source, constants=mine(), yaml=programs_yaml(bad="optional: true"))
    open_something()

    assert hits(started) > 0
    assert [hook.program for hook in started.loaded.hooks] == ["count"]
    assert list(started.loaded.choices.left_out) == ["bad"]
    assert "left out: " in caplog.text and "bad" in caplog.text
    close_and_check(started)


def test_what_is_not_optional_is_still_needed(start):
    with pytest.raises(AttachError, match="nothing_of_this_name"):
        start(counting("raw_tp/sys_enter") + other("tp_btf/nothing_of_this_name"))
    with pytest.raises(VerifierError, match="bad"):
        start(counting("raw_tp/sys_enter") + UNLOADABLE, yaml=programs_yaml(count="optional: true"))


def test_several_optional_programs_can_be_refused(start):
    source = counting("raw_tp/sys_enter") + "".join(UNLOADABLE.replace("bad", f"bad{one}") for one in range(4))
    options = {f"bad{one}": "optional: true" for one in range(4)}

    started = start(source, constants=mine(), yaml=programs_yaml(**options))
    open_something()

    assert hits(started) > 0
    assert len(started.loaded.choices.left_out) == 4


@pytest.mark.parametrize(
    "first", ["tp_btf/nothing_of_this_name", "raw_tp/nothing_of_this_name", "tracepoint/syscalls/sys_enter_nothing"]
)
def test_the_first_alternative_that_works_is_used(start, first):
    source = other(first) + counting("raw_tp/sys_enter") + other("raw_tp/sys_exit", "spare")
    group = "any_of: enter"

    started = start(source, constants=mine(), yaml=programs_yaml(bad=group, count=group, spare=group))
    open_something()

    assert hits(started) > 0
    assert [hook.program for hook in started.loaded.hooks] == ["count"]
    assert len(started.loaded.links) == 1
    close_and_check(started)


def test_an_alternative_that_is_not_needed_is_unloaded(start):
    source = counting("raw_tp/sys_enter") + other("raw_tp/sys_exit", "spare")

    started = start(source, yaml=programs_yaml(count="any_of: enter", spare="any_of: enter"))
    ours = started.loaded.program("count")

    assert not started.loaded.program("spare").loaded
    assert within(5, lambda: bpfcall.id_of(ours.fd) + 1 not in bpfcall.program_ids())


def test_of_programs_the_kernel_refuses_for_its_own_reasons_the_next_is_used(start):
    source = other("fentry/do_sys_openat2") + counting("raw_tp/sys_enter")

    started = start(source, constants=mine(), yaml=programs_yaml(bad="any_of: open", count="any_of: open"))

    used = [hook.program for hook in started.loaded.hooks]
    assert len(used) == 1
    if used == ["count"]:
        open_something()
        assert hits(started) > 0


def test_where_no_alternative_works_each_says_why(start):
    source = other("tp_btf/sys_entr") + other("raw_tp/sys_exitt", "worse") + counting("raw_tp/sys_enter")

    with pytest.raises(UnsupportedError, match="none of the alternatives 'enter' works") as error:
        start(source, yaml=programs_yaml(bad="any_of: enter", worse="any_of: enter"))

    assert "sys_entr" in str(error.value) and "sys_exitt" in str(error.value)
    assert "did you mean sys_enter" in error.value.hint


def test_a_group_of_optional_programs_may_be_missing(start):
    source = other("tp_btf/sys_entr") + other("raw_tp/sys_exitt", "worse") + counting("raw_tp/sys_enter")
    options = {"bad": "any_of: enter, optional: true", "worse": "any_of: enter, optional: true"}

    started = start(source, yaml=programs_yaml(**options))

    assert [hook.program for hook in started.loaded.hooks] == ["count"]


def test_of_iterators_the_first_that_loads_is_used(start):
    source = (
        counting("raw_tp/sys_enter")
        + other("iter/nothing_of_this_name")
        + other("iter/task", "tasks")
        + other("iter/task_file", "files")
    )
    group = "any_of: walk"

    started = start(source, yaml=programs_yaml(bad=group, tasks=group, files=group))

    assert [hook.program for hook in started.loaded.hooks] == ["count", "tasks"]


def test_an_iterator_that_was_chosen_as_it_loads_and_cannot_be_opened_is_told(start):
    source = counting("raw_tp/sys_enter") + other("iter/task", "tasks") + other("iter/task_file", "files")
    started = start(source, yaml=programs_yaml(tasks="any_of: walk", files="any_of: walk"))

    with pytest.raises(UnsupportedError, match="alternatives 'walk': program 'tasks', which was chosen, does not work"):
        started.loaded.choices.leave_out("tasks", KernelError(EINVAL, "open the iterator"))


@pytest.mark.parametrize(("attach_to", "programs"), [("", ["count"]), ("attach_to: sys_exit", ["count", "extra"])])
def test_a_program_whose_section_begins_with_a_question_mark_waits_to_be_asked_for(start, attach_to, programs):
    source = counting("raw_tp/sys_enter") + other("?raw_tp/sys_enter", "extra")

    started = start(source, yaml=programs_yaml(extra=attach_to))

    assert [hook.program for hook in started.loaded.hooks] == programs
