"""Where the hierarchy of cgroups is."""

from pathlib import Path

import pytest

from igrun.attach import cgroup as family
from igrun.attach.cgroup import CGROUP2
from igrun.errors import UnsupportedError
from igrun.host import Target
from igrun.objects import Hook


def test_a_hierarchy_is_found_wherever_it_is_mounted_the_whole_before_a_part(monkeypatch, tmp_path):
    table = tmp_path / "mountinfo"
    table.write_text(
        "30 1 0:26 /web /run/part rw - cgroup2 none rw\n"
        "31 1 0:27 / /sys/fs/cgroup ro shared:9 - tmpfs tmpfs ro\n"
        "32 1 0:26 / /mnt/two\\040wörds rw,nosuid shared:10 master:2 - cgroup2 cgroup2 rw\n"
    )
    monkeypatch.setattr(family, "MOUNTS", table)
    assert family.mounted() == [Path("/mnt/two wörds"), Path("/run/part")]

    monkeypatch.setattr(family, "magic", lambda path: CGROUP2 if path == Path("/run/part") else 0)
    assert family.root(Path("/"), Hook("count", "sockops", "")) == Path("/run/part")


def test_without_a_mounted_hierarchy_the_user_is_told_how_to_mount_one(monkeypatch, tmp_path):
    monkeypatch.setattr(family, "magic", lambda path: 0)
    with pytest.raises(UnsupportedError, match="no cgroup file system of version 2 is mounted") as caught:
        family.places(Hook("count", "cgroup/connect4", ""), Target("web", root=tmp_path))

    assert "mount -t cgroup2" in caught.value.hint
