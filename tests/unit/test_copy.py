"""Copies of images between places: what is sent, in which order, and what ends a copy."""

import json
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from igrun.errors import ImageError, NotFoundError, RegistryError
from igrun.oci import copy as copying
from igrun.oci import ingest
from igrun.oci.copy import copy
from igrun.oci.model import INDEX, MANIFEST, REF_NAME, Descriptor, Index, Manifest, Reference, Referrer
from igrun.oci.store import Store
from tests.images import NAME, SIGNATURE, Meter, Slow, about, blobs, image, legacy


@pytest.fixture
def source(tmp_path):
    with Store.open(tmp_path / "source") as opened:
        yield opened


@pytest.fixture
def target(tmp_path):
    with Store.open(tmp_path / "target") as opened:
        yield opened


def test_a_copy_has_the_same_digest_and_every_blob(source, target):
    root = image(source, b"one", b"two" * 1_000_000)

    assert copy(source, target, Reference.parse("trace_open")) == source.resolve(NAME)
    assert target.resolve(NAME).digest == root.digest
    assert blobs(target) == blobs(source)
    assert list((target.root / "ingest").iterdir()) == []


def test_a_copy_may_have_another_name_or_none(source, target):
    root = image(source, b"one")

    copy(source, target, NAME, "ghcr.io/a/b:1")
    copy(source, target, root)
    copy(source, target, root.digest)
    assert [one.name for one in target.list()] == ["ghcr.io/a/b:1"]
    copy(source, target, f"ghcr.io/a/c:2@{root.digest}")
    assert target.resolve(f"ghcr.io/a/c:2@{root.digest}").digest == root.digest


def test_an_image_that_no_name_stands_for_is_held_by_its_digest(source, target):
    root = image(source, b"one")
    copy(source, target, root)

    assert target.list() == []
    assert target.resolve(root.digest).digest == root.digest


def test_the_name_is_resolved_once(source, target):
    image(source, b"one")
    watched = Slow(source)
    copy(watched, target, NAME)

    assert [call[0] for call in watched.calls].count("resolve") == 1


def test_a_name_with_a_digest_stands_for_that_digest_only(source, target):
    root = image(source, b"one")
    other = "sha256:" + "1" * 64
    lying = Slow(source, resolve=lambda ref: root)

    with pytest.raises(ImageError, match="is sha256:"):
        copy(lying, target, f"ghcr.io/a/b:1@{other}")
    assert not target.root.exists()


def test_blobs_go_before_manifests_and_the_name_last(source, target):
    root = image(source, b"one", b"two")
    signature = about(source, root)
    watched = Slow(target)
    copy(source, watched, NAME)

    sent = [call[1].digest for call in watched.calls if call[0] == "receive"]
    inner = Index.parse(source.read(root)).manifests[0].digest
    order = [sent.index(one) for one in (inner, root.digest, signature.digest)]
    assert order == sorted(order)
    assert order[0] == 3  # after the config and the layers
    assert [call[0] for call in watched.calls][-2:] == ["refer", "tag"]


def test_what_is_there_is_not_sent(source, target):
    image(source, b"one", b"two")
    copy(source, target, NAME)
    image(source, b"one", b"three")
    watched, meter = Slow(target), Meter()
    copy(source, watched, NAME, progress=meter)

    received = [call[1] for call in watched.calls if call[0] == "receive"]
    assert len(received) == 3  # a layer, the manifest and the index
    assert sorted(meter.finished) == sorted(one.digest for one in meter.expected)
    assert sum(meter.counts.values()) == sum(one.size for one in received)


def test_what_can_be_mounted_is_not_sent(source, target):
    image(source, b"one")

    def mount(descriptor, place):
        target.write(descriptor.media_type, place.read(descriptor))
        return True

    watched = Slow(target, mount=mount)
    copy(source, watched, NAME)

    received = {call[1].media_type for call in watched.calls if call[0] == "receive"}
    assert received == {MANIFEST, INDEX}


def test_a_damaged_blob_in_the_target_is_sent_again(source, target):
    image(source, b"one")
    copy(source, target, NAME)
    path = target.root / "blobs/sha256" / Descriptor.of("", b"one").digest[7:]
    path.write_bytes(b"two")
    copy(source, target, NAME)

    assert path.read_bytes() == b"one"


