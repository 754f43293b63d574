-- The first senders kept their shares as FLOAT, of which a DOUBLE shows all that no client ever saw:
-- 0.2623000144958496 is 0.2623. What is no FLOAT was written since, and stays.
UPDATE report_windows SET
    error_status_generado = IF(CAST(error_status_generado AS FLOAT) = error_status_generado,
        ROUND(error_status_generado, 7), error_status_generado),
    error_status_no_reportado = IF(CAST(error_status_no_reportado AS FLOAT) = error_status_no_reportado,
        ROUND(error_status_no_reportado, 7), error_status_no_reportado)
WHERE tick_us IS NULL;
