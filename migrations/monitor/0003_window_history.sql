-- Every change of a window's status, in order. Rows are added and never changed, so that an alert
-- which a late heartbeat has resolved can still be seen.
CREATE TABLE window_history (
    id               BIGINT      NOT NULL AUTO_INCREMENT PRIMARY KEY,
    window_id        BIGINT      NOT NULL,
    changed_at       DATETIME(6) NOT NULL,
    status           VARCHAR(6)  CHARACTER SET ascii COLLATE ascii_bin NOT NULL,
    received_reports INT         NOT NULL,
    error_reports    INT         NOT NULL,
    missing_reports  INT         NOT NULL,
    KEY window_history_of_window (window_id, id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
