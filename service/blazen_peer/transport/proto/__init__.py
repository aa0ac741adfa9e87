"""Generated from the ``.proto`` files here by ``make proto``; committed, and a test regenerates and compares them."""
