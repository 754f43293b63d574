-- What a reader needs to list windows from the latest start on, of whatever service or of one.
ALTER TABLE report_windows
    ADD KEY report_windows_by_start (window_from, window_uuid),
    ADD KEY report_windows_by_service_and_start (service, window_from, window_uuid);
