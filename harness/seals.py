"""A seal on a Parquet file: the hash of all its bytes, kept inside it, so that a flipped one is noticed."""

from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq

KEY = "sha256"
BLANK = b"0" * 64
"""What stands in the place of the hash while it is taken."""


def sealed(table: pa.Table) -> bytes:
    """The table as the bytes of a Parquet file with a seal."""
    buffer = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, compression="zstd") as writer:
        writer.write_table(table)
        # Last, so that it stands behind everything else that might look like it.
        writer.add_key_value_metadata({KEY: BLANK.decode()})
    content = buffer.getvalue().to_pybytes()
    return _with_seal(content, BLANK, sha256(content).hexdigest().encode())


def intact(content: bytes) -> bool:
    """Whether these are the bytes that were sealed."""
    try:
        seal = pq.read_metadata(pa.BufferReader(content)).metadata[KEY.encode()]
    except (pa.ArrowException, OSError, KeyError, TypeError):
        return False
    if len(seal) != len(BLANK) or seal not in content:
        return False
    return sha256(_with_seal(content, seal, BLANK)).hexdigest().encode() == seal


def _with_seal(content: bytes, old: bytes, new: bytes) -> bytes:
    before, _, after = content.rpartition(old)
    return before + new + after
