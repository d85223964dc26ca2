"""Privacy-first applications on Trusted Execution Environments.

Authors start at `conclave.enclave`, relying parties at `conclave.client`.
"""

__version__ = "0.1.0"
