-- What a sender needs to send again what a lost Redis has taken along.
ALTER TABLE report_audit
    -- The entry that carried the heartbeat first; `stream_id` is that which carried it last, and
    -- `published_at` when Redis took that one, by Redis' clock.
    ADD COLUMN first_stream_id VARCHAR(41) CHARACTER SET ascii COLLATE ascii_bin NULL,
    -- A mark of the Redis, and the data, that took it.
    ADD COLUMN redis_mark BIGINT UNSIGNED NULL,
    ADD KEY report_audit_published (service, published_at);

ALTER TABLE report_windows
    -- The same of its announcement.
    ADD COLUMN announced_at DATETIME(6) NULL,
    ADD COLUMN announcement_mark BIGINT UNSIGNED NULL,
    ADD KEY report_windows_announced (service, announced_at);

-- Which Redis, and which data, each service has seen to: it has sent again what that may lack.
CREATE TABLE stream_identities (
    service         VARCHAR(100) NOT NULL,
    stream          VARCHAR(100) NOT NULL,
    identity        VARCHAR(200) CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- Redis' clock when it was seen last.
    seen_at         DATETIME(6)  NOT NULL,
    -- Everything that was published before has been delivered. Null until a relay has said so.
    delivered_until DATETIME(6)  NULL,
    PRIMARY KEY (service, stream)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
