"""Generated street scenes: a room that their verb, jobs and suites that ask for such data enter, and nothing else."""
