"""Minimal roots from programs: what they need is read from their files, and nothing is executed.

May import: `errors`, `model`, `linux`, `image`.
"""
