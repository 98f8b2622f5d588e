"""The verdict matrix: many kinds of jobs, each run many times, expected against told reasons.

`cases` and `outside` define the jobs, `judge` what a record must say, `groups` runs them by the
command, `report` prints the table.  tests/kernel/test_verdicts.py runs the same jobs a few times.
"""
