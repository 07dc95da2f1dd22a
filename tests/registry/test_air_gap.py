"""A cached image runs without a network and makes no call to one."""

import re

import pytest

from igrun import data
from igrun.oci.copy import copy
from igrun.oci.private import generate
from igrun.oci.sign import sign
from igrun.oci.store import Store
from tests.registry.machine import Ig

pytestmark = pytest.mark.kernel
NAME = "registry.example/g/snapshot_process:v1"


@pytest.fixture
def cached(ig: Ig) -> Ig:
    """A machine that has a gadget in its store, which is not one of the bundle for it."""
    root = data.gadgets()
    if root is None:
        pytest.skip("no bundled gadgets: they are in the wheel, or made by hatch_build.py")
    with Store.open(root, writable=False) as bundle, ig.store() as store:
        copy(bundle, store, "snapshot_process:latest", NAME)
    return ig


def run(ig: Ig, *more: str, **how) -> str:
    verifying = () if "--public-keys" in more else ("--verify-image=false",)
    return ig("run", NAME, "--host", *verifying, "--timeout", "1", "-o", "json", *more, **how).out


def test_without_a_network_a_cached_gadget_runs(cached, exchanged):
    exchanged("(no network)", "igrun", "run --pull never under unshare --net")

    assert '"comm"' in run(cached, "--pull", "never", network=False)


@pytest.mark.parametrize("policy", ["never", "missing"])
def test_a_run_of_a_cached_gadget_opens_no_socket_to_a_network(cached, policy, tool, exchanged, tmp_path):
    exchanged("(no network)", "igrun", f"run --pull {policy} makes no network call (strace)")

    assert '"comm"' in run(cached, "--pull", policy, within=watched(tool, tmp_path))

    assert calls(tmp_path) == []


def test_a_signature_is_verified_without_a_network(cached, tool, exchanged, tmp_path):
    exchanged("(no network)", "igrun", "run of a signed image, verified, makes no network call (strace)")
    _, public = generate(tmp_path / "key")
    with cached.store() as store:
        sign(store, store.resolve(NAME), (tmp_path / "key.key").read_text())

    signed = ("--public-keys", f"@{public}")
    assert '"comm"' in run(cached, *signed, network=False, within=watched(tool, tmp_path))

    assert calls(tmp_path) == []


@pytest.mark.parametrize("arguments", [("--pull", "never"), ("--disallow-pulling",)])
def test_what_is_not_cached_is_refused_without_a_call(ig, arguments, tool, exchanged, tmp_path):
    exchanged("(no network)", "igrun", f"run {' '.join(arguments)} of what is not there makes no network call (strace)")

    said = ig.run("run", "registry.example/g/none:v1", *arguments, within=watched(tool, tmp_path))

    assert said.code == 1
    assert "registry.example/g/none:v1" in said.err
    assert calls(tmp_path) == []


def test_the_trace_would_show_a_call(ig, tool, tmp_path):
    ig.run(
        "image", "pull", "127.0.0.1:9/g/none:v1", "--insecure-registries", "127.0.0.1:9", within=watched(tool, tmp_path)
    )

    assert any("htons(9)" in call for call in calls(tmp_path))


def watched(tool, folder) -> tuple[str, ...]:
    return (str(tool("strace").path), "-f", "-qq", "-e", "trace=%network", "-o", str(folder / "calls"))


def calls(folder) -> list[str]:
    """The calls that have to do with a network: sockets of IP, and whatever has an IP address."""
    return [line for line in (folder / "calls").read_text().splitlines() if re.search(r"\bAF_INET6?\b", line)]
