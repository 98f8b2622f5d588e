"""What is written down: the event log (NDJSON) and the records of runs.

May import: `errors`, `model`, structlog.
"""
