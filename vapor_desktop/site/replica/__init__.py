"""The replica store: recovery points as qcow2 chains, and the one index that says which of them exist.

Used by several processes at once (API, receivers): every change happens under the replica's file lock
and starts by reading the manifest again. Layout: ``docs/protocols.md``; rules: every verb's docstring.
"""

from vapor_desktop.site.replica.digests import DIGEST_BYTES, DigestTable, block_digest, zero_digest
from vapor_desktop.site.replica.incoming import Incoming
from vapor_desktop.site.replica.store import ReplicaStore

__all__ = [
    "DIGEST_BYTES",
    "DigestTable",
    "Incoming",
    "ReplicaStore",
    "block_digest",
    "zero_digest",
]
