-- What a sender needs to send again what a lost Redis has taken along.
ALTER TABLE report_audit
    -- The entry that carried the heartbeat first; `stream_id` is that which carried it last.
    ADD COLUMN first_stream_id VARCHAR(41) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD KEY report_audit_published (service, published_at);

-- Which Redis, and which data, each service has written to.
CREATE TABLE stream_identities (
    service         VARCHAR(100) NOT NULL,
    stream          VARCHAR(100) NOT NULL,
    identity        VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- By the sender's clock: everything published before has been delivered. Null until a relay
    -- has said so.
    delivered_until DATETIME(6)  NULL,
    PRIMARY KEY (service, stream)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
