"""Tests on the real kernel, as root: marked `kernel`, run on the host and in the v2 guest."""
