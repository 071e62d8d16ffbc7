"""Random use under random trouble, for as long as one likes: `python -m tests.soak --help`.

Not part of the test run, as it is not deterministic: what it finds gets a test that is.
"""
