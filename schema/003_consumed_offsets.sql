-- How far the input topic is consumed. Moved by compare-and-set in the transaction that writes the
-- workers, so an offset and its rows are there together or not at all. The offsets that Kafka shows
-- for the group are a copy for lag tools and never read back.
CREATE TABLE consumed_offsets (
    consumer_group TEXT NOT NULL,
    topic          TEXT NOT NULL,
    partition      INTEGER NOT NULL,
    topic_id       UUID NOT NULL,                         -- Kafka's id of the topic: a topic deleted and made again has another one
    next_offset    BIGINT NOT NULL,                       -- first offset not yet consumed
    leader_epoch   INTEGER NOT NULL DEFAULT -1,           -- of the last consumed record, -1 unknown: shows a truncated log (KIP-320)
    PRIMARY KEY (consumer_group, topic, partition),
    CONSTRAINT an_offset CHECK (next_offset >= 0)
) WITH (fillfactor = 50);                                 -- updated once a batch: room for heap-only updates
