"""Pinned trust anchors: SHA-256 fingerprints of the vendors' root certificates (DER).

Runs at the relying party. Full certificates come with evidence or endorsements and
count only if their fingerprint stands here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

# Intel SGX Root CA, from Intel's provisioning certification service: valid 2018 to 2049, and the
# earlier edition of the same key, to 2033.
_INTEL: Final = frozenset(
    {
        "44a0196b2b99f889b8e149e95b807a350e7424964399e885a7cbb8ccfab674d3",
        "fc64f8076d79a4fee9d1d473d74c89eb8d8fd55c5abafeabeba7366d20429404",
    }
)
# ARK-Milan, ARK-Genoa, ARK-Turin, from AMD's key distribution service (cert_chain of each product).
_AMD: Final = frozenset(
    {
        "69d063b45344d26a2e94e1f4210de49ef555308287d4c174445c95639a540bcd",
        "4c6598d19c18719c5dfd4a7d335f674e5bfe1d8f800cea2cf270c10d103db2f1",
        "1f084161a44bb6d93778a904877d4819cafa5d05ef4193b2ded9dd9c73dd3f6a",
    }
)
# aws.nitro-enclaves, root G1, from the Nitro Enclaves user guide.
_AWS: Final = frozenset({"641a0321a3e244efe456463195d606317ed7cdcc3c1756e09893f3c68f79bb5b"})

ANCHORS: Final[Mapping[str, frozenset[str]]] = {"sgx": _INTEL, "tdx": _INTEL, "snp": _AMD, "nitro": _AWS}

# NVIDIA Device Identity CA, from NVIDIA's nvtrust repository: over every GPU and NVSwitch. GPUs are no TEE of their
# own, so they are not in ANCHORS: no constraint makes one of these roots vouch for a quote.
NVIDIA_DEVICES: Final = frozenset({"102bf659d5419614c9d8e6aecebc80454eb26b1df6a769ac720b9a690b167b48"})
# NVIDIA CoRIM signing Root CA, from the same place: over the signers of reference integrity manifests.
NVIDIA_MANIFESTS: Final = frozenset({"12977b5115acb0381179279fffeb5a8c4d264971ebb32298023a465fa41df5d1"})
