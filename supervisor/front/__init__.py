"""What people meet: configuration, commands, the live view, reports.

May import everything; nothing imports it.
"""
