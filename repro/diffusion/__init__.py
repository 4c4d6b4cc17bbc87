"""Diffusion mathematics: preconditioning, losses, noise schedules, samplers and random draws."""
