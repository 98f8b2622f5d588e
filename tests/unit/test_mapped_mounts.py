"""The plan of a job with user numbers of its own: who opens what, and what is mapped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from supervisor.container import hiding, idmaps, mounts, rootfs
from supervisor.container.host import Facts
from supervisor.container.idmaps import IdMounts
from supervisor.container.layers import Layers
from supervisor.errors import SpawnError
from supervisor.model import JobSpec, Mount, UserNamespace
from supervisor.model.job import Capabilities

WORK = "/run/x/work"


class Told(IdMounts):
    """Says what it is told to of every mount."""

    def __init__(self, refusal: str) -> None:
        super().__init__()
        self.told = refusal

    def refusal(self, path: str, *, deep: bool = False) -> str:
        return self.told


def plan(
    files: str = "try", refusal: str = "", run_dir: str | None = None, **settings: Any
) -> list[mounts.Operation]:
    facts = Facts(work=WORK, privileged=True, submounts=("/opt",), id_mounts=Told(refusal))
    space = UserNamespace("map", 2**20, 65536, files)  # type: ignore[arg-type]
    spec = JobSpec("job", ("true",), user_namespace=space, **settings)
    return list(rootfs.plan(spec, facts, Layers(run_dir), 0))


def opened(operations: list[mounts.Operation]) -> dict[str, str]:
    return {one.source: one.by for one in operations if isinstance(one, mounts.OpenTree)}


@pytest.mark.parametrize(
    ("files", "refusal", "of_root", "of_ours"),
    [("try", "", "mapped", "try"), ("mapped", "", "mapped", "try"), ("plain", "", "plain", "plain"),
     ("try", "no", "plain", "try")],
)  # fmt: skip
def test_the_launcher_opens_all(files: str, refusal: str, of_root: str, of_ours: str) -> None:
    found = opened(plan(files, refusal, hide=(), mounts=(Mount("/usr", "/tmp/usr"),)))
    assert found["/"] == found["/usr"] == found["/opt"] == of_root
    assert found[f"{WORK}/dev"] == of_ours


def test_what_must_be_mapped_and_cannot_is_refused() -> None:
    with pytest.raises(SpawnError, match=r"cannot be mapped: no .*files = \"try\""):
        plan("mapped", "no")


@pytest.mark.parametrize("add", ["SYS_ADMIN", "ALL"])
def test_nothing_is_mapped_for_who_could_make_it_writable(add: str) -> None:
    able = {"capabilities": Capabilities(add=(add,)), "hide": ()}
    assert opened(plan(**able))["/"] == "plain"
    with pytest.raises(SpawnError, match="the job has CAP_SYS_ADMIN"):
        plan("mapped", **able)


def test_a_layer_on_the_disk_is_opened_by_the_launcher_and_keeps_its_numbers() -> None:
    operations = plan(run_dir="/state/run", write="overlay", hide=())
    assert opened(operations)["/state/run"] == "plain"
    (overlay,) = (one for one in operations if isinstance(one, mounts.Overlay))
    own = f"upperdir={WORK}/own/upper,workdir={WORK}/own/work"
    assert f"nodev,lowerdir={WORK}/host,{own},userxattr none {WORK}/root" in overlay.describe()


def test_mounts_are_not_locked_together() -> None:
    """One by one, as without a user namespace: nothing below / comes along."""
    operations = plan(hide=())
    assert not [one for one in operations if isinstance(one, mounts.OpenTree) and one.recursive]


def test_the_launchers_view_is_used_where_all_of_it_can_be_mapped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    covered = hiding.coverable(Facts(work=WORK, privileged=True))
    monkeypatch.setattr(idmaps, "maps_tmpfs", lambda: True)
    facts = Facts(work=WORK, privileged=True, covered=covered, id_mounts=Told(""))
    spec = JobSpec("job", ("true",), user_namespace=UserNamespace("map", 2**20, 65536))
    assert opened(list(rootfs.plan(spec, facts, Layers(None), 0)))[f"{WORK}/seen"] == "mapped"
    monkeypatch.setattr(idmaps, "maps_tmpfs", lambda: False)
    found = opened(list(rootfs.plan(spec, facts, Layers(None), 0)))
    assert f"{WORK}/seen" not in found and found["/"] == "mapped"


def test_what_hides_may_find_itself_shut_out_only_of_an_overlay_without_rights() -> None:
    hide = ("/usr/share",)  # in everybody's reach, wherever these tests lie

    def may(**settings: Any) -> bool:
        (cover,) = (one for one in plan(hide=hide, **settings)
                    if isinstance(one, mounts.Attach) and one.target == hide[0])  # fmt: skip
        return cover.cover

    assert may(files="plain", write="overlay")
    assert not may(files="plain") and not may(write="overlay") and not may()


def test_the_layers_of_an_image_are_opened_as_one_where_they_are_mapped(tmp_path: Path) -> None:
    layers = tuple(str(tmp_path / name / "tree") for name in "abc")
    for layer in layers:
        Path(layer).mkdir(parents=True)
    image: dict[str, Any] = {"root": "image", "layers": layers, "write": "overlay"}
    operations = plan(**image)
    assert opened(operations)[str(tmp_path)] == "mapped"
    (overlay,) = (one for one in operations if isinstance(one, mounts.Overlay))
    assert overlay.lower == tuple(f"{WORK}/host/{name}/tree" for name in "abc")
    for files, refusal in (("plain", ""), ("try", "no")):
        found = opened(plan(files, refusal, **image))
        assert {found[layer] for layer in layers} == {"plain"} and str(tmp_path) not in found


def test_a_layer_behind_a_link_or_a_mount_is_opened_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "b").symlink_to("elsewhere")
    linked = (str(tmp_path / "a"), str(tmp_path / "b"))
    assert set(linked) <= set(opened(plan(root="image", layers=linked, write="overlay")))
    mounted = (str(tmp_path / "a"), str(tmp_path / "elsewhere"))
    facts = Facts(work=WORK, privileged=True, submounts=(mounted[1],), id_mounts=Told(""))
    space = UserNamespace("map", 2**20, 65536)
    spec = JobSpec("job", ("true",), root="image", layers=mounted, user_namespace=space)
    found = opened(list(rootfs.plan(spec, facts, Layers(None), 0)))
    assert set(mounted) <= set(found)
