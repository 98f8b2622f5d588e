"""Attempts to get out of a job, up, or in the way of others; README.md lists them all."""
