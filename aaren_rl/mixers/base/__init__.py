"""What mixers share: the contract, the registry, and base classes of several mechanisms."""
