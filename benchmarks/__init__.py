"""Measurements against the tools that people use today.

May import: everything of the project, and the standard library.  Nothing imports it.
"""
