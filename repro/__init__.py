"""repro: the tables of diffusion-model papers, reproduced from configuration."""

__version__ = "0.1.0"
