"""From the tables of a configuration to the jobs: defaults merged, matrix expanded, checked.

May import: `errors`, `model`, the tables and parsers of `front`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from supervisor.front import kinds, matrix
from supervisor.front.compounds import default_user_namespace
from supervisor.front.kinds import Context
from supervisor.front.problems import Problems, Wrong, found
from supervisor.front.schema import JOB, Key
from supervisor.front.tables import Found, Raw, Values, flatten, parse_values, plain, section
from supervisor.front.toml_lines import Path
from supervisor.model.job import (
    HOOKS,
    Capabilities,
    InlineAction,
    JobSpec,
    Log,
    PressureAt,
    Restart,
    Rlimits,
    Stop,
)
from supervisor.model.limits import Limits, conflicts

MOST_HELD = 32
"""Volumes of a job, and paths that are copied out: a descriptor is held for each."""
_NEEDS = {"swap": "memory", "disk_inodes": "disk"}
"""Limits that need another one, which may be there and wrong: that is told already."""
_COMMANDS: tuple[Key, ...] = (("command",), ("script",))
"""They exclude each other: a job's own one drops the other one of the defaults."""


def read_jobs(document: Mapping[str, Any], context: Context, problems: Problems) -> list[JobSpec]:
    """Every job of a document, as far as it is right; what is wrong goes to `problems`."""
    defaults = flatten(JOB, document.get("defaults", {}), ("defaults",), problems)
    parse_values(JOB, defaults, context, problems)  # a wrong one is told even if no job uses it
    tables = document.get("jobs", {})
    if not isinstance(tables, dict):
        problems.add(("jobs",), f"must be a table, not {found(tables)}")
        return []
    if not tables and not _stays(document):
        problems.add(("jobs",), "no job is configured; add a table [jobs.NAME] with a command")
    jobs: list[JobSpec] = []
    for name, table in tables.items():
        origin = ("jobs", name)
        if not _is_name(name):
            problems.add(origin, f"{found(name)} is no job's name: {_NAME_RULE}")
            continue
        own = flatten(JOB, table, origin, problems)
        room = matrix.MOST_MEMBERS - len(jobs)
        jobs += _members(name, merge(defaults, own), origin, context, problems, room)
    _check_doubles(jobs, problems)
    return jobs


def _stays(document: Mapping[str, Any]) -> bool:
    """Whether the instance goes on without a job: some may be submitted."""
    own = document.get("supervisor", {})
    return isinstance(own, dict) and own.get("when_done") == "stay"


_NAME_RULE = 'at most 64 letters, digits, "_", "-", "."'


def _is_name(name: str) -> bool:
    group = matrix.group_of(name)
    suffix = name[len(group) :]
    return bool(kinds.NAME.fullmatch(group) and (not suffix or matrix.MEMBER.fullmatch(suffix)))


def merge(defaults: Raw, own: Raw) -> dict[Key, Found]:
    """The defaults under the job's own settings."""
    replaced = _COMMANDS if any(key in own for key in _COMMANDS) else ()
    kept = {key: value for key, value in defaults.items() if key not in replaced}
    return {**kept, **own}


def _members(
    name: str, raw: Raw, origin: Path, context: Context, problems: Problems, room: int
) -> Iterator[JobSpec]:
    """The jobs that one table stands for: one, or one for each member of its matrix."""
    fixed = {key: item for key, item in raw.items() if not _is_filled(key)}
    filled = {key: item for key, item in raw.items() if _is_filled(key)}
    values = parse_values(JOB, fixed, context, problems)
    axes = {key[1]: values.pop(key) for key in tuple(values) if key[0] == "matrix"}
    for key in axes:
        if not matrix.KEY.fullmatch(key):
            problems.add((*origin, "matrix"), f"{found(key)} cannot stand in a placeholder")
    if len(axes) < sum(key[0] == "matrix" for key in fixed):
        return  # an axis is wrong: its placeholders would be complained about as well
    if matrix.count(axes) > room:
        problems.add(origin, f"there would be more than {matrix.MOST_MEMBERS} jobs")
        return
    for member in matrix.members(axes):
        full = matrix.member_name(name, member)
        if len(full) > matrix.LONGEST_NAME:
            problems.add(
                origin, f"the name {found(full)} is longer than {matrix.LONGEST_NAME} characters"
            )
            continue
        mine = _fill(filled, member, context, problems) if member else filled
        rest = parse_values(JOB, mine, context, problems)
        yield build(full, raw, {**values, **rest}, origin, problems, context)


