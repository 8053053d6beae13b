"""What module authors import: their shard, its weights, parallel layers, packed batches."""
