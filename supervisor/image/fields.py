"""The fields of tar headers: numbers, pax records; each is checked when it is parsed.

Runs in the extraction's interpreter (`extractor`): imports nothing.
"""

from __future__ import annotations

BILLION = 10**9
_MAX = 1 << 62
"""Nothing that a header counts is as much."""


class TarError(Exception):
    """What is wrong with the archive, in words."""


def number(field: bytes, what: str, *, negative: bool = False) -> int:
    """Octal digits, or base 256 where the first bit is set.  Raises TarError."""
    digits = field.rstrip(b" \0")
    if digits.isdigit():
        return octal(digits, what)
    digits = field.partition(b"\0")[0].strip(b" ")
    if not digits:
        return 0
    if field[0] & 0x80:
        bits = 8 * len(field) - 1
        found = int.from_bytes(field, "big") & (1 << bits) - 1
        if field[0] & 0x40:
            found -= 1 << bits
        return _sane(found, what, negative)
    return octal(digits, what)


def octal(digits: bytes, what: str) -> int:
    """At most eleven of them: nothing that is absurd.  Raises TarError."""
    if digits.isdigit():  # int() would take a sign, or underscores
        try:
            return int(digits, 8)
        except ValueError:
            pass
    raise TarError(f"a header's {what} is no number")


def decimal(digits: bytes, what: str) -> int:
    """Of a pax header.  Raises TarError."""
    if not digits.isdigit() or len(digits) > 20:
        raise TarError(f"a header's {what} is no number")
    return _sane(int(digits), what, False)


def _sane(found: int, what: str, negative: bool) -> int:
    if found < 0 and not negative:
        raise TarError(f"a header's {what} is negative")
    if not -_MAX < found < _MAX:
        raise TarError(f"a header's {what} is absurd: {found}")
    return found


def seconds(value: bytes) -> int:
    """Of a pax header, "-1.5": in nanoseconds."""
    whole, _, fraction = value.removeprefix(b"-").partition(b".")
    if fraction and not fraction.isdigit():
        raise TarError("a header's mtime is no number")
    found = decimal(whole, "mtime") * BILLION + int(fraction[:9].ljust(9, b"0"))
    return -found if value.startswith(b"-") else found


def pax_records(data: bytes) -> list[tuple[bytes, bytes]]:
    """ "LENGTH KEY=VALUE\\n", one after the other, in their order."""
    found, at = [], 0
    while at < len(data):
        space = data.find(b" ", at, at + 20)
        digits = data[at:space]
        end = at + int(digits) if space > 0 and digits.isdigit() else 0
        if not space < end <= len(data) or data[end - 1 : end] != b"\n":
            raise TarError("a pax header is malformed")
        key, equals, value = data[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise TarError("a pax header is malformed")
        found.append((key, value))
        at = end
    return found


def text(name: bytes) -> str:
    """A name for a message, whatever its bytes are."""
    shown = name if len(name) <= 200 else name[:197] + b"..."
    return repr(shown.decode("utf-8", "replace"))[1:-1]
