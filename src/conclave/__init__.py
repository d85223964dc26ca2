"""Privacy-first applications on Trusted Execution Environments."""

__version__ = "0.1.0"
