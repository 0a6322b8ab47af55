"""The world: datasets, environments, behaviours, roll-outs and scores."""