def test_blobs_are_sent_at_the_same_time(source, target):
    image(source, *(bytes([n]) * 100 for n in range(3)))
    together = threading.Barrier(4, timeout=10)

    def stream(descriptor, start):
        together.wait()
        return source.stream(descriptor, start)

    copy(Slow(source, stream=stream), target, NAME)


# ---------------------------------------------------------------------------------------------- referrers


def test_what_is_about_an_image_goes_with_it(source, target):
    root = image(source, b"one")
    inner = Index.parse(source.read(root)).manifests[0]
    first = about(source, root)
    expected = {
        first.digest,
        about(source, root, b"sbom", "application/spdx+json").digest,
        about(source, inner, b"of the manifest").digest,
        about(source, first, b"of the signature").digest,
        legacy(source, root).digest,
        legacy(source, root, b"attestation", ".att").digest,
    }
    other = image(source, b"two")
    about(source, other, b"not copied")
    copy(source, target, root, NAME)

    there = [target.referrers(one) for one in (root, inner, first)]
    assert {one.descriptor.digest for found in there for one in found} == expected
    assert there == [source.referrers(one) for one in (root, inner, first)]
    for found in there:
        for one in found:
            for layer in Manifest.parse(target.read(one.descriptor)).layers:
                assert target.read(layer)


def test_referrers_can_be_left_out(source, target):
    root = image(source, b"one")
    about(source, root)
    copy(source, target, NAME, referrers=False)

    assert target.referrers(root) == ()


def test_a_referrer_that_vanishes_meanwhile_is_left_out(source, target):
    root = image(source, b"one")
    signature = about(source, root)
    about(source, signature, b"of the signature")
    kept = about(source, root, b"kept")

    def read(descriptor):
        if descriptor.digest == signature.digest:
            raise NotFoundError("it is gone")
        return source.read(descriptor)

    copy(Slow(source, read=read), target, NAME)

    assert [one.descriptor.digest for one in target.referrers(root)] == [kept.digest]
    assert target.referrers(signature) == ()


def test_a_referrer_that_cannot_be_copied_is_an_error(source, target):
    root = image(source, b"one")
    about(source, root)
    (source.root / "blobs/sha256" / Descriptor.of("", b"signature").digest[7:]).unlink()

    with pytest.raises(NotFoundError, match="a part of referrer"):
        copy(source, target, NAME)
    with pytest.raises(NotFoundError):
        target.resolve(NAME)  # the next attempt must not take it for complete


def test_what_is_about_another_image_is_left_out(source, target):
    root = image(source, b"one")
    other = image(source, b"two")
    stray = about(source, other, b"stray")
    lying = Slow(source, referrers=lambda subject: (Referrer(stray),) if subject == root else ())
    copy(lying, target, root)

    assert stray.digest[7:] not in blobs(target)


def test_signatures_that_lead_in_circles_end(source, target):
    root = image(source, b"one")
    first = about(source, root)
    source.refer(first, Referrer(root, f"sha256-{first.digest[7:]}.sig"))
    copy(source, target, root)

    assert target.referrers(first)[0].descriptor.digest == root.digest


def test_endless_signatures_are_an_error(source, target, monkeypatch):
    root = image(source, b"one")
    subject = root
    for n in range(copying.DEEPEST_REFERRERS + 1):
        subject = about(source, subject, b"%d" % n)
    with pytest.raises(ImageError, match="signatures of signatures"):
        copy(source, target, root)

    monkeypatch.setattr(copying, "MOST_REFERRERS", 3)
    for n in range(4):
        about(source, root, b"many %d" % n)
    with pytest.raises(ImageError, match="more than 3 signatures"):
        copy(source, target, root)


# ---------------------------------------------------------------------------------------------- breaks


def test_a_stream_that_breaks_off_is_asked_for_the_rest(source, target):
    data = bytes(range(256)) * 20_000
    image(source, data)
    starts = []

    def stream(descriptor, start):
        if descriptor.size < 1000:
            return source.stream(descriptor, start)
        starts.append(start)
        return iter((data[start : start + 2_000_000],))

    meter = Meter()
    copy(Slow(source, stream=stream), target, NAME, progress=meter)

    assert starts == [0, 2_000_000, 4_000_000]
    assert meter.counts[Descriptor.of("", data).digest] == len(data)


