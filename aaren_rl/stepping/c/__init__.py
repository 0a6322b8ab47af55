"""A step as C, written from the graph that torch exports of it."""
