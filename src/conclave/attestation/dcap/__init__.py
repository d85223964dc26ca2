"""Evidence of Intel processors: quotes of SGX enclaves and TDX domains, with DCAP endorsements.

Runs at the relying party, on hostile bytes, under anchors that the caller chooses.

Spec: spec/dcap.md.
"""

from conclave.attestation.dcap.collateral import Endorsements, parse_endorsements
from conclave.attestation.dcap.quote import Quote, parse_quote
from conclave.attestation.dcap.verify import verify_quote

__all__ = ["Endorsements", "Quote", "parse_endorsements", "parse_quote", "verify_quote"]