def _is_filled(key: Key) -> bool:
    setting = JOB.find(key)
    return setting is not None and setting.matrix


def _fill(
    raw: Raw, member: Mapping[str, str], context: Context, problems: Problems
) -> dict[Key, Found]:
    result: dict[Key, Found] = {}
    for key, item in raw.items():
        try:
            result[key] = Found(_fill_one(key, item.value, member, context), item.origin)
        except Wrong as wrong:
            problems.add_all(item.origin, wrong)
    return result


def _fill_one(key: Key, value: Any, member: Mapping[str, str], context: Context) -> Any:
    if key in (("command",), ("entrypoint",)) and isinstance(value, str):
        # Split first: a value with a space in it stays one word.
        value = list(kinds.entrypoint(value, context))
    return matrix.fill(value, member)


def build(
    name: str, raw: Raw, values: Values, origin: Path, problems: Problems, context: Context
) -> JobSpec:
    """The job that checked values make; what does not fit together goes to `problems`."""
    check = _Together(raw, values, origin, problems)
    check.all()
    single = plain(values)
    script = single.pop("script", None)
    single.setdefault("command", script or ())  # none: the image's, or a problem already noted
    hooks = {hook: single.pop(hook) for hook in HOOKS if hook in single}
    user, user_group = single.pop("user", (None, None))
    single["user"], single["user_group"] = user, single.pop("group", user_group)
    single.setdefault("write", "read-only" if single.get("root", "host") == "host" else "overlay")
    single.setdefault("user_namespace", default_user_namespace(context))
    stop = section(values, "stop")
    if _is_image(single.get("root", "host")):
        single.setdefault("working_dir", "")
        stop.setdefault("signal", "")
        if script:
            single.setdefault("entrypoint", ())
    return JobSpec(
        name=name,
        group=matrix.group_of(name),
        environment=section(values, "environment"),
        limits=Limits(**section(values, "limits")),
        capabilities=Capabilities(**section(values, "capabilities")),
        rlimits=Rlimits(**section(values, "rlimits")),
        stop=Stop(**stop),
        restart=Restart(**section(values, "restart")),
        log=Log(**section(values, "log")),
        pressure=PressureAt(**section(values, "pressure")),
        hooks=hooks,
        **single,
    )


def _is_image(root: str) -> bool:
    return JobSpec("", (), root=root).in_image


