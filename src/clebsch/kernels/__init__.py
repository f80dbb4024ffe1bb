"""The heavy operations: their definition, their coupling plans and their backends."""
