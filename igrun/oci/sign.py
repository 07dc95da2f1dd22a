"""Sign an image, in the formats that cosign reads."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable

from igrun.errors import ImageError, ParamError
from igrun.oci.model import CREATED, EMPTY, MANIFEST, Content, Descriptor, Manifest, Reference, Referrer, dumped
from igrun.oci.private import load
from igrun.oci.signature import (
    BUNDLE,
    COSIGN_REFERRER,
    IN_TOTO,
    MOST_SIGNATURES,
    PAYLOAD_TYPE,
    SIGNATURE,
    SIGNED,
    SIMPLE_SIGNING,
    STATEMENTS,
    authenticated,
    read,
)

CONFIG = "application/vnd.oci.image.config.v1+json"
CONTENT, PREDICATE = "dev.sigstore.bundle.content", "dev.sigstore.bundle.predicateType"
FORMATS = ("bundle", "referrer", "tag")


def sign(
    content: Content,
    descriptor: Descriptor,
    key_pem: str,
    password: str = "",
    *,
    formats: Iterable[str] = ("bundle",),
    reference: Reference | None = None,
) -> tuple[Referrer, ...]:
    """Put signatures of an image beside it.

    descriptor: of the index
    key_pem:    cosign's private key, or another in PEM
    formats:    bundle (what cosign 3 writes), referrer, tag (what older ones write)
    reference:  what the signer calls the image; told in the formats `referrer` and `tag`

    Returns what was written, one for each format.
    ParamError: the key or a format is wrong. PluginError: the key needs `igrun[sign]`.
    """
    wanted = tuple(dict.fromkeys(formats))
    for one in wanted:
        if one not in FORMATS:
            raise ParamError(
                "format", one, f"unknown format of signatures {one!r}", hint=f"one of {', '.join(FORMATS)}"
            )
    key = load(key_pem, password)
    name = reference.name if reference else ""
    done = []
    for one in wanted:
        if one == "bundle":
            data = statement(descriptor.digest)
            signature = key.sign(authenticated(IN_TOTO, data))
            referrer = write_bundle(content, descriptor, data, signature, key.fingerprint)
        else:
            data = payload(descriptor.digest, name)
            layer = content.write(SIMPLE_SIGNING, data).with_annotations({SIGNATURE: encoded(key.sign(data))})
            write = write_tag if one == "tag" else write_referrer
            referrer = write(content, descriptor, layer)
        content.refer(descriptor, referrer)
        done.append(referrer)
    return tuple(done)


def statement(digest: str) -> bytes:
    """What the signature of a bundle is over."""
    subject = {"digest": {"sha256": digest.removeprefix("sha256:")}}
    return dumped({"_type": STATEMENTS[0], "subject": [subject], "predicateType": SIGNED, "predicate": {}})


def payload(digest: str, name: str) -> bytes:
    """What the signature of cosign's older formats is over."""
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": PAYLOAD_TYPE,
    }
    return dumped({"critical": critical, "optional": None})


def write_bundle(content: Content, image: Descriptor, data: bytes, signature: bytes, fingerprint: str) -> Referrer:
    """A Sigstore bundle, as a referrer."""
    bundle = {
        "mediaType": BUNDLE,
        "verificationMaterial": {"publicKey": {"hint": encoded(bytes.fromhex(fingerprint))}},
        "dsseEnvelope": {
            "payload": encoded(data),
            "payloadType": IN_TOTO,
            "signatures": [{"sig": encoded(signature)}],
        },
    }
    manifest = Manifest(
        content.write(EMPTY, b"{}"),
        (content.write(BUNDLE, dumped(bundle)),),
        annotations={
            CREATED: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            CONTENT: "dsse-envelope",
            PREDICATE: SIGNED,
        },
        artifact_type=BUNDLE,
        subject=bare(image),
    )
    return written(content, manifest)


def write_referrer(content: Content, image: Descriptor, layer: Descriptor) -> Referrer:
    """A signature of cosign's own format, as a referrer."""
    config = content.write(COSIGN_REFERRER, image_config((layer,)))
    return written(content, Manifest(config, (layer,), artifact_type=COSIGN_REFERRER, subject=bare(image)))


def write_tag(content: Content, image: Descriptor, layer: Descriptor) -> Referrer:
    """A signature of cosign's own format, under the name made of the image's digest, with those that are there."""
    tag = f"sha256-{image.digest.removeprefix('sha256:')}.sig"
    layers: tuple[Descriptor, ...] = ()
    for referrer in content.referrers(image):
        if referrer.tag == tag:
            layers = Manifest.parse(read(content, referrer.descriptor)).layers
    if len(layers) >= MOST_SIGNATURES:
        raise ImageError(f"{image.digest} has {len(layers)} signatures already", hint="remove the old ones")
    layers = (*layers, layer)
    return written(content, Manifest(content.write(CONFIG, image_config(layers)), layers), tag)


def written(content: Content, manifest: Manifest, tag: str = "") -> Referrer:
    """Write the manifest of a signature."""
    descriptor = content.write(MANIFEST, manifest.to_bytes())
    return Referrer(Descriptor(MANIFEST, descriptor.digest, descriptor.size, artifact_type=manifest.artifact_type), tag)


def bare(image: Descriptor) -> Descriptor:
    """The descriptor of the image without what a store says about it."""
    return Descriptor(image.media_type, image.digest, image.size)


def image_config(layers: Iterable[Descriptor]) -> bytes:
    """A config that makes a signature look like an image, for registries that want one."""
    diff_ids = [layer.digest for layer in layers]
    config = {
        "architecture": "",
        "created": "0001-01-01T00:00:00Z",
        "history": [{"created": "0001-01-01T00:00:00Z"} for _ in diff_ids],
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {},
    }
    return json.dumps(config, separators=(",", ":")).encode()


def encoded(data: bytes) -> str:
    """Base64."""
    return base64.b64encode(data).decode()
