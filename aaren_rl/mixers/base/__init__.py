"""Code that several mixers share: the contract, the registry, and base classes."""
