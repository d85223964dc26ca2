"""AWS Nitro attestation documents: parse, then verify.

Spec: spec/nitro.md.
"""

from conclave.attestation.nitro.document import Document, parse_document
from conclave.attestation.nitro.verify import verify_document

__all__ = ["Document", "parse_document", "verify_document"]
