-- The tables as the first senders made them. Where they exist already, with data, they stay.
CREATE TABLE IF NOT EXISTS report_windows (
    id                        BIGINT       NOT NULL AUTO_INCREMENT PRIMARY KEY,
    window_uuid               VARCHAR(36)  NOT NULL,
    service                   VARCHAR(100) NOT NULL,
    window_from               DATETIME(6)  NOT NULL,
    window_to                 DATETIME(6)  NOT NULL,
    error_status_generado     DOUBLE       NULL,
    error_status_no_reportado DOUBLE       NULL,
    created_at                DATETIME(6)  NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;

CREATE TABLE IF NOT EXISTS report_audit (
    id            BIGINT        NOT NULL AUTO_INCREMENT PRIMARY KEY,
    window_uuid   VARCHAR(36)   NOT NULL,
    service       VARCHAR(100)  NOT NULL,
    status        VARCHAR(1100) NOT NULL,
    window_from   DATETIME(6)   NOT NULL,
    window_to     DATETIME(6)   NOT NULL,
    timestamp     DATETIME(6)   NOT NULL,
    sent_to_queue BOOLEAN       NOT NULL,
    created_at    DATETIME(6)   NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
