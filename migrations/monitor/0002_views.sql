-- The two names that people query. They are views, so that the counts of an open window are exact
-- at every instant without any row being updated for each heartbeat.
CREATE VIEW monitoring_windows AS
SELECT
    w.id, w.window_uuid, w.service_name, w.status, w.expected_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.received_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id) END AS received_reports,
    CASE WHEN w.status <> 'OPEN' THEN w.error_reports
         ELSE (SELECT COUNT(*) FROM events e WHERE e.window_id = w.id AND e.status = 'ERROR')
         END AS error_reports,
    w.missing_reports,
    (SELECT COUNT(*) FROM unscheduled_events u WHERE u.window_id = w.id) AS unscheduled_reports,
    w.window_from, w.window_to, w.ends_at, w.tick_us,
    w.error_status_generado, w.error_status_no_reportado,
    w.closed_at, w.created_at, w.updated_at
FROM windows w;

CREATE VIEW heartbeat_events AS
SELECT
    e.window_id, w.window_uuid, w.service_name, e.slot, e.status, e.report_timestamp,
    e.error_message, e.late, e.deliveries, e.conflicts, e.stream_id, e.recorded_at
FROM events e
JOIN windows w ON w.id = e.window_id;
