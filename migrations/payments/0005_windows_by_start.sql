-- What a reader needs to list windows from the latest start on, of whatever service.
ALTER TABLE report_windows
    ADD KEY report_windows_by_start (window_from, window_uuid);
