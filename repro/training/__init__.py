"""Training: the loop, its steps, EMA, learning-rate schedules, augmentation and checkpoints."""
