"""The command `supervise`."""
