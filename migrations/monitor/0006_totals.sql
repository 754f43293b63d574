-- Totals of what closed windows say of their slots, so that nobody has to read events for them. A
-- slot counts where it was due; a window and its unscheduled heartbeats where its last slot was due.
CREATE TABLE report_totals (
    -- How long the span is: `slice` (5 minutes), `hour` or `day` (UTC).
    span                VARCHAR(5)   CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    -- Empty for all services together.
    service_name        VARCHAR(100) NOT NULL,
    begins_at           DATETIME(6)  NOT NULL,
    expected_reports    BIGINT       NOT NULL,
    received_reports    BIGINT       NOT NULL,
    error_reports       BIGINT       NOT NULL,
    missing_reports     BIGINT       NOT NULL,
    unobserved_reports  BIGINT       NOT NULL,
    late_reports        BIGINT       NOT NULL,
    unscheduled_reports BIGINT       NOT NULL,
    closed_windows      BIGINT       NOT NULL,
    alert_windows       BIGINT       NOT NULL,
    -- Slots by verdict, in JSON.
    verdicts            TEXT         NOT NULL,
    -- Heartbeats by how long they took, in JSON: the classes of `monitor/latency.rs`.
    latencies           TEXT         NOT NULL,
    PRIMARY KEY (span, service_name, begins_at),
    KEY report_totals_by_time (span, begins_at DESC, service_name)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Windows that have closed, or changed since they were counted. Whatever changes one adds a row in the
-- same transaction; counting takes rows away in the transaction that brings the totals up to date.
CREATE TABLE uncounted_windows (
    id         BIGINT      NOT NULL AUTO_INCREMENT PRIMARY KEY,
    window_id  BIGINT      NOT NULL,
    -- When to try again one that could not be counted.
    not_before DATETIME(6) NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What each window has added to the totals, so that the difference can be added when it changes.
CREATE TABLE counted_windows (
    window_id BIGINT      NOT NULL PRIMARY KEY,
    -- Of a rebuild: what was added before the last one began is gone.
    epoch     INT         NOT NULL,
    added     MEDIUMTEXT  NOT NULL,
    -- When to ask both ledgers (again) why slots of it are missing.
    judge_at  DATETIME(6) NULL,
    KEY counted_windows_to_judge (judge_at)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One row, which whoever counts has locked.
CREATE TABLE counting (
    id            TINYINT NOT NULL PRIMARY KEY,
    epoch         INT     NOT NULL,
    -- While all closed windows are counted anew: those up to this one have been marked for it. -1
    -- while the totals are emptied, which comes first.
    recounted_to  BIGINT  NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- Windows that closed before there were totals are counted first.
INSERT INTO counting (id, epoch, recounted_to) VALUES (1, 1, 0);

-- The heartbeat of each service that arrived last, of those in windows that were counted.
CREATE TABLE last_heartbeats (
    service_name     VARCHAR(100) NOT NULL PRIMARY KEY,
    report_timestamp DATETIME(6)  NOT NULL,
    recorded_at      DATETIME(6)  NOT NULL,
    stream_id        VARCHAR(41)  CHARACTER SET ascii COLLATE ascii_bin NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- One change at a time, each beside readers and writers of the table.
ALTER TABLE windows
    ADD COLUMN length_us BIGINT
        GENERATED ALWAYS AS (TIMESTAMPDIFF(MICROSECOND, window_from, ends_at)) VIRTUAL,
    ALGORITHM = INPLACE, LOCK = NONE;

-- The longest of all says how far back a window may begin that reaches into a span of time.
ALTER TABLE windows ADD KEY windows_by_length (length_us), ALGORITHM = INPLACE, LOCK = NONE;

ALTER TABLE windows
    DROP KEY windows_open_of_service,
    ADD KEY windows_of_service_by_status (service_name, status, window_from, id),
    ALGORITHM = INPLACE, LOCK = NONE;
