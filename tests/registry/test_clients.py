"""Other people's clients: what igrun writes they read, and what they write igrun reads, with equal digests."""

import json
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from igrun.oci.model import EMPTY, INDEX, MANIFEST, Descriptor, Index, Manifest, Platform
from igrun.oci.store import Store
from tests.registry.machine import Ig, attach, put
from tests.registry.servers import Registry

pytestmark = pytest.mark.root
NAME = "example.org/g/one:v1"


def bare(store: Store, name: str) -> Descriptor:
    """An image whose index says nothing of artifact types."""
    manifests = []
    for architecture in ("amd64", "arm64"):
        config = store.write(
            "application/vnd.oci.image.config.v1+json",
            b'{"architecture":"%s","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}' % architecture.encode(),
        )
        layer = store.write("application/vnd.gadget.ebpf.program.v1+binary", f"for {architecture}".encode())
        one = store.write(MANIFEST, Manifest(config, (layer,)).to_bytes())
        manifests.append(Descriptor(MANIFEST, one.digest, one.size, {}, Platform(architecture)))
    root = store.write(INDEX, Index(tuple(manifests)).to_bytes())
    store.tag(root, name)
    return root


def below(store: Store, name: str) -> list[str]:
    """The digests of an image's manifests."""
    return [one.digest for one in Index.parse(store.read(store.resolve(name))).manifests]


def layout(folder: Path) -> tuple[str, list[str]]:
    """The digests of the one image of an OCI layout, and of its manifests."""
    entries = json.loads((folder / "index.json").read_bytes())["manifests"]
    (root,) = [one for one in entries if one["mediaType"] == INDEX]  # oras lists what is below too
    index = json.loads((folder / "blobs/sha256" / root["digest"][7:]).read_bytes())
    return root["digest"], [one["digest"] for one in index["manifests"]]


def ways(registry: Registry) -> list[str]:
    """The flags with which ig reaches a registry."""
    if not registry.certificates:
        return ["--insecure-registries", registry.address]
    return ["--ca-file", str(registry.certificates.ca)]


def enter(ig: Ig, registry: Registry) -> None:
    """Log in, where that is needed."""
    if registry.user:
        ig("login", registry.address, "-u", registry.user, "--password-stdin", *ways(registry), text=registry.password)


@pytest.fixture(params=["plain", "secured"])
def debian(request) -> Registry:
    return request.getfixturevalue(request.param)


# ---------------------------------------------------------------------------------------------- skopeo


def skopeos(registry: Registry, side: str) -> list[str]:
    """How skopeo reaches a registry. side: src or dest"""
    if not registry.certificates:
        return [f"--{side}-tls-verify=false"]
    return [
        f"--{side}-cert-dir={registry.certificates.ca.parent}/skopeo",
        f"--{side}-creds={registry.user}:{registry.password}",
    ]


@pytest.fixture
def skopeo(tool, certificates):
    # It wants a folder with the CA's certificate under this ending.
    folder = certificates.ca.parent / "skopeo"
    folder.mkdir(exist_ok=True)
    (folder / "ca.crt").write_bytes(certificates.ca.read_bytes())
    return tool("skopeo")


def test_skopeo_copies_what_ig_pushed(debian, skopeo, ig, repository, exchanged, tmp_path):
    exchanged(debian.kind, "skopeo", "copies what ig pushed, whole index, equal digest")
    with ig.store() as store:
        root = bare(store, debian.named(repository))
    enter(ig, debian)
    ig("image", "push", debian.named(repository), *ways(debian))

    how = skopeos(debian, "src")
    source = f"docker://{debian.named(repository)}"
    skopeo("copy", "--all", "--preserve-digests", *how, source, f"oci:{tmp_path}/there:x")

    assert layout(tmp_path / "there")[0] == root.digest


