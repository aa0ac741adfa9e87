"""Each code sample of Blazen's reference, in Python. `docs/reference-in-python.md` quotes them; a test runs them."""
