"""The job of `benchmarks/factory_peers.py` for each peer; their programs are run by Pythons that have the peer."""
