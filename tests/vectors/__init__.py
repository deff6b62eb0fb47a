"""Test vectors of the integer operations, and the script that makes them."""
