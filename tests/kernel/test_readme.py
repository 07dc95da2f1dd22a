"""The README's gadget builds, runs and sees what the README says."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from igrun.build import build
from igrun.host import GOARCH
from igrun.image import unpack
from igrun.oci.store import Store
from igrun.runtime import Gadget

pytestmark = pytest.mark.kernel

README = (Path(__file__).parent.parent.parent / "README.md").read_text()


def block(file: str, language: str) -> str:
    """The code block of that language that follows the name of a file."""
    found = re.search(rf"`{re.escape(file)}`:\n\n```{language}\n(.*?)```", README, re.DOTALL)
    assert found, file
    return found[1]


@pytest.fixture(scope="module")
def gadget(tmp_path_factory: pytest.TempPathFactory) -> Gadget:
    folder = tmp_path_factory.mktemp("trace_unlink")
    (folder / "program.bpf.c").write_text(block("trace_unlink/program.bpf.c", "c"))
    (folder / "gadget.yaml").write_text(block("trace_unlink/gadget.yaml", "yaml"))
    with Store.open(tmp_path_factory.mktemp("store")) as store:
        built = build(folder, store=store)
        assert not built.output
        return Gadget.of(unpack(store, built.descriptor, GOARCH[os.uname().machine]))


@pytest.mark.parametrize(("folders", "seen"), [(False, ["old-notes.txt"]), (True, ["old-notes.txt", "old"])])
def test_the_gadget_of_the_readme_sees_what_is_removed(gadget: Gadget, tmp_path: Path, folders: bool, seen: list[str]):
    (tmp_path / "old").mkdir()
    (tmp_path / "old/old-notes.txt").touch()
    with gadget.run(timeout_s=1, comm="rm", folders=folders, filter="fname~^old") as run:
        subprocess.run(["rm", "-r", "old"], cwd=tmp_path, check=True)
        names = [row["fname"] for batch in run for row in batch.rows()]

    assert names == seen
