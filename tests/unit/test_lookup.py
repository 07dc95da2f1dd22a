"""Short names are found in the store first, then among the gadgets that come with igrun."""

import os
import pwd

import pytest

from igrun import data, lookup
from igrun.errors import InvalidReferenceError, NotFoundError
from igrun.image import Objects, pack
from igrun.oci import store as stores
from igrun.oci.store import Store

DEFAULT = "ghcr.io/inspektor-gadget/gadget/"


def put(root, name: str, description: str) -> None:
    objects = {architecture: Objects(ebpf=b"elf") for architecture in ("amd64", "arm64")}
    text = f"name: g\ndescription: {description}\n".encode()
    with Store.open(root) as store:
        store.tag(pack(store, text, objects, created="2026-01-01T00:00:00Z", builder_version="1"), name)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """This user's store, and the bundle beside it, both empty."""
    monkeypatch.setattr(stores, "default_root", lambda: tmp_path / "local")
    monkeypatch.setattr(data, "gadgets", lambda: tmp_path / "bundle")
    put(tmp_path / "bundle", "other:latest", "of the bundle")
    return tmp_path / "local"


def found(name: str, **how) -> str:
    return lookup.find(name, "amd64", env={}, **how).metadata.description


def test_the_store_goes_before_the_bundle(local, tmp_path):
    put(tmp_path / "bundle", "g:latest", "of the bundle")

    before = found("g")
    put(local, f"{DEFAULT}g:latest", "of the store")

    assert (before, found("g")) == ("of the bundle", "of the store")


def test_the_search_list_says_where_to_look_and_in_which_order(local, tmp_path):
    put(tmp_path / "bundle", "g:latest", "of the bundle")
    put(local, f"{DEFAULT}g:latest", "of the store")
    put(local, "example.org/mine/g:latest", "mine")

    assert found("g", search=("bundled", "local")) == "of the bundle"
    assert found("g", search=("local", "example.org/mine/", DEFAULT)) == "mine"
    with pytest.raises(NotFoundError):
        found("g", search=())


def test_a_full_name_is_never_one_of_the_bundle(local):
    with pytest.raises(NotFoundError):
        found(f"{DEFAULT}other")


def test_a_tag_is_part_of_the_name(local):
    with pytest.raises(NotFoundError):
        found("other:v1")

    assert found("other:latest") == found("other")


def test_a_name_that_is_nowhere_is_told_with_its_neighbour(local):
    with pytest.raises(NotFoundError, match="'othr'") as error:
        found("othr")

    assert error.value.hint == "did you mean other?"


def test_what_is_no_name_is_refused(local):
    with pytest.raises(InvalidReferenceError):
        found("../../etc/passwd")


def test_root_is_told_of_an_image_that_the_user_who_called_sudo_has(local, tmp_path, monkeypatch):
    user = pwd.struct_passwd(("ann", "x", 1000, 1000, "", str(tmp_path / "home"), "/bin/sh"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(pwd, "getpwnam", lambda name: user)
    put(tmp_path / "home/.ig/oci-store", f"{DEFAULT}mine:latest", "of ann")

    with pytest.raises(NotFoundError) as error:
        lookup.find("mine", "amd64", env={"SUDO_USER": "ann"})

    assert "--oci-store-user" in error.value.hint
    assert lookup.find("mine", "amd64", of_user=True, env={"SUDO_USER": "ann"}).metadata.description == "of ann"
