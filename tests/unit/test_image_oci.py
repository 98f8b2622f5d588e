"""The documents of images: what is read of good ones, and that nothing else gets through."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor.errors import ImageError
from supervisor.image import oci
from supervisor.image.oci import read_config, read_manifest
from supervisor.model import ImageConfig
from tests.support.images import Built, descriptor, layer

DIGEST = "sha256:" + "0" * 64
IMAGE = Built([layer(), layer()])


def raw(value: Any) -> bytes:
    return json.dumps(value).encode()


def changed(**fields: Any) -> bytes:
    """A manifest with other values; None takes a key away."""
    value = {**IMAGE.manifest, **fields}
    return raw({key: one for key, one in value.items() if one is not None})


def with_layer(**fields: Any) -> bytes:
    first, *rest = IMAGE.manifest["layers"]
    return changed(layers=[{**first, **fields}, *rest])


@pytest.mark.parametrize("docker", [False, True])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_a_manifest_is_read(docker: bool, compression: Any) -> None:
    image = Built([layer(), layer()], compression=compression, docker=docker)
    found = read_manifest(image.raw_manifest, image.manifest["mediaType"], "m")
    assert isinstance(found, oci.Manifest)
    assert [one.size for one in found.layers] == [len(one) for one in image.packed]
    assert {oci.LAYERS[one.media_type] for one in found.layers} == {compression}


def test_the_media_type_may_be_left_to_who_announces_it() -> None:
    data = changed(mediaType=None)
    for announced in (oci.OCI_MANIFEST, "", f"{oci.OCI_MANIFEST}; charset=utf-8"):
        assert isinstance(read_manifest(data, announced, "m"), oci.Manifest)


def test_an_index_is_read() -> None:
    index = {"schemaVersion": 2, "manifests": [IMAGE.described("1", platform=True)]}
    found = read_manifest(raw(index), oci.OCI_INDEX, "i")
    assert isinstance(found, oci.Index)
    (one,) = found.manifests
    assert (one.names, str(one.platform)) == (("1",), "linux/amd64")


@pytest.mark.parametrize(
    ("data", "media_type", "why"),
    [
        (b"", "", "no JSON"),
        (b"[]", "", "no object"),
        (b"\xff", "", "no JSON"),
        (b"[" * 100_000, "", "nested too deeply"),
        (b'{"a": 1, "a": 2}', "", "stands there twice"),
        (b'{"a": NaN}', "", "no number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "", "no JSON"),
        (b" " * (oci.LARGEST_MANIFEST + 1), "", "is larger than"),
        (raw({"schemaVersion": 1, "fsLayers": []}), "", "schema 1"),
        (raw({"schemaVersion": True}), "", "schemaVersion"),
        (raw({}), oci.OCI_MANIFEST, "no schemaVersion 2"),
        (changed(mediaType="text/html"), "text/html", "no manifest of an image"),
        (changed(), oci.OCI_INDEX, "announced as"),
        (changed(mediaType=None), oci.OCI_INDEX, 'has "layers"'),
        (changed(manifests=[]), oci.OCI_MANIFEST, 'has "manifests"'),
        (changed(config=None), oci.OCI_MANIFEST, 'has no "config"'),
        (changed(config={}), oci.OCI_MANIFEST, '"digest" is no string'),
        (changed(config=descriptor("application/vnd.oci.empty.v1+json", b"{}"),
                 artifactType="x/sbom"), oci.OCI_MANIFEST, 'an artifact of type "x/sbom"'),
        (changed(config={**IMAGE.manifest["config"], "size": 2**30}), oci.OCI_MANIFEST,
         "configuration is larger"),
        (changed(layers={}), oci.OCI_MANIFEST, "no array"),
        (changed(layers=IMAGE.manifest["layers"] * 300), oci.OCI_MANIFEST, "more than 500"),
        (with_layer(digest="sha256:../../etc/passwd"), oci.OCI_MANIFEST, "no sha256 digest"),
        (with_layer(digest="sha512:" + "0" * 128), oci.OCI_MANIFEST, "no sha256 digest"),
        (with_layer(digest=DIGEST + "\n"), oci.OCI_MANIFEST, "no sha256 digest"),
        (with_layer(size=-1), oci.OCI_MANIFEST, "whole number"),
        (with_layer(size=True), oci.OCI_MANIFEST, "whole number"),
        (with_layer(size=1.5), oci.OCI_MANIFEST, "whole number"),
        (with_layer(size=2**63), oci.OCI_MANIFEST, "whole number"),
        (with_layer(mediaType="application/x-sh"), oci.OCI_MANIFEST, "unknown type"),
        (with_layer(mediaType="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
         oci.OCI_MANIFEST, "not to be distributed"),
        (with_layer(annotations={"a": 1}), oci.OCI_MANIFEST, '"annotations" is no string'),
        (with_layer(platform=[]), oci.OCI_MANIFEST, "no object"),
    ],
)  # fmt: skip
def test_what_is_no_manifest_is_refused(data: bytes, media_type: str, why: str) -> None:
    with pytest.raises(ImageError, match=why) as caught:
        read_manifest(data, media_type, "the place")
    assert str(caught.value).startswith("the place")


def config(**fields: Any) -> bytes:
    whole = {**json.loads(IMAGE.raw_config), **fields}
    return raw({key: one for key, one in whole.items() if one is not None})


def test_a_configuration_is_read() -> None:
    found = read_config(
        config(
            architecture="arm", variant="v7",
            config={
                "Env": ["A=1", "A=2=3", "nothing", "B="], "Entrypoint": ["/bin/sh", "-c"],
                "Cmd": None, "WorkingDir": "srv/../a/", "User": "www:33", "StopSignal": "SIGQUIT",
                "Volumes": {"/data": {}, "/a": {}}, "ExposedPorts": {"80/tcp": {}, "53": {}},
                "Labels": {"b": "2", "a": "1"}, "Unknown": 1,
            },
        ), "c",
    )  # fmt: skip
    assert str(found.platform) == "linux/arm/v7"
    assert found.diff_ids == tuple(IMAGE.diff_ids)
    assert found.config == ImageConfig(
        environment=(("A", "2=3"), ("B", "")), entrypoint=("/bin/sh", "-c"), command=(),
        working_dir="/a", user="www:33", stop_signal="SIGQUIT", volumes=("/a", "/data"),
        exposed_ports=("53", "80/tcp"), labels=(("a", "1"), ("b", "2")),
    )  # fmt: skip


def test_a_configuration_may_say_nothing_of_how_to_run() -> None:
    assert read_config(config(config=None), "c").config == ImageConfig()
    assert read_config(config(config={"Entrypoint": "/init"}), "c").config.entrypoint == ("/init",)


def how(**fields: Any) -> bytes:
    return config(config=fields)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (config(rootfs=None), 'no "rootfs"'),
        (config(rootfs={"type": "tar", "diff_ids": []}), "its type"),
        (config(rootfs={"type": "layers", "diff_ids": ["sha256:0"]}), "no sha256 digest"),
        (config(rootfs={"type": "layers", "diff_ids": [1]}), "no string"),
        (config(os=None), "for which os"),
        (config(architecture=""), "for which os"),
        (config(config=[]), "no object"),
        (how(Env={}), "no array"),
        (how(Env=["=1"]), "no name"),
        (how(Env=["A=\0"]), "no text has"),
        (config(config={"Env": ["A=\ud800"]}), "no text has"),
        (how(Cmd=[1]), "no string"),
        (how(WorkingDir=1), "no string"),
        (how(Volumes={"data": {}}), "no absolute path"),
        (how(Volumes={"/../etc": {}}), "no absolute path"),
        (how(Volumes=["/data"]), "no object"),
        (how(StopSignal="SIGTERM; reboot"), "StopSignal"),
        (how(ExposedPorts={"80/tcp;": {}}), "ExposedPorts"),
        (how(Labels={"a": None}), "no string"),
    ],
)
def test_what_is_no_configuration_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=why):
        read_config(data, "c")


def test_a_manifest_and_its_configuration_must_agree() -> None:
    manifest = read_manifest(IMAGE.raw_manifest, oci.OCI_MANIFEST, "m")
    assert isinstance(manifest, oci.Manifest)
    one = read_config(Built([layer()]).raw_config, "c")
    none = read_config(Built([]).raw_config, "c")
    oci.check_together(manifest, read_config(IMAGE.raw_config, "c"), "m")
    with pytest.raises(ImageError, match="has 2 layers, but its configuration tells of 1"):
        oci.check_together(manifest, one, "m")
    with pytest.raises(ImageError, match="no layer"):
        oci.check_together(oci.Manifest(manifest.config, ()), none, "m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
KEYS = [
    "schemaVersion", "mediaType", "config", "layers", "manifests", "digest", "size", "platform",
    "annotations", "rootfs", "os", "architecture", "Env", "Cmd", "Volumes", "Labels",
]  # fmt: skip


@given(st.sampled_from(KEYS), JSON, st.sampled_from([IMAGE.raw_manifest, IMAGE.raw_config]))
def test_any_value_anywhere_is_taken_or_refused(key: str, value: Any, data: bytes) -> None:
    def put(node: Any) -> Any:
        if isinstance(node, dict):
            return {name: value if name == key else put(one) for name, one in node.items()}
        return [put(one) for one in node] if isinstance(node, list) else node

    whole = {**put(json.loads(data)), key: value}
    for read in (lambda text: read_manifest(text, "", "m"), lambda text: read_config(text, "c")):
        try:
            read(raw(whole))
        except ImageError as err:
            assert str(err)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_readably(data: bytes) -> None:
    with pytest.raises(ImageError):
        read_manifest(data, "", "m")