def test_ig_pulls_what_skopeo_copied_there(debian, skopeo, ig, another_ig, repository, exchanged):
    exchanged(debian.kind, "skopeo", "copies our store's layout there, ig pulls it, equal digest")
    with ig.store() as store:
        root = bare(store, NAME)
    name = debian.named(repository)
    skopeo("copy", "--all", "--preserve-digests", *skopeos(debian, "dest"), f"oci:{ig.root}:{NAME}", f"docker://{name}")

    enter(another_ig, debian)
    another_ig("image", "pull", name, *ways(debian))

    with another_ig.store(writable=False) as store:
        assert store.resolve(name).digest == root.digest


def test_a_gadget_goes_through_skopeo_with_its_manifests_unchanged(
    plain, skopeo, ig, another_ig, repository, exchanged
):
    # skopeo 1.9 knows no artifactType in the entries of an index and leaves it out, so the index is another.
    exchanged(plain.kind, "skopeo", "copies a gadget and back, equal manifests")
    with ig.store() as store:
        put(store, NAME)
        sent = below(store, NAME)
    name = plain.named(repository)
    skopeo("copy", "--all", *skopeos(plain, "dest"), f"oci:{ig.root}:{NAME}", f"docker://{name}")

    another_ig("image", "pull", name, *ways(plain))

    with another_ig.store(writable=False) as store:
        assert below(store, name) == sent


def test_skopeo_reads_an_exported_archive(skopeo, ig, exchanged, tmp_path):
    exchanged("(archive)", "skopeo", "reads what ig exported, equal digest")
    with ig.store() as store:
        root = bare(store, NAME)
    ig("image", "export", NAME, tmp_path / "it.tar")

    skopeo("copy", "--all", "--preserve-digests", f"oci-archive:{tmp_path}/it.tar:{NAME}", f"oci:{tmp_path}/there:x")

    assert layout(tmp_path / "there")[0] == root.digest


def test_ig_imports_an_archive_of_skopeo(skopeo, ig, another_ig, exchanged, tmp_path):
    exchanged("(archive)", "skopeo", "writes what ig imports, equal digest")
    with ig.store() as store:
        root = bare(store, NAME)
    skopeo("copy", "--all", "--preserve-digests", f"oci:{ig.root}:{NAME}", f"oci-archive:{tmp_path}/it.tar:{NAME}")

    another_ig("image", "import", tmp_path / "it.tar")

    with another_ig.store(writable=False) as store:
        assert store.resolve(NAME).digest == root.digest


def test_skopeo_and_ig_share_a_login(secured, skopeo, ig, repository, exchanged, strange, tmp_path):
    exchanged(secured.kind, "skopeo", "uses the login of ig and ig that of skopeo")
    with ig.store() as store:
        bare(store, secured.named(repository))
    ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
    ig(
        "login",
        secured.address,
        "-u",
        secured.user,
        "--password-stdin",
        "--authfile",
        ours,
        *ways(secured),
        text=secured.password,
    )
    certificate = f"--cert-dir={secured.certificates.ca.parent}/skopeo"
    skopeo(
        "login",
        secured.address,
        "-u",
        secured.user,
        "--password-stdin",
        "--authfile",
        theirs,
        certificate,
        text=secured.password,
    )

    ig("image", "push", secured.named(repository), "--authfile", theirs, *ways(secured))
    said = skopeo(
        "inspect", "--raw", "--authfile", ours, certificate, f"docker://{secured.named(repository)}", env=strange
    )

    assert json.loads(said)["mediaType"] == INDEX


# ---------------------------------------------------------------------------------------------- umoci


def test_umoci_reads_and_tags_in_our_layout(tool, ig, exchanged):
    exchanged("(layout)", "umoci", "lists, tags, removes a tag, collects garbage; ig reads on")
    umoci = tool("umoci")
    with ig.store() as store:
        root = put(store, NAME)
        put(store, "example.org/g/two:v1", b"two", b"and two")

    assert umoci("ls", "--layout", ig.root).split() == [NAME, "example.org/g/two:v1"]
    umoci("rm", "--image", f"{ig.root}:example.org/g/two:v1")
    umoci("gc", "--layout", ig.root)

    listed = json.loads(ig("image", "list", "--no-trunc", "-o", "json").out)
    assert [one["Digest"] for one in listed] == [root.digest]
    with ig.store(writable=False) as store:
        for digest in below(store, NAME):
            manifest = Manifest.parse(
                store.read(Descriptor(MANIFEST, digest, (store.root / "blobs/sha256" / digest[7:]).stat().st_size))
            )
            assert store.read(manifest.layers[0]).startswith(b"program for")


