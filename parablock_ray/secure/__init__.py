"""Secure aggregation: the server learns the sum of the clients' updates, and no single one of them."""
