"""Readers of calls, one for each way of writing them."""