# ---------------------------------------------------------------------------------------------- crane


@pytest.fixture(params=["plain", "secured", "referring", "referring_tls", "cranes"])
def any_registry(request) -> Registry:
    return request.getfixturevalue(request.param)


def trusting(registry: Registry, home: Path) -> Mapping[str, str]:
    """The environment with which Go's clients reach a registry."""
    env = {"HOME": str(home), "DOCKER_CONFIG": str(home)}
    if registry.certificates:
        env["SSL_CERT_FILE"] = str(registry.certificates.ca)
    return env


@pytest.mark.oci
def test_crane_validates_and_pulls_what_ig_pushed(any_registry, tool, ig, repository, exchanged, tmp_path):
    exchanged(any_registry.kind, "crane", "validates and pulls what ig pushed, equal digests")
    crane = tool("crane")
    name, env = any_registry.named(repository), dict(trusting(any_registry, tmp_path))
    with ig.store() as store:
        root = put(store, name)
    enter(ig, any_registry)
    ig("image", "push", name, *ways(any_registry))
    if any_registry.user:
        crane("auth", "login", any_registry.address, "-u", any_registry.user, "-p", any_registry.password, env=env)

    crane("validate", "--remote", name, env=env)
    assert crane("digest", name, env=env).strip() == root.digest
    assert json.loads(crane("manifest", name, env=env))["mediaType"] == INDEX
    crane("pull", "--format=oci", name, tmp_path / "there", env=env)

    assert layout(tmp_path / "there")[0] == root.digest


@pytest.mark.oci
def test_ig_pulls_what_crane_pushed(any_registry, tool, ig, another_ig, repository, exchanged, tmp_path):
    exchanged(any_registry.kind, "crane", "pushes our layout as an index of indexes, ig pulls it, equal digest")
    crane = tool("crane")
    name, env = any_registry.named(repository), dict(trusting(any_registry, tmp_path))
    with ig.store() as store:
        root = put(store, NAME)
    if any_registry.user:
        crane("auth", "login", any_registry.address, "-u", any_registry.user, "-p", any_registry.password, env=env)
    # A layout's index.json is what it pushes: an index with our index in it.
    crane("push", "--index", ig.root, name, env=env)

    enter(another_ig, any_registry)
    another_ig("image", "pull", name, *ways(any_registry))

    with another_ig.store(writable=False) as store:
        assert below(store, name) == [root.digest]
        assert store.read(root)


# ---------------------------------------------------------------------------------------------- oras


def orases(registry: Registry, side: str = "") -> list[str]:
    """How oras reaches a registry. side: from-, to- or nothing"""
    if not registry.certificates:
        return [f"--{side}plain-http"]
    tls = [f"--{side}plain-http=false", f"--{side}ca-file", str(registry.certificates.ca)]  # localhost is plain for it
    login = [f"--{side}username", registry.user, f"--{side}password", registry.password] if registry.user else []
    return [*tls, *login]


@pytest.mark.oci
def test_oras_copies_what_ig_pushed_and_back(
    any_registry, tool, ig, another_ig, repository, exchanged, strange, tmp_path
):
    exchanged(any_registry.kind, "oras", "copies what ig pushed into a layout and back, ig pulls it, equal digest")
    oras = tool("oras")
    name, back = any_registry.named(repository), any_registry.named(f"{repository}/back")
    with ig.store() as store:
        root = put(store, name)
    enter(ig, any_registry)
    ig("image", "push", name, *ways(any_registry))

    oras("copy", *orases(any_registry, "from-"), name, "--to-oci-layout", f"{tmp_path}/there:x", env=strange)
    assert layout(tmp_path / "there")[0] == root.digest
    oras("copy", *orases(any_registry, "to-"), "--from-oci-layout", f"{tmp_path}/there:x", back, env=strange)

    enter(another_ig, any_registry)
    another_ig("image", "pull", back, *ways(any_registry))
    with another_ig.store(writable=False) as store:
        assert store.resolve(back).digest == root.digest


