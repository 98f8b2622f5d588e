"""A job that is raised more than once: each limit it comes to is told, and none that it left."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.kernel

MIB = 1 << 20

CONFIG = """
{table}
plugins = ["grow-memory"]

[policies.grow-memory]
max = "512M"

[defaults]
timeout = "60s"

[jobs.grows]
command = ["/bin/sh", "-c", "seq 1 300000 | awk '{{ k[$1 \\" x\\"]++ }} END {{ print length(k) }}'"]
matrix = {{ n = [1, 2, 3, 4] }}
limits = {{ memory = "8M", {swap} pids = 16 }}
"""


@pytest.mark.parametrize("swap", ["", "swap = 0,"], ids=["memory", "memory and no swap"])
def test_every_limit_on_the_way_up_is_met_once(supervise, tmp_state, tmp_path, swap):
    # With swap = 0 v1's failcnt never moves: the limit of memory and swap together strikes first.
    config = tmp_path / "grow.toml"
    config.write_text(CONFIG.format(table=tmp_state.table, swap=swap))
    done = supervise(config, "--json", timeout=100)
    assert done.status == 0, done.stderr
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 4
    for record in records:
        limits = [change["value"] for change in record["memory"]["limit_history"]]
        assert limits[0] == 8 * MIB and len(limits) >= 3, record
        assert limits == [8 * MIB << n for n in range(len(limits))]
        # no raise without need: what it used in the end was more than the limit before the last
        assert record["memory"]["peak"] > limits[-2] * 7 / 8
        assert record["memory"]["oom_kills"] == 0
