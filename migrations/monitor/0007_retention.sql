-- What is kept no longer: events of old windows go first, then the windows. What they added to the
-- totals stays.
-- MySQL adds columns at once. MariaDB copies the table, because it has an index of a virtual column,
-- and writers wait for that.
ALTER TABLE windows
    -- False from the step on that takes its events out of the ledger: nothing more of it is taken
    -- in, counted or explained.
    ADD COLUMN events_kept BOOLEAN NOT NULL DEFAULT TRUE,
    -- How many unscheduled heartbeats it had, from then on.
    ADD COLUMN unscheduled_reports INT NOT NULL DEFAULT 0;

-- One change at a time, each beside readers and writers of the table.
ALTER TABLE windows
    -- What its age counts from; null while it is open.
    ADD COLUMN over_since DATETIME(6)
        GENERATED ALWAYS AS (GREATEST(ends_at, closed_at)) VIRTUAL,
    ALGORITHM = INPLACE, LOCK = NONE;

ALTER TABLE windows ADD KEY windows_to_prune (events_kept, over_since, unobserved_reports),
    ALGORITHM = INPLACE, LOCK = NONE;

-- Windows whose events are being deleted, some rows at a time.
CREATE TABLE windows_to_empty (
    window_id BIGINT NOT NULL PRIMARY KEY
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

-- What windows without events have added to `report_totals`, which has it too: counting anew begins
-- with these.
CREATE TABLE archived_totals LIKE report_totals;

-- One row: windows that ended up to this instant may be gone. It moves on before any is deleted, and
-- whoever makes an old window known reads it under a lock: so none comes back that was deleted.
CREATE TABLE retention (
    id                 TINYINT     NOT NULL PRIMARY KEY,
    windows_gone_until DATETIME(6) NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

INSERT INTO retention (id, windows_gone_until) VALUES (1, '1970-01-02 00:00:00');

ALTER TABLE counting
    -- Slices that begin before this instant are not kept, and not counted any more.
    ADD COLUMN slices_from DATETIME(6) NOT NULL DEFAULT '1970-01-02 00:00:00';

ALTER TABLE dead_letters ADD KEY dead_letters_by_time (dead_at), ALGORITHM = INPLACE, LOCK = NONE;

CREATE OR REPLACE VIEW monitoring_windows AS
SELECT
    w.id, w.window_uuid, w.service_name, w.status, w.expected_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.received_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id) END AS received_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.error_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id AND e.status = 'ERROR')
         END AS error_reports,
    w.missing_reports, w.unobserved_reports,
    CASE WHEN w.events_kept THEN
              (SELECT COUNT(*) FROM unscheduled_events u WHERE u.window_id = w.id)
         ELSE w.unscheduled_reports END AS unscheduled_reports,
    w.window_from, w.window_to, w.ends_at, w.due_at, w.clock_offset_us, w.via_stream, w.tick_us,
    w.error_status_generado, w.error_status_no_reportado,
    w.closed_at, w.created_at, w.updated_at, w.events_kept
FROM windows w;
