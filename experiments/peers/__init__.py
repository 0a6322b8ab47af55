"""Peers: other libraries' agents, trained by those libraries in interpreters of their own."""