@pytest.mark.oci
def test_oras_discovers_the_referrers_that_ig_pushed(any_registry, tool, ig, repository, exchanged, strange):
    exchanged(any_registry.kind, "oras", "discovers referrers that ig pushed")
    oras = tool("oras")
    name = any_registry.named(repository)
    with ig.store() as store:
        root = put(store, name)
        about = attach(store, root, "application/vnd.example.sbom")
    enter(ig, any_registry)
    ig("image", "push", name, *ways(any_registry))

    found = json.loads(oras("discover", *orases(any_registry), "--format", "json", name, env=strange))

    (one,) = found["manifests"]
    assert one["digest"] == about.digest
    # go-containerregistry tells the config's type in its place
    assert one["artifactType"] == (EMPTY if any_registry.referrers else "application/vnd.example.sbom")


@pytest.mark.oci
def test_ig_pulls_what_oras_attached(any_registry, tool, ig, another_ig, repository, exchanged, strange, tmp_path):
    exchanged(any_registry.kind, "oras", "attaches a file, ig pulls it along")
    oras = tool("oras")
    name = any_registry.named(repository)
    with ig.store() as store:
        put(store, name)
    enter(ig, any_registry)
    ig("image", "push", name, *ways(any_registry))
    (tmp_path / "notes.txt").write_text("what it is about\n")
    oras(
        "attach",
        *orases(any_registry),
        "--artifact-type",
        "text/notes",
        name,
        "notes.txt:text/plain",
        env=strange,
        cwd=tmp_path,
    )

    enter(another_ig, any_registry)
    another_ig("image", "pull", name, *ways(any_registry))

    with another_ig.store(writable=False) as store:
        (found,) = store.referrers(store.resolve(name))
        manifest = Manifest.parse(store.read(found.descriptor))
        assert (found.descriptor.artifact_type, manifest.artifact_type) == ("text/notes", "text/notes")
        assert store.read(manifest.layers[0]) == b"what it is about\n"


@pytest.mark.oci
def test_oras_reads_an_exported_archive(tool, ig, exchanged, strange, tmp_path):
    exchanged("(archive)", "oras", "reads what ig exported, equal digest, and its referrers")
    oras = tool("oras")
    with ig.store() as store:
        root = put(store, NAME)
        about = attach(store, root, "application/vnd.example.sbom")
    ig("image", "export", NAME, tmp_path / "it.tar")

    archive = f"{tmp_path}/it.tar@{root.digest}"
    oras("copy", "-r", "--from-oci-layout", archive, "--to-oci-layout", f"{tmp_path}/there:x", env=strange)

    found = json.loads(oras("discover", "--oci-layout", "--format", "json", f"{tmp_path}/there:x", env=strange))
    assert [one["digest"] for one in found["manifests"]] == [about.digest]


@pytest.mark.oci
def test_ig_imports_a_layout_of_oras(tool, ig, another_ig, exchanged, strange, tmp_path):
    exchanged("(archive)", "oras", "writes what ig imports, with its referrers, equal digests")
    oras = tool("oras")
    with ig.store() as store:
        root = put(store, NAME)
        about = attach(store, root, "application/vnd.example.sbom")
    oras(
        "copy",
        "-r",
        "--from-oci-layout",
        f"{ig.root}@{root.digest}",
        "--to-oci-layout",
        f"{tmp_path}/there:v1",
        env=strange,
    )
    with tarfile.open(tmp_path / "it.tar", "w") as tar:
        tar.add(tmp_path / "there", ".")

    another_ig("image", "import", tmp_path / "it.tar")

    with another_ig.store(writable=False) as store:
        found = store.resolve(root.digest)
        assert [one.descriptor.digest for one in store.referrers(found)] == [about.digest]
