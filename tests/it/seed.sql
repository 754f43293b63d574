-- The queries that operators of the first system use, kept to the letter. `<UUID>` stands for a
-- window's uuid. A line of dashes and a name starts each.

-- name: payments windows
SELECT window_uuid, service, window_from, window_to,
       error_status_generado, error_status_no_reportado
FROM report_windows
ORDER BY window_from DESC;

-- name: payments audit
SELECT window_uuid, service, status, sent_to_queue, timestamp
FROM report_audit
WHERE window_uuid = '<UUID>'
ORDER BY timestamp;

-- name: payments summary
SELECT
    window_uuid,
    service,
    COUNT(*)                                        AS total_ticks,
    SUM(sent_to_queue)                              AS enviados_a_queue,
    SUM(NOT sent_to_queue)                          AS omitidos,
    SUM(status LIKE 'error:%')                      AS errores,
    SUM(status = 'ok')                              AS ok
FROM report_audit
GROUP BY window_uuid, service
ORDER BY window_uuid;

-- name: monitor windows
SELECT window_uuid, service_name, status,
       expected_reports, received_reports, error_reports, missing_reports,
       window_from, window_to, closed_at
FROM monitoring_windows
ORDER BY created_at DESC;

-- name: monitor events
SELECT window_id, service_name, status, report_timestamp, error_message
FROM heartbeat_events
WHERE window_id = (
    SELECT id FROM monitoring_windows WHERE window_uuid = '<UUID>'
)
ORDER BY report_timestamp;

-- name: comparison payments
SELECT
    window_uuid,
    service,
    COUNT(*)               AS ticks_auditados,
    SUM(sent_to_queue)     AS enviados_queue,
    SUM(NOT sent_to_queue) AS omitidos_local,
    SUM(status LIKE 'error:%') AS errores
FROM report_audit

GROUP BY window_uuid, service;

-- name: comparison monitor
SELECT
    window_uuid,
    service_name,
    received_reports,
    error_reports,
    missing_reports,
    status
FROM monitoring_windows;
