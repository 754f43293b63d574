-- What heartbeat's own senders keep beside the first senders' columns. Everything is nullable or
-- has a default, so that the first senders' inserts go on working.

-- Tables that were adopted may hold shorter texts, whole seconds, and no time of creation.
UPDATE report_windows SET created_at = window_from WHERE created_at IS NULL;
UPDATE report_audit SET created_at = timestamp WHERE created_at IS NULL;

ALTER TABLE report_windows
    MODIFY window_uuid VARCHAR(36)  CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY service     VARCHAR(100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY window_from DATETIME(6)  NOT NULL,
    MODIFY window_to   DATETIME(6)  NOT NULL,
    MODIFY error_status_generado     DOUBLE NULL,
    MODIFY error_status_no_reportado DOUBLE NULL,
    MODIFY created_at  DATETIME(6)  NOT NULL,
    -- Microseconds between two slots; null in windows of the first senders.
    ADD COLUMN tick_us BIGINT NULL,
    -- One character per slot: `.` report ok, `-` omit, a digit the error with that number.
    ADD COLUMN plan MEDIUMTEXT CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN seed BIGINT UNSIGNED NULL,
    -- Whether it is one of the windows that follow each other without being asked for.
    ADD COLUMN continuous BOOLEAN NOT NULL DEFAULT FALSE,
    -- The stream entry that announced the window; null until it is known to be written.
    ADD COLUMN announcement_id VARCHAR(41) CHARACTER SET ascii COLLATE ascii_bin NULL,
    -- The process that works on the window, and until when it says so (by the database's clock).
    ADD COLUMN owner VARCHAR(36) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN leased_until DATETIME(6) NULL,
    -- When every slot had passed and every send was confirmed.
    ADD COLUMN finished_at DATETIME(6) NULL,
    ADD UNIQUE KEY report_windows_uuid (window_uuid),
    -- Old senders' windows never finish; without a tick they lie apart in this index.
    ADD KEY report_windows_unfinished (service, finished_at, tick_us),
    ADD KEY report_windows_owner (owner, finished_at),
    ADD KEY report_windows_by_time (service, window_from);

ALTER TABLE report_audit
    MODIFY window_uuid VARCHAR(36)   CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY service     VARCHAR(100)  CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY status      VARCHAR(1100) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    MODIFY window_from DATETIME(6)   NOT NULL,
    MODIFY window_to   DATETIME(6)   NOT NULL,
    MODIFY timestamp   DATETIME(6)   NOT NULL,
    MODIFY created_at  DATETIME(6)   NOT NULL,
    -- Null in rows of the first senders, which therefore never collide.
    ADD COLUMN slot INT NULL,
    -- The stream entry that carried the heartbeat; null until it is known to be written.
    ADD COLUMN stream_id VARCHAR(41) CHARACTER SET ascii COLLATE ascii_bin NULL,
    ADD COLUMN published_at DATETIME(6) NULL,
    ADD UNIQUE KEY report_audit_slot (window_uuid, slot);
