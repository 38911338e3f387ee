"""The protocol runner: methods by seeds by pairs of domains, one CSV, and a table of what was won."""
