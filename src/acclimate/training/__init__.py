"""The verbs that train: one recipe, and what each of them puts into it."""
