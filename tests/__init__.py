"""The tests: `unit` needs no privilege, `kernel` makes containers; `support`, `vm` serve them."""
