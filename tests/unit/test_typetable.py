"""docs/program-types.md is what the tests saw, of every type there is."""

from tests.typetable import COUNTERS, DOCUMENT, FIRES, ORDER, document, lines_of_table, names, read, why


def test_the_document_is_made_from_what_the_tests_saw():
    assert DOCUMENT.read_text() == document(read())


def test_every_type_was_tried_on_every_kernel():
    for kernel, seen in read().items():
        if kernel not in ORDER:
            continue
        missing = lines_of_table().keys() - seen["types"].keys()
        assert not missing, f"{kernel}: run `make test-matrix`"


def test_every_type_fires_somewhere_or_comes_as_far_as_the_kernels_refusal():
    never = {
        name: {seen["types"].get(name, "") for seen in read().values()}
        for name in lines_of_table()
        if not any(seen["types"].get(name) == FIRES for seen in read().values())
    }

    # Guests have none; there the kernel is asked, and says so.
    assert all("this machine has no counter" in what for what in never.pop(COUNTERS, ()))
    assert never == {}


def test_a_section_is_in_the_lines_of_its_type():
    assert names("kprobe/vfs_read") == ("kprobe/",)
    assert names("fentry.s/vfs_read") == ("fentry.s/",)
    assert names("iter.s/task") == ("iter.s/", "iter/task")
    assert names("socket1") == ("socket",)
    assert names("unheard/of") == ()


def test_reasons_are_those_of_the_kernel_alone():
    assert why("program 'count' (cgroup/x): this kernel has none\nmore") == "this kernel has none"
