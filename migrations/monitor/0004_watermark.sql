-- Closing on the watermark: what the monitor knows of the way from the senders, and which windows
-- wait for it.
ALTER TABLE windows
    -- Whether anything of it came through the stream: then the watermark says when it may close.
    ADD COLUMN via_stream BOOLEAN NOT NULL DEFAULT FALSE,
    -- How far the sender's clock is behind the stream's, in microseconds, at the most.
    ADD COLUMN clock_offset_us BIGINT NULL,
    -- End of the last slot by the stream's clock.
    ADD COLUMN due_at DATETIME(6)
        GENERATED ALWAYS AS (ends_at + INTERVAL COALESCE(clock_offset_us, 0) MICROSECOND) STORED,
    -- How long monitors had been running, in microseconds, when the window was found to be held.
    ADD COLUMN held_from_us BIGINT NULL,
    -- Slots that are missing only because they could not be observed.
    ADD COLUMN unobserved_reports INT NOT NULL DEFAULT 0,
    DROP KEY windows_to_close,
    ADD KEY windows_to_close (status, via_stream, due_at),
    ADD KEY windows_held (status, via_stream, held_from_us, due_at),
    ADD KEY windows_unobserved (unobserved_reports, due_at);

-- Why a slot counts as missing, if it is not that nothing arrived: `unobserved`.
ALTER TABLE events
    ADD COLUMN cause VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NULL;

ALTER TABLE window_history
    -- `unobserved` where no slot was missing for any other reason.
    ADD COLUMN cause VARCHAR(10) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN unobserved_reports INT NOT NULL DEFAULT 0;

-- How long monitors have been running, however many at a time. One row.
CREATE TABLE monitor_uptime (
    id         TINYINT     NOT NULL PRIMARY KEY,
    running_us BIGINT      NOT NULL,
    ticked_at  DATETIME(6) NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One row per consumer group that a relay has reported from.
CREATE TABLE pipelines (
    stream             VARCHAR(200) NOT NULL,
    consumer_group     VARCHAR(200) NOT NULL,
    -- Which Redis, and which data; the one before it, and when it changed (by the monitor's clock).
    redis_identity     VARCHAR(200) NOT NULL,
    previous_identity  VARCHAR(200) NULL,
    changed_at         DATETIME(6)  NULL,
    -- Redis' clock when it was asked last.
    redis_time         DATETIME(6)  NOT NULL,
    -- Everything written before is delivered or dead.
    watermark          DATETIME(6)  NOT NULL,
    -- Until when the watermark waits for senders to send again (by the monitor's clock).
    frozen_until       DATETIME(6)  NULL,
    -- When the relays last reached Redis again after they could not, by Redis' clock.
    recovered_at       DATETIME(6)  NULL,
    reported_at        DATETIME(6)  NOT NULL,
    -- How long monitors had been running then.
    reported_us        BIGINT       NOT NULL,
    PRIMARY KEY (stream, consumer_group)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- The last report of each relay, as it came.
CREATE TABLE pipeline_relays (
    stream         VARCHAR(200) NOT NULL,
    consumer_group VARCHAR(200) NOT NULL,
    relay          VARCHAR(200) NOT NULL,
    reported_at    DATETIME(6)  NOT NULL,
    report         MEDIUMTEXT   NOT NULL,
    PRIMARY KEY (stream, consumer_group, relay)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Windows that a suspect belongs to: each waits for its own, and no other window does.
CREATE TABLE suspect_windows (
    stream         VARCHAR(200) NOT NULL,
    consumer_group VARCHAR(200) NOT NULL,
    window_uuid    CHAR(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    PRIMARY KEY (window_uuid, stream, consumer_group)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Services that have not yet sent again what a lost Redis took along: their windows wait for it.
CREATE TABLE resending_services (
    stream         VARCHAR(200) NOT NULL,
    consumer_group VARCHAR(200) NOT NULL,
    service_name   VARCHAR(100) NOT NULL,
    PRIMARY KEY (service_name, stream, consumer_group)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Every message that was ever set aside, also if it was replayed or dropped since.
CREATE TABLE dead_letters (
    stream      VARCHAR(200)  NOT NULL,
    stream_id   VARCHAR(41)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    window_uuid CHAR(36)      CHARACTER SET ascii COLLATE ascii_bin NULL,
    slot        BIGINT        NULL,
    reason      VARCHAR(2000) NOT NULL,
    dead_at     DATETIME(6)   NOT NULL,
    PRIMARY KEY (stream, stream_id),
    KEY dead_letters_of_window (window_uuid, slot)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What is or was wrong with the way from the senders. One row while it lasts, kept when it is over.
CREATE TABLE pipeline_conditions (
    id             BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    stream         VARCHAR(200) NOT NULL,
    consumer_group VARCHAR(200) NOT NULL,
    kind           VARCHAR(20)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    detail         VARCHAR(500) NOT NULL,
    began_at       DATETIME(6)  NOT NULL,
    ended_at       DATETIME(6)  NULL,
    -- True while it lasts, else null, so that there is at most one of each.
    lasting        BOOLEAN      NULL,
    UNIQUE KEY pipeline_conditions_lasting (stream, consumer_group, kind, lasting),
    KEY pipeline_conditions_by_time (began_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE OR REPLACE VIEW monitoring_windows AS
SELECT
    w.id, w.window_uuid, w.service_name, w.status, w.expected_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.received_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id) END AS received_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.error_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id AND e.status = 'ERROR')
         END AS error_reports,
    w.missing_reports, w.unobserved_reports,
    (SELECT COUNT(*) FROM unscheduled_events u WHERE u.window_id = w.id) AS unscheduled_reports,
    w.window_from, w.window_to, w.ends_at, w.due_at, w.clock_offset_us, w.via_stream, w.tick_us,
    w.error_status_generado, w.error_status_no_reportado,
    w.closed_at, w.created_at, w.updated_at
FROM windows w;

CREATE OR REPLACE VIEW heartbeat_events AS
SELECT
    e.window_id, w.window_uuid, w.service_name, e.slot, e.status, e.report_timestamp,
    e.error_message, e.cause, e.late, e.deliveries, e.conflicts, e.stream_id, e.recorded_at
FROM events e
JOIN windows w ON w.id = e.window_id;
