"""Evidence of every vendor's shape under test PKIs, for tests and other implementations.

Start from evidence that passes, change one thing, sign again, expect one refusal:

    intel = IntelPki.create(now=now)
    good = intel.sgx()
    bad = intel.sgx(change=lambda draft: draft.tcb_info.update(version=4))

No trust anchor of a vendor vouches for any of it.
"""

from conclave.testing.evidence.amd import AmdDraft, AmdPki
from conclave.testing.evidence.aws import AwsDraft, AwsPki
from conclave.testing.evidence.draft import BuiltEvidence
from conclave.testing.evidence.intel import IntelDraft, IntelPki

__all__ = ["AmdDraft", "AmdPki", "AwsDraft", "AwsPki", "BuiltEvidence", "IntelDraft", "IntelPki"]
