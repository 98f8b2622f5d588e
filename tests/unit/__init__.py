"""Tests that need no privilege and make no container."""
