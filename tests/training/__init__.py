"""A package, so that its modules may have the names of others': test_ema, test_schedules, test_weights."""
