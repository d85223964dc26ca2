"""AMD SEV-SNP reports: parse, then verify.

Spec: spec/snp.md.
"""

from conclave.attestation.snp.report import Report, parse_report
from conclave.attestation.snp.verify import verify_report

__all__ = ["Report", "parse_report", "verify_report"]
