"""The simulator: tables of numbers in, seconds, bytes and joules out. numpy and numba only.

Every function here has a plain twin in `tests/naive/`.
"""