class _Together:
    """The checks of one job that need more than one setting."""

    def __init__(self, raw: Raw, values: Values, origin: Path, problems: Problems) -> None:
        self.raw, self.values, self.origin, self.problems = raw, values, origin, problems

    def all(self) -> None:
        self.command()
        self.write()
        self.disk()
        self.user()
        self.capabilities()
        self.limits()
        self.environment()
        self.targets()
        self.network()
        self.hooks()

    def complain(self, key: Key, message: str) -> None:
        self.problems.add(self.raw[key].origin if key in self.raw else self.origin, message)

    def lacks(self, key: Key) -> bool:
        """Whether a value is not set (or is "max"); one that is set but wrong is told elsewhere."""
        is_wrong = key in self.raw and key not in self.values
        return not is_wrong and self.values.get(key) is None

    def command(self) -> None:
        both = [key for key in _COMMANDS if key in self.raw]
        image = _is_image(self.values.get(("root",), "host"))
        begins = ("entrypoint",) in self.raw
        if not both and (not image or self.values.get(("entrypoint",)) == ()):
            self.problems.add(self.origin, "has neither a command nor a script")
        if begins and not image:
            self.complain(("entrypoint",), "only an image has one: write it into command")
        if begins and ("script",) in self.raw:
            self.complain(("entrypoint",), "a script is run by /bin/sh, and by nothing else")
        if len(both) == 2:
            self.complain(("script",), "a job has a command or a script, not both")

    def write(self) -> None:
        root = self.values.get(("root",), "host")
        write = self.values.get(("write",), "read-only" if root == "host" else "overlay")
        if self.values.get(("keep",), "never") != "never" and write != "overlay":
            self.complain(("keep",), 'there is nothing to keep unless write = "overlay"')

    def disk(self) -> None:
        root = self.values.get(("root",), "host")
        write = self.values.get(("write",), "read-only" if root == "host" else "overlay")
        disk, keep = ("limits", "disk"), ("keep",)
        if disk in self.raw and write != "overlay":
            self.complain(disk, 'there is nothing to limit unless write = "overlay"')
        if self.values.get(("disk_by",)) not in (None, "auto") and self.lacks(disk):
            self.complain(("disk_by",), "needs limits.disk beside it")
        if self.values.get(("disk_by",)) == "tmpfs" and self.values.get(keep, "never") != "never":
            self.complain(keep, 'what is in memory cannot be kept: disk_by = "tmpfs"')

    def user(self) -> None:
        user = self.values.get(("user",))
        if user and user[1] and ("group",) in self.raw:
            self.complain(("group",), f'the group is already in user = "{user[0]}:{user[1]}"')

    def network(self) -> None:
        if self.values.get(("network",)) != "bridge":
            for name in ("ports", "egress", "reach", "dns", "bandwidth"):
                if (name,) in self.raw:
                    self.complain((name,), 'needs network = "bridge"')

    def capabilities(self) -> None:
        add, drop = ("capabilities", "add"), ("capabilities", "drop")
        for name in sorted({*self.values.get(add, ())} & {*self.values.get(drop, ())}):
            self.complain(drop, f"{name} is added, too: it can only be one of both")

    def limits(self) -> None:
        for limit, text in conflicts(Limits(**section(self.values, "limits"))):
            if limit not in _NEEDS or self.lacks(("limits", _NEEDS[limit])):
                self.complain(("limits", limit), text)
        backoff = self.values.get(("restart", "backoff"), Restart().backoff)
        longest = self.values.get(("restart", "max_backoff"), Restart().max_backoff)
        if backoff > longest:
            self.complain(("restart", "backoff"), "is longer than restart.max_backoff")

    def environment(self) -> None:
        for key in self.raw:
            if key[0] == "environment" and (not key[1] or "=" in key[1]):
                self.complain(key, 'a variable\'s name is not empty and has no "="')

    def targets(self) -> None:
        for name in ("volumes", "copy_out"):
            if len(self.values.get((name,), ())) > MOST_HELD:
                self.complain((name,), f"there are more than {MOST_HELD}")
        places: dict[str, str] = {}
        for setting in ("mounts", "volumes", "tmpfs", "devices"):
            for mount in self.values.get((setting,), ()):
                if mount.target in places:
                    self.complain((setting,), f"two mounts at {mount.target}")
                places[mount.target] = setting

    def hooks(self) -> None:
        for hook in HOOKS:
            action = self.values.get((hook,))
            if isinstance(action, InlineAction) and action.action == "raise":
                self._raise(hook, str(action.arguments["limit"]), action.arguments["to"])

    def _raise(self, hook: str, limit: str, to: float) -> None:
        key = ("limits", limit)
        if self.lacks(key):
            self.complain((hook,), f"raises limits.{limit}, which the job does not have")
        elif to <= self.values.get(key, 0):
            shown = self.raw[key].value
            self.complain((hook,), f"would not raise limits.{limit}, which is {found(shown)}")


def _check_doubles(jobs: list[JobSpec], problems: Problems) -> None:
    """Two jobs of one name, which values of a matrix that look alike can make."""
    seen: set[str] = set()
    for job in jobs:
        if job.name in seen:
            problems.add(
                ("jobs", job.group),
                f'two jobs would be called "{job.name}"; values of a matrix must differ in '
                "their letters, digits, dots and dashes",
            )
        seen.add(job.name)
