"""One task per job, and what they share: reaping, restarts, admission, shutdown.

May import everything above `front`.  Only `job` sees the whole way of a run.
"""
