"""An OCI layout as we write it: whole or not there, the same each time, in the place of the old."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
from pathlib import Path
from typing import IO

import pytest

from supervisor.errors import ImageError
from supervisor.image.layout import Layer, Layout, created, source_date_epoch

CONFIG = {"architecture": "amd64", "os": "linux", "config": {"Cmd": ["/x"]}}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layer(layout: Layout, data: bytes) -> Layer:
    def write(out: IO[bytes]) -> str:
        out.write(data)
        return digest(data)

    return layout.add_layer(write)


def blob(top: Path, name: str) -> bytes:
    data = (top / "blobs/sha256" / name.removeprefix("sha256:")).read_bytes()
    assert digest(data) == name
    return data


def test_an_image_is_found_by_its_tag(tmp_path: Path) -> None:
    top = tmp_path / "layout"
    layout = Layout(top)
    layers = [layer(layout, b"lower"), layer(layout, b"upper")]
    name = layout.add_image("v1", CONFIG, layers)
    assert json.loads((top / "oci-layout").read_text()) == {"imageLayoutVersion": "1.0.0"}
    (entry,) = json.loads((top / "index.json").read_text())["manifests"]
    assert entry["digest"] == name and entry["platform"] == {"architecture": "amd64", "os": "linux"}
    assert entry["annotations"] == {"org.opencontainers.image.ref.name": "v1"}
    manifest = json.loads(blob(top, name))
    assert entry["size"] == len(blob(top, name))
    assert [gzip.decompress(blob(top, one["digest"])) for one in manifest["layers"]] == [
        b"lower", b"upper",
    ]  # fmt: skip
    config = json.loads(blob(top, manifest["config"]["digest"]))
    assert config["rootfs"] == {"type": "layers", "diff_ids": [digest(b"lower"), digest(b"upper")]}


def test_the_same_twice_is_the_same(tmp_path: Path) -> None:
    first, second = Layout(tmp_path / "a"), Layout(tmp_path / "b")
    images = [one.add_image("v1", CONFIG, [layer(one, b"x")]) for one in (first, second)]
    assert images[0] == images[1]
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()


def test_a_tag_is_given_anew_and_others_stay(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for tag, data in (("v1", b"1"), ("v2", b"2"), (None, b"3"), ("v1", b"4"), (None, b"5")):
        last = Layout(tmp_path).add_image(tag, CONFIG, [layer(layout, data)])
    entries = json.loads((tmp_path / "index.json").read_text())["manifests"]
    names = [one.get("annotations", {}).get("org.opencontainers.image.ref.name") for one in entries]
    assert names == ["v2", "v1", None] and entries[-1]["digest"] == last


def test_a_failure_leaves_no_half_blob(tmp_path: Path) -> None:
    def fail(out: IO[bytes]) -> str:
        out.write(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ImageError, match="No space left"):
        Layout(tmp_path).add_layer(fail)
    assert os.listdir(tmp_path / "blobs/sha256") == []
    assert sorted(os.listdir(tmp_path)) == ["blobs", "oci-layout"]


@pytest.mark.parametrize("text", ["", "[]", '{"manifests": [1]}', "[" * 100_000, "{}"])
def test_an_index_of_somebody_else_s_is_refused(tmp_path: Path, text: str) -> None:
    layout = Layout(tmp_path)
    (tmp_path / "index.json").write_text(text)
    with pytest.raises(ImageError, match=r"index\.json: is no index"):
        layout.add_image("v1", CONFIG, [layer(layout, b"x")])
    assert (tmp_path / "index.json").read_text() == text


def test_a_directory_of_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(ImageError, match="not empty, and no OCI layout"):
        Layout(tmp_path)
    with pytest.raises(ImageError, match="cannot be written"):
        Layout(tmp_path / "mine")
    assert os.listdir(tmp_path) == ["mine"]


def test_the_time_of_the_source() -> None:
    assert source_date_epoch({}) is None
    assert source_date_epoch({"SOURCE_DATE_EPOCH": "1700000000"}) == 1700000000
    assert created(1700000000.9) == "2023-11-14T22:13:20Z"
    for text in ("", "-1", "x", "1" * 12, "٣"):
        with pytest.raises(ImageError, match="SOURCE_DATE_EPOCH: is"):
            source_date_epoch({"SOURCE_DATE_EPOCH": text})
