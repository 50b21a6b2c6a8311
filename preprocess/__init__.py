"""Raw text to checksummed HDF5 token shards: corpora, tokenizers and the shard format, both directions."""
