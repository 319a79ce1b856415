"""The simulation: the whole market in one process and in virtual time.

Buyers, providers, relays, wallets and backends are the real code on ports of ``pylon.testing``; every delay, crash,
duplicate and reordering is drawn from one seed, so that ``make sim SEED=n`` replays any failure.
"""
