"""The strongly typed graph, the engine built from it, and what is read back from the built plan."""
