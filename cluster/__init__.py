"""Several machines, each a server with its own ledger: which of them loads a model, which one answers a request.

``node``, ``placement``, ``routing``, ``replicas``, ``losses``, ``affinity`` and ``fleet`` are
pure: no clock, no network.
"""
