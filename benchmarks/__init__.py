"""Measurements, for people: ``python -m benchmarks [NAME ...] [--json]``. No figure here is ever asserted by a test.

Everything runs on 127.0.0.1, in processes of its own, for about eight minutes in all; ``agents`` takes six of them.
"""
