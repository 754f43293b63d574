//! The tables of the first system, as its programs created them where they were missing: by
//! `SQLAlchemy`, in the default character set and collation of the database.

/// Those of the senders' database.
pub const PAYMENTS: &str = "
CREATE TABLE IF NOT EXISTS report_windows (
    id INTEGER NOT NULL AUTO_INCREMENT, window_uuid VARCHAR(36) NOT NULL,
    service VARCHAR(64) NOT NULL, window_from DATETIME NOT NULL, window_to DATETIME NOT NULL,
    error_status_generado FLOAT NOT NULL, error_status_no_reportado FLOAT NOT NULL,
    created_at DATETIME NOT NULL, PRIMARY KEY (id), UNIQUE (window_uuid));
CREATE TABLE IF NOT EXISTS report_audit (
    id INTEGER NOT NULL AUTO_INCREMENT, window_uuid VARCHAR(36) NOT NULL,
    service VARCHAR(64) NOT NULL, status VARCHAR(255) NOT NULL, window_from DATETIME NOT NULL,
    window_to DATETIME NOT NULL, timestamp DATETIME NOT NULL, sent_to_queue BOOL NOT NULL,
    created_at DATETIME NOT NULL, PRIMARY KEY (id),
    FOREIGN KEY(window_uuid) REFERENCES report_windows (window_uuid))";

/// Those of the monitor's database.
pub const MONITOR: &str = "
CREATE TABLE IF NOT EXISTS monitoring_windows (
    id INTEGER NOT NULL AUTO_INCREMENT, window_uuid VARCHAR(36) NOT NULL,
    service_name VARCHAR(64) NOT NULL, status VARCHAR(16) NOT NULL,
    expected_reports INTEGER NOT NULL, received_reports INTEGER NOT NULL,
    error_reports INTEGER NOT NULL, missing_reports INTEGER NOT NULL, error_status_generado FLOAT,
    error_status_no_reportado FLOAT, window_from DATETIME NOT NULL, window_to DATETIME NOT NULL,
    created_at DATETIME NOT NULL, updated_at DATETIME NOT NULL, closed_at DATETIME,
    PRIMARY KEY (id), UNIQUE (window_uuid));
CREATE TABLE IF NOT EXISTS heartbeat_events (
    id INTEGER NOT NULL AUTO_INCREMENT, window_id INTEGER NOT NULL,
    service_name VARCHAR(64) NOT NULL, status VARCHAR(16) NOT NULL,
    report_timestamp DATETIME NOT NULL, error_message VARCHAR(255), created_at DATETIME NOT NULL,
    PRIMARY KEY (id), FOREIGN KEY(window_id) REFERENCES monitoring_windows (id))";
