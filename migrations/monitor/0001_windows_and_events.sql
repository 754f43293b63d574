-- Windows as their first definition said. The counts are final once a window has closed and are
-- not kept while it is open: the view below counts them from the events, which cannot disagree.
CREATE TABLE windows (
    id                        BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    window_uuid               CHAR(36)     CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    service_name              VARCHAR(100) NOT NULL,
    status                    VARCHAR(6)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL DEFAULT 'OPEN',
    window_from               DATETIME(6)  NOT NULL,
    window_to                 DATETIME(6)  NOT NULL,
    -- End of the last slot: from then on the window may close.
    ends_at                   DATETIME(6)  NOT NULL,
    tick_us                   BIGINT       NOT NULL,
    expected_reports          INT          NOT NULL,
    received_reports          INT          NOT NULL DEFAULT 0,
    error_reports             INT          NOT NULL DEFAULT 0,
    missing_reports           INT          NOT NULL DEFAULT 0,
    error_status_generado     DOUBLE       NULL,
    error_status_no_reportado DOUBLE       NULL,
    created_at                DATETIME(6)  NOT NULL,
    updated_at                DATETIME(6)  NOT NULL,
    closed_at                 DATETIME(6)  NULL,
    UNIQUE KEY windows_uuid (window_uuid),
    KEY windows_to_close (status, ends_at),
    KEY windows_by_time (window_from, id),
    KEY windows_by_service (service_name, window_from, id),
    KEY windows_by_status (status, window_from, id),
    KEY windows_open_of_service (service_name, status),
    CONSTRAINT windows_status CHECK (status IN ('OPEN', 'CLOSED', 'ALERT')),
    CONSTRAINT windows_add_up CHECK
        (status = 'OPEN' OR received_reports + missing_reports = expected_reports)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What is known of each slot. One row per slot at most, whoever writes it first: the primary key
-- arbitrates between a heartbeat and the verdict that it is missing. No second unique key: it
-- would bring deadlocks.
CREATE TABLE events (
    window_id        BIGINT        NOT NULL,
    slot             INT           NOT NULL,
    status           VARCHAR(7)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- The sender's clock; for a MISSING one, when it was due.
    report_timestamp DATETIME(6)   NOT NULL,
    error_message    VARCHAR(1000) NULL,
    stream_id        VARCHAR(41)   CHARACTER SET ascii COLLATE ascii_bin NULL,
    recorded_at      DATETIME(6)   NOT NULL,
    -- Arrived after the window had closed without it.
    late             BOOLEAN       NOT NULL DEFAULT FALSE,
    -- How often it arrived, and how often with other content than the first time.
    deliveries       INT           NOT NULL,
    conflicts        INT           NOT NULL DEFAULT 0,
    PRIMARY KEY (window_id, slot)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Heartbeats outside of their window's slots, counted apart and never as received.
CREATE TABLE unscheduled_events (
    window_id        BIGINT        NOT NULL,
    slot             BIGINT        NOT NULL,
    status           VARCHAR(7)    CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    report_timestamp DATETIME(6)   NOT NULL,
    error_message    VARCHAR(1000) NULL,
    stream_id        VARCHAR(41)   CHARACTER SET ascii COLLATE ascii_bin NULL,
    recorded_at      DATETIME(6)   NOT NULL,
    deliveries       INT           NOT NULL,
    conflicts        INT           NOT NULL DEFAULT 0,
    PRIMARY KEY (window_id, slot)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