def test_a_broken_download_goes_on_where_it_ended(source, target):
    data = bytes(range(256)) * 20_000
    image(source, data)

    def cut(descriptor, start) -> Iterator[bytes]:
        if descriptor.size < 1000:
            yield from source.stream(descriptor, start)
            return
        yield data[start : start + 3_000_000]
        raise RegistryError("the connection was cut")

    with pytest.raises(RegistryError, match="cut"):
        copy(Slow(source, stream=cut), target, NAME)
    left = list((target.root / "ingest").iterdir())
    assert [path.stat().st_size for path in left] == [3_000_000]

    starts, meter = [], Meter()

    def rest(descriptor, start):
        if descriptor.size == len(data):  # the others may have been on their way as well
            starts.append(start)
        return source.stream(descriptor, start)

    copy(Slow(source, stream=rest), target, NAME, progress=meter)
    assert starts == [3_000_000]
    assert meter.counts[Descriptor.of("", data).digest] == len(data)
    assert list((target.root / "ingest").iterdir()) == []
    assert target.read(Descriptor.of("application/layer", data)) == data


@pytest.mark.parametrize("left", [b"wrong" * 400_000, b"\0" * 9_000_000])
def test_what_a_crash_left_is_never_trusted(source, target, left):
    data = bytes(range(256)) * 20_000
    image(source, data)
    image(target, b"other")
    (target.root / "ingest" / f"{Descriptor.of('', data).digest[7:]}.part").write_bytes(left)
    copy(source, target, NAME)

    assert target.read(Descriptor.of("application/layer", data)) == data


@pytest.mark.parametrize("size", [100, 3_000_000])
@pytest.mark.parametrize(
    "lie", [lambda data: data[:-1] + b"x", lambda data: data + b"x", lambda data: b"", lambda data: data[:-1]]
)
def test_a_source_that_sends_other_bytes_is_an_error(source, target, size, lie):
    data = b"1" * size
    image(source, data)

    def stream(descriptor, start):
        sent = b"".join(source.stream(descriptor))
        return iter((lie(sent)[start:],)) if len(sent) == size else iter((sent[start:],))

    with pytest.raises(ImageError, match=r"sent other bytes|ended after"):
        copy(Slow(source, stream=stream), target, NAME)
    assert Descriptor.of("", data).digest[7:] not in blobs(target)
    assert target.list() == []


def test_the_first_error_ends_the_others(source, target):
    small, large = b"small", b"large" * 1_000_000
    image(source, small, large)
    going = threading.Event()

    def stream(descriptor, start):
        if descriptor.size == len(small):
            assert going.wait(10)
            raise RegistryError("refused")
        if descriptor.size != len(large):
            return source.stream(descriptor, start)
        return endless()

    def endless():
        for _ in range(len(large)):
            going.set()
            yield b"l"
            threading.Event().wait(0.001)

    with pytest.raises(RegistryError, match="refused"):
        copy(Slow(source, stream=stream), target, NAME)


def test_memory_is_flat_however_large_a_blob_is(source, target):
    size = 64 << 20
    layer = Descriptor.of("application/layer", bytes(size))

    def stream(descriptor, start):
        if descriptor.size != size:
            return source.stream(descriptor, start)
        return (bytes(1 << 20) for _ in range((size - start) >> 20))

    manifest = Manifest(source.write("application/config", b"{}"), (layer,))
    root = source.write(MANIFEST, manifest.to_bytes())
    tracemalloc.start()
    try:
        copy(Slow(source, stream=stream), target, root, referrers=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert target.has(layer)


def test_a_blob_that_another_process_never_finishes_is_fetched_anyway(source, target, monkeypatch):
    import fcntl

    monkeypatch.setattr(ingest, "STUCK_S", 0.2)
    data = bytes(range(256)) * 20_000
    image(source, data)
    image(target, b"other")
    part = target.root / "ingest" / f"{Descriptor.of('', data).digest[7:]}.part"
    with part.open("wb") as stuck:
        fcntl.flock(stuck, fcntl.LOCK_EX)
        copy(source, target, NAME)

    assert target.read(Descriptor.of("application/layer", data)) == data


def test_an_index_of_a_referrer_keeps_its_type(source, target):
    root = image(source, b"one")
    about(source, root)
    copy(source, target, NAME)

    entries = json.loads((target.root / "index.json").read_bytes())["manifests"]
    bare = [one for one in entries if REF_NAME not in one.get("annotations", {})]
    assert [one["artifactType"] for one in bare] == [SIGNATURE]
