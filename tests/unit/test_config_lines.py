"""The scanner that tells which line holds which key, over all of TOML's syntax."""

from __future__ import annotations

import tomllib

from supervisor.front.toml_lines import Lines

HOSTILE = '''\
# a comment = "with a key"
plain = 1
"quoted key".'dotted' . bare = """x
" = [
""""
[ table . "u\\u0041" ]  # [not.a.table]
array = [ 1, # ]
  { z = 'q', y = [
   2 ] },
]
inline = {a = {b = 1, "c}" = "]}"}, d = 2020-01-01T00:00:00}
[[things]]
name = 1
[[things]]
name = \'\'\'
]\\\'\'\'\'
[things.below]
last = -inf # the end
escapes = """\\
  a \\"""\\"
  \\u0041 = """
after = 1
'''


def paths(value, prefix=()):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, item in items:
        yield (*prefix, key)
        if isinstance(item, dict | list):
            yield from paths(item, (*prefix, key))


def test_every_key_of_a_hostile_document_is_found_and_no_other():
    assert set(Lines(HOSTILE).of) == set(paths(tomllib.loads(HOSTILE)))


def test_the_lines_are_those_a_person_would_name():
    lines = Lines(HOSTILE)
    at = {
        ("plain",): 2,
        ("quoted key", "dotted", "bare"): 3,
        ("table", "uA"): 6,
        ("table", "uA", "array", 1, "z"): 8,
        ("table", "uA", "array", 1, "y", 0): 9,
        ("table", "uA", "inline", "a", "c}"): 11,
        ("things", 0): 12,
        ("things", 1, "name"): 15,
        ("things", 1, "below", "last"): 18,
    }
    assert {path: lines.line(path) for path in at} == at


def test_an_unknown_path_has_the_line_of_what_is_around_it():
    lines = Lines(HOSTILE)
    assert lines.line(("things", 1, "below", "missing", 3)) == 17
    assert lines.line(("nowhere",)) == 1
    assert lines.line(()) == 1


def test_a_table_written_after_its_own_subtable():
    lines = Lines("[a.b]\nx = 1\n[a]\ny = 1\n")
    assert (lines.line(("a",)), lines.line(("a", "b")), lines.line(("a", "y"))) == (3, 1, 4)


def test_line_ends_of_windows():
    assert Lines('a = """\r\n\r\n"""\r\nb = 1\r\n').line(("b",)) == 4


def test_an_unfinished_document_keeps_what_was_found():
    assert Lines('a = 1\nb = "').line(("b",)) == 2
