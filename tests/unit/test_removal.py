"""Removing what a hostile archive may have left: deep, locked up, with unhandy names."""

from __future__ import annotations

from pathlib import Path

from supervisor.image import removal


def test_a_tree_is_removed_however_deep_and_whatever_its_names(tmp_path: Path) -> None:
    top = tmp_path / "top"
    at = top
    for number in range(60):
        at = at / f"removed-{number % 3}"
        at.mkdir(parents=True)
        (at / "removed-1x").write_text("")
        (at / "link").symlink_to(tmp_path)
        (at / f"removed-{(number + 1) % 7 + 3}").mkdir(0o000)
    (tmp_path / "kept").write_text("")
    removal.remove_tree(str(top))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    (tmp_path / "link").symlink_to("kept")
    removal.remove_tree(str(tmp_path / "link"))
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
